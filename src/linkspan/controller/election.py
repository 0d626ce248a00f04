"""Election of the active one of several controllers: it has a record in the store that expires unless renewed.

To take the record is one transaction, on condition that it does not exist; to keep it, that it is still one's
own. A controller steps down before its record can expire: by its own clock, counted from before it sent the
last renewal that the store accepted. So there are never two, whatever the machines' clocks say. If the store
is away there is none: flows stay as they are then, and nobody repairs them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from linkspan.core.errors import LinkspanError
from linkspan.core.supervise import lasting, woken
from linkspan.diagnose.trace.parts import CONTROLLER
from linkspan.store.replica import Replica

log = logging.getLogger("linkspan.controller")

KEY = f"alive/{CONTROLLER}"
TTL = 3.0
"""Seconds after which the record expires: a takeover takes this long, and at most EVERY more."""
EVERY = 0.8
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
        return time.monotonic() < self._until

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
        if KEY in keys and KEY not in self._replica.records:
            self._wake.set()

    async def stop(self) -> None:
        """Give up the record, so that another need not wait."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self.active:
            self._until = 0.0
            with contextlib.suppress(LinkspanError):
                await self._replica.write({}, deletes=[KEY], unchanged=self._mine())

    def _mine(self) -> dict[str, int]:
        record = self._replica.records.get(KEY)
        return {KEY: record.revision} if record is not None and record.value == self._name else {}

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
        begun = time.monotonic()
        there = KEY in self._replica.records
        mine = self._mine()
        if there and not mine:
            self._until = 0.0
            return
        with contextlib.suppress(LinkspanError):  # the store is away; the replica reports it
            taken = await self._replica.write(
                {KEY: self._name}, absent=() if mine else [KEY], unchanged=mine or None, ttl=TTL
            )
            self._until = begun + TTL - _MARGIN if taken else 0.0
