"""Absences: hosts' records of liveness that are gone from the store. Each counts until its absence has lasted.

A leader of etcd that was frozen, and goes on, may end the lease of a host that lives. That host puts its record again
at once, so nobody else acts before ABSENCE has passed. And a store without room grants no lease, so a host that is
missing there may live: nobody is taken for dead until there is room again, and GRACE has passed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from linkspan.core.contracts import Store
from linkspan.core.errors import Unavailable
from linkspan.core.supervise import woken

ABSENCE = 0.5
"""Seconds. A host's answer to the end of its record takes two transactions, some 10 ms."""
ROOM_EVERY = 2.0
"""Seconds between two questions whether there is room again."""
GRACE = 8.0
"""Seconds after that in which hosts come back: they try every 5 (`cluster/presence.py`)."""
AGAIN = 0.5
"""Seconds until a store that did not say whether it is full is asked again."""


class Absences:
    """The keys of records that are gone, each with its end; calls ``ended`` with the keys to forget."""

    def __init__(self, store: Store, ended: Callable[[frozenset[str]], Awaitable[None]]) -> None:
        self.full = False
        """Whether the store had no room when it was last asked."""
        self._store = store
        self._ended = ended
        self._until: dict[str, float] = {}
        self._some = asyncio.Event()

    def __contains__(self, key: str) -> bool:
        """Return whether a record is gone, but still counts."""
        return key in self._until

    def note(self, key: str) -> None:
        """Record that a record is gone."""
        self._until.setdefault(key, _now() + ABSENCE)
        self._some.set()

    def back(self, key: str) -> None:
        """Record that a record exists again."""
        self._until.pop(key, None)

    async def look(self) -> bool:
        """Ask the store whether it is full, and return its answer; without one the earlier answer stays known."""
        with_room = not self.full
        try:
            self.full = await self._store.full()
        except Unavailable:
            return False
        if self.full:
            self._some.set()
        elif not with_room:
            end = _now() + GRACE
            self._until = dict.fromkeys(self._until, end)
        return self.full

    async def follow(self) -> None:
        """End each absence in its time, for as long as the agent runs."""
        while True:
            if self.full:
                await asyncio.sleep(ROOM_EVERY)
                await self.look()
                continue
            # One that is noted meanwhile may end before those that have GRACE.
            await woken(self._some, max(min(self._until.values()) - _now(), 0.0) if self._until else None)
            self._some.clear()
            await self._end()

    async def _end(self) -> None:
        due = self._due()
        if not due:  # they are back
            return
        try:
            self.full = await self._store.full()
        except Unavailable:  # nothing is known of anybody now
            await asyncio.sleep(AGAIN)
            return
        if not self.full and (due := due & self._due()):
            for key in due:
                del self._until[key]
            await self._ended(due)

    def _due(self) -> frozenset[str]:
        now = _now()
        return frozenset(key for key, until in self._until.items() if until <= now)


def _now() -> float:
    return asyncio.get_running_loop().time()
