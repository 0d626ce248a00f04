"""Absences: hosts whose liveness record is gone from the store, and who still count as alive for a moment.

An etcd leader that was frozen may, when it continues, end the etcd lease of a host that lives. That host puts its
record again at once, so other hosts act only after ABSENCE. A full store grants no etcd lease, so a host that is
missing there may live: no host counts as dead until the store has room again and GRACE has passed.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable

from linkspan.core.clock import loop_time
from linkspan.core.errors import Unavailable
from linkspan.core.store_contract import Store
from linkspan.core.supervise import woken
from linkspan.store.records import EGRESS

ABSENCE = 0.5
"""Seconds. A host needs two transactions, about 10 ms, to put its record again."""
LATE_ABSENCE = 3.0
"""Seconds, if a listing found the absence and not the watch: the store was restored, and the host learns with its next
keepalive that its lease has ended. That is up to 2 s later."""
STEP = 0.25
"""Seconds. Any host may write and delete records of egress addresses, so the ends of many count at one moment: before
each such moment the store is asked."""
ROOM_EVERY = 2.0
"""Seconds between two questions to a full store whether it has room again."""
GRACE = 8.0
"""Seconds that hosts get to put their records again once the store has room: they try every 5 s
(`cluster/presence.py`)."""
AGAIN = 0.5
"""Seconds until the next question, if the store did not say whether it is full."""


class Absences:
    """The keys of liveness records that are gone, each with the time at which its host counts as dead.

    It calls ``ended`` with the keys whose time has come.
    """

    def __init__(self, store: Store, ended: Callable[[frozenset[str]], Awaitable[None]]) -> None:
        self.full = False
        """True if the store had no room when it was last asked."""
        self._store = store
        self._ended = ended
        self._until: dict[str, float] = {}
        self._grace = float("-inf")
        """When the time ends in which hosts come back to a store that had no room."""
        self._some = asyncio.Event()

    def __contains__(self, key: str) -> bool:
        """Return whether a record is gone and its host still counts as alive."""
        return key in self._until

    @property
    def unsure(self) -> bool:
        """True if hosts without a record may live: the store has no room, or had none until just now."""
        return self.full or loop_time() < self._grace

    def note(self, key: str, after: float = ABSENCE) -> None:
        """Record that a record is gone; its host counts as dead ``after`` so many seconds."""
        until = loop_time() + after
        self._until.setdefault(key, math.ceil(until / STEP) * STEP if key.startswith(EGRESS) else until)
        self._some.set()

    def back(self, key: str) -> None:
        """Record that a record exists again."""
        self._until.pop(key, None)

    async def look(self) -> bool:
        """Ask the store whether it is full, and return its answer.

        If it does not answer, return False and keep the earlier answer.
        """
        try:
            return await self._ask()
        except Unavailable:
            return False

    async def _ask(self) -> bool:
        had_room, self.full = not self.full, await self._store.full()
        if self.full:
            self._some.set()
        elif not had_room:
            self._grace = loop_time() + GRACE
            self._until = dict.fromkeys(self._until, self._grace)
        return self.full

    async def follow(self) -> None:
        """Report each host whose absence has lasted, for as long as the agent runs."""
        while True:
            if self.full:
                await asyncio.sleep(ROOM_EVERY)
                await self.look()
                continue
            # An absence that is noted meanwhile may end before those that wait for GRACE.
            await woken(self._some, max(min(self._until.values()) - loop_time(), 0.0) if self._until else None)
            self._some.clear()
            await self._end()

    async def _end(self) -> None:
        due = self._due()
        if not due:  # they are back
            return
        try:
            full = await self._ask()
        except Unavailable:  # without the store nothing is known of any host
            await asyncio.sleep(AGAIN)
            return
        if not full and (due := due & self._due()):
            for key in due:
                del self._until[key]
            await self._ended(due)

    def _due(self) -> frozenset[str]:
        now = loop_time()
        return frozenset(key for key, until in self._until.items() if until <= now)
