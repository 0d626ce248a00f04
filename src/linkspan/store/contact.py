"""Contact with the store: when it last answered, how fast, and since when it is silent.

A store that is away deletes nothing: the replica of its records continues to say that every host lives. So
liveness of other hosts is unknown once the watch has not proved for STALE seconds that it lives.

Ages are counted by CLOCK_BOOTTIME, which nobody sets and which continues in a suspended machine. Displayed
times are the wall clock's.
"""

from __future__ import annotations

import time
from typing import Literal

from linkspan.core.clock import now
from linkspan.core.contracts import Batch

ALIVE = "alive/"
"""Records by which hosts say that they live (`cluster/presence.py`)."""
STALE = 7.0
"""Seconds without a proof that the watch lives: a watch whose member hangs is at another one in 4, and an election
takes 1 to 2 s."""
SLOW = 1.0
"""Seconds: a store that is well answers in milliseconds, and an election takes 1 to 2 s."""
RECENT = 60.0
"""Seconds for which a slow answer to a write tells of the present: nobody may write for hours."""

State = Literal["ok", "slow", "away", "stale", "lost", "full"]
"""``away``: it does not answer, or refuses. ``stale``: it takes writes, and tells nothing of what others write.
``lost``: it has lost records that are not put back yet. ``full``: it takes no writes, because its quota is full. The
first two are well enough to go on."""


class Contact:
    """When the store answered and told; times of ``core.clock.now`` unless said otherwise."""

    def __init__(self) -> None:
        self.answered: float | None = None
        """When it last answered (seconds since the epoch), None where it has not since the start."""
        self.seconds: float | None = None
        """How long its last answer to a write took."""
        self.full = False
        """Whether it takes no writes, because its quota is full."""
        self._wrote = float("-inf")
        self.heard = float("-inf")
        """When it last told anything, a proof that the watch lives too."""
        self._told = 0.0
        """The same in seconds since the epoch."""
        self._gone: dict[str, float | None] = {}
        """When each host's record was told to be gone (seconds since the epoch), None while it is there."""

    def wrote(self, seconds: float) -> None:
        """Record an answer to a write."""
        self.answered, self.seconds, self._wrote = time.time(), seconds, now()

    def kept(self) -> None:
        """Record an answer to a keepalive, which needs no disk."""
        self.answered = time.time()

    def found(self, *, full: bool) -> None:
        """Record whether the store's quota is full."""
        self.full = full

    def took(self) -> float | None:
        """Return how long the last write took, in seconds; None if there was none lately."""
        return self.seconds if now() - self._wrote < RECENT else None

    def told(self, batch: Batch) -> None:
        """Record a listing, with the missing records as deletes, or changes from the watch."""
        self.answered = self._told = time.time()
        self.heard = now()
        for record in batch.puts:
            if record.key.startswith(ALIVE):
                self._gone[record.key] = None
        for key in batch.deletes:
            if self._gone.get(key, 0.0) is None:
                self._gone[key] = self._told

    def silence(self) -> float:
        """Return for how many seconds the store has been silent; infinite if it has not answered since the start."""
        return now() - self.heard

    def seen(self, host: str) -> float | None:
        """Return until when a host is known to have lived, in seconds since the epoch; None if it never was."""
        key = ALIVE + host
        return (self._gone[key] or self._told) if key in self._gone else None
