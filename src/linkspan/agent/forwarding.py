"""Who turns forwarding on besides linkspan: from then on the host is closed for nothing on linkspan's account.

Where linkspan itself had the host forward, rules keep what did not pass before from passing (``core/ruleset.py``). An
administrator who writes 1 to a setting that is 1 already means it, and nothing but the write can tell.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from linkspan.core.errors import LinkspanError
from linkspan.core.event_log import Happenings
from linkspan.core.supervise import lasting
from linkspan.kernel.worker import Worker

log = logging.getLogger("linkspan.agent.forwarding")


class Forwarding:
    """Watches the settings, and has the rules follow."""

    def __init__(
        self, worker: Worker, happenings: Happenings, replan: Callable[[], Awaitable[None]]
    ) -> None:
        self._worker = worker
        self._happenings = happenings
        self._replan = replan
        self._written = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin, where the kernel tells of writes."""
        watch = self._worker.machine.sysctls.watch
        if watch.problem:
            log.warning("writes to settings of forwarding cannot be noticed: %s", watch.problem)
            return
        watch.listen(self._written.set)
        self._task = lasting("noticing who turns forwarding on", self._follow)

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
            what = "another program turned forwarding on: linkspan keeps nothing from being forwarded any more"
            log.info("%s", what)
            self._happenings.add("network", what)
            await self._replan()

    async def stop(self) -> None:
        """End it."""
        self._worker.machine.sysctls.watch.ignore()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
