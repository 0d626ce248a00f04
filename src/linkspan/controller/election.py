"""Election of the active one of several controllers: the one with a standing record (``Store.keep``).

To take the record is one transaction, on condition that it does not exist, or is one's own. To keep it changes
nothing in the store. A controller steps down before its record can expire: by its own clock, counted from before it
sent the last keepalive that the store accepted, and at once if the record is gone. The others take it half a second
after it is gone (``store/absence.py``). So there are never two, whatever the machines' clocks say. If the store is
away there is none: flows stay as they are then, and nobody repairs them.

There is one exception. If the leader of an etcd before 3.5.11 was frozen and continues, it may delete the record of a
controller that lives. If the watch of that controller is late, too, two may be active until its next keepalive
(EVERY). Both put the same flows, which follow from the same records.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from linkspan.core.clock import loop_time
from linkspan.core.errors import LinkspanError
from linkspan.core.model import CONTROLLER
from linkspan.core.store_contract import LIFE
from linkspan.core.supervise import ended, lasting, woken
from linkspan.store.replica import Replica

log = logging.getLogger("linkspan.controller")

KEY = f"alive/{CONTROLLER}"
EVERY = 0.8
"""Seconds between two keepalives. A takeover takes LIFE, half a second in which etcd finds the end, and ABSENCE."""
DEAF = 3.0
"""Seconds without a proof that the watch lives, after which the record is read: somebody may have deleted it."""
_MARGIN = 0.5


class Election:
    """A candidate as long as it runs; ``turned`` is called when it becomes active or stops being active."""

    def __init__(self, replica: Replica, name: str, turned: Callable[[], None]) -> None:
        self._replica = replica
        self._name = name.encode()
        self._turned = turned
        self._until = 0.0
        self._was = False
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def active(self) -> bool:
        """Return whether this one is active now."""
        return loop_time() < self._until

    @property
    def leader(self) -> str:
        """Return the active one's name, '' if there is none."""
        record = self._replica.records.get(KEY)
        return record.value.decode(errors="replace") if record is not None else ""

    async def start(self) -> None:
        """Try once, if the store answers, and start."""
        if self._replica.listed:
            await self._stand_once()
        self._task = lasting("leader election", self._stand)

    def changed(self, keys: frozenset[str]) -> None:
        """Check at once, because the record is gone."""
        if KEY in keys and (KEY not in self._replica.records or KEY in self._replica.absences):
            self._wake.set()

    async def stop(self) -> None:
        """Give up the record, so that another need not wait."""
        await ended(self._task)
        if self.active:
            self._until = 0.0
            with contextlib.suppress(LinkspanError):
                await self._replica.write({}, deletes=[KEY], unchanged={KEY: self._replica.known_revision(KEY)})

    async def _stand(self) -> None:
        while True:
            self._wake.clear()
            await self._stand_once()
            await woken(self._wake, EVERY)

    async def _stand_once(self) -> None:
        await self._try()
        if self.active != self._was:
            self._was = self.active
            log.info("this controller is %s", "active" if self._was else "on standby")
            self._turned()

    async def _try(self) -> None:
        begun = loop_time()
        record = self._replica.records.get(KEY)
        if record is not None and record.value != self._name:
            self._until = 0.0
            return
        with contextlib.suppress(LinkspanError):  # the store is away; the replica reports it
            there = record is not None and KEY not in self._replica.absences
            if there and await self._is_kept():
                self._until = begun + LIFE - _MARGIN
                return
            same = {KEY: record.revision if record is not None and there else 0}
            taken = await self._replica.write({KEY: self._name}, unchanged=same, standing=True)
            self._until = begun + LIFE - _MARGIN if taken else 0.0

    async def _is_kept(self) -> bool:
        """Keep the record; tell whether that was done, and it is this one's still."""
        if not await self._replica.keep():
            return False
        if self._replica.contact.silence() < DEAF:
            return True
        found = await self._replica.store.get(KEY)
        return found is not None and found.revision == self._replica.known_revision(KEY)
