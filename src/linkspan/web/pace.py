"""Limit of how often something may be done: a token bucket."""

from __future__ import annotations

import time
from collections.abc import Callable


class Pace:
    """Allows ``burst`` uses at once, and one more each ``every`` seconds."""

    def __init__(self, burst: int, every: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst = burst
        self._every = every
        self._clock = clock
        self._left = float(burst)
        self._at = clock()

    def wait(self) -> float:
        """Use one up and return 0; or return in how many seconds there is one."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._at) / self._every)
        self._at = now
        if self._left < 1:
            return (1 - self._left) * self._every
        self._left -= 1
        return 0.0
