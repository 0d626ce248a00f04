"""Contact with the store: when it last answered, how fast, and when each host was last seen.

A store that is away deletes nothing: the replica of its records continues to say that every host lives. So
liveness of other hosts counts for as long as their record would (ALIVE_TTL), and is unknown after that.

Ages are counted by CLOCK_BOOTTIME, which nobody sets and which continues in a suspended machine. Displayed
times are the wall clock's.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Literal

from linkspan.core.contracts import Record

ALIVE = "alive/"
"""Records by which hosts say that they live; each is written again and again, and expires by itself."""
ALIVE_TTL = 7.0
"""Seconds after which a host that says nothing counts as silent: `status` tells within these."""
SLOW = 1.0
"""Seconds: a store that is well answers in milliseconds, and an election takes 1 to 2 s."""

State = Literal["ok", "slow", "away", "stale", "lost"]
"""``away``: it does not answer, or refuses. ``stale``: it takes writes, and tells nothing of what others write.
``lost``: it has lost records that are not put back yet. The first two are well enough to go on."""


def now() -> float:
    """Return the time for ages, in seconds."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Contact:
    """When the store answered and told; times of ``now`` unless said otherwise."""

    def __init__(self) -> None:
        self.answered: float | None = None
        """When it last answered (seconds since the epoch), None where it has not since the start."""
        self.seconds: float | None = None
        """How long its last answer to a write took."""
        self._told: float | None = None
        self._seen: dict[str, tuple[int, float]] = {}

    def wrote(self, seconds: float) -> None:
        """Record an answer to a write."""
        self.answered, self.seconds = time.time(), seconds

    def told(self, records: Iterable[Record]) -> None:
        """Record a listing, or changes from the watch.

        A record listed again with a known revision is no new sign of life of its host.
        """
        self.answered, self._told = time.time(), now()
        for record in records:
            if record.key.startswith(ALIVE) and self._seen.get(record.key, (-1, 0.0))[0] != record.revision:
                self._seen[record.key] = record.revision, self.answered

    def silence(self) -> float:
        """Return for how many seconds the store has been silent; infinite if it has not answered since the start."""
        return float("inf") if self._told is None else now() - self._told

    def seen(self, host: str) -> float | None:
        """Return when a host's last word was heard, in seconds since the epoch; None where none was."""
        known = self._seen.get(ALIVE + host)
        return known[1] if known is not None else None
