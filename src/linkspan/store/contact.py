"""Contact with the store: when it last answered, how fast, and since when it is silent.

While the store is away, the replica of its records continues to say that every host lives. So the liveness of other
hosts is unknown once the watch has given no proof of life for STALE seconds.

Ages use CLOCK_BOOTTIME, which nobody can set and which continues while the machine is suspended. Displayed times use
the wall clock.
"""

from __future__ import annotations

import time
from typing import Literal

from linkspan.core.clock import now
from linkspan.core.store_contract import Batch
from linkspan.store.records import ALIVE, EGRESS

STALE = 7.0
"""Seconds without a proof that the watch lives. A watch leaves a member that hangs within 4 s, and an election takes 1
to 2 s."""
SLOW = 1.0
"""Seconds: a healthy store answers in milliseconds, and an election takes 1 to 2 s."""
RECENT = 60.0
"""Seconds for which the duration of the last write counts: this host may not write again for hours."""

State = Literal["ok", "slow", "away", "stale", "lost", "full"]
"""``away``: the store does not answer, or refuses. ``stale``: it takes writes, but reports no changes of other hosts.
``lost``: it lost records that their owners have not put back yet. ``full``: it takes no writes, because its quota is
full. Only ``ok`` and ``slow`` are no problem."""


class Contact:
    """Times of the store's last answers and of the watch's last report: by ``core.clock.now`` unless said otherwise."""

    def __init__(self) -> None:
        self.answered: float | None = None
        """When the store last answered (seconds since the epoch); None if it has not answered since the start."""
        self.seconds: float | None = None
        """How long the last write took."""
        self.full = False
        """True if the store takes no writes, because its quota is full."""
        self._wrote = float("-inf")
        self.heard = float("-inf")
        """When the watch or a listing last reported anything, a mere proof of life included."""
        self._told = 0.0
        """The same time in seconds since the epoch."""
        self._gone: dict[str, float | None] = {}
        """When each host's liveness record was reported gone (seconds since the epoch); None while it exists."""

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
        """Return how long the last write took, in seconds; None if it is older than RECENT."""
        return self.seconds if now() - self._wrote < RECENT else None

    def told(self, batch: Batch) -> None:
        """Record a listing (missing records are its deletes), or changes from the watch."""
        self.answered = self._told = time.time()
        self.heard = now()
        for record in batch.puts:
            if record.key.startswith(ALIVE) and not record.key.startswith(EGRESS):
                self._gone[record.key] = None
        for key in batch.deletes:
            if self._gone.get(key, 0.0) is None:
                self._gone[key] = self._told

    def silence(self) -> float:
        """Return for how many seconds the store has been silent; infinite if it has not answered since the start."""
        return now() - self.heard

    def seen(self, host: str) -> float | None:
        """Return when a host was last known to live, in seconds since the epoch; None if no record ever said so."""
        key = ALIVE + host
        return (self._gone[key] or self._told) if key in self._gone else None
