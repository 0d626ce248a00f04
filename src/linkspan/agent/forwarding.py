"""Forwarding: notices that another program enables it, and then drops linkspan's restriction on it.

If linkspan itself enabled forwarding, rules keep dropping what the host did not forward before
(``core/ruleset.py``). An administrator who writes 1 to a setting that is 1 already wants forwarding. Only the
write itself shows that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from linkspan.core.errors import LinkspanError
from linkspan.core.event_log import EventLog
from linkspan.core.supervise import ended, lasting
from linkspan.kernel.worker import Worker

log = logging.getLogger("linkspan.agent.forwarding")


class Forwarding:
    """Watches the settings, and makes the rules follow."""

    def __init__(
        self, worker: Worker, event_log: EventLog, replan: Callable[[], Awaitable[None]]
    ) -> None:
        self._worker = worker
        self._event_log = event_log
        self._replan = replan
        self._written = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start watching, if the kernel reports writes."""
        watch = self._worker.machine.sysctls.watch
        if watch.problem:
            log.warning("cannot watch for writes to the forwarding settings: %s", watch.problem)
            return
        watch.listen(self._written.set)
        self._task = lasting("watching the forwarding settings", self._follow)

    async def _follow(self) -> None:
        while True:
            await self._written.wait()
            self._written.clear()
            try:
                await self._look()
            except LinkspanError as error:
                log.warning("forwarding: %s", error.message)

    async def _look(self) -> None:
        if await self._worker.run(self._worker.machine.sysctls.noticed):
            what = "another program enabled forwarding: linkspan no longer restricts what the host forwards"
            log.info("%s", what)
            self._event_log.add("network", what)
            await self._replan()

    async def stop(self) -> None:
        """Stop watching."""
        self._worker.machine.sysctls.watch.ignore()
        await ended(self._task)
