"""Who turns forwarding on besides linkspan: from then on the host is closed for nothing on linkspan's account.

Where linkspan itself had the host forward, rules keep what did not pass before from passing (``firewall``). An
administrator who writes 1 to a setting that is 1 already means it, and nothing but the write can tell.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from linkspan.errors import LinkspanError
from linkspan.happenings import Happenings
from linkspan.machine import Worker

log = logging.getLogger("linkspan.forwarding")


class Forwarding:
    """Watches the settings, and has the rules follow."""

    def __init__(
        self, worker: Worker, happenings: Happenings, replan: Callable[[], Awaitable[None]]
    ) -> None:
        self._worker = worker
        self._happenings = happenings
        self._replan = replan
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin, where the kernel tells of writes."""
        if problem := self._worker.machine.sysctls.watch.problem:
            log.warning("writes to settings of forwarding cannot be noticed: %s", problem)
        else:
            self._listen()

    def _listen(self) -> None:
        asyncio.get_running_loop().add_reader(self._worker.machine.sysctls.watch.fileno(), self._written)

    def _written(self) -> None:
        asyncio.get_running_loop().remove_reader(self._worker.machine.sysctls.watch.fileno())
        task = asyncio.create_task(self._look())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _look(self) -> None:
        try:
            if await self._worker.run(self._worker.machine.sysctls.noticed):
                what = "another program turned forwarding on: linkspan keeps nothing from being forwarded any more"
                log.info("%s", what)
                self._happenings.add("network", what)
                await self._replan()
        except LinkspanError as error:
            log.warning("forwarding: %s", error.message)
        finally:
            self._listen()

    async def stop(self) -> None:
        """End it."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if not self._worker.machine.sysctls.watch.problem:
            asyncio.get_running_loop().remove_reader(self._worker.machine.sysctls.watch.fileno())
