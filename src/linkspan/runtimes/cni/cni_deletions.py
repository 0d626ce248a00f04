"""DELs that the CNI plugin queued while no agent ran: drained before ``ready``, and whenever one arrives."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from linkspan.core.errors import Invalid, KernelError, LinkspanError
from linkspan.core.remedies import reason, remedy
from linkspan.endpoints import detach, rename
from linkspan.endpoints.registry import Registry
from linkspan.kernel.io.inotify import FolderWatch
from linkspan.runtimes.cni import cni_queue

log = logging.getLogger("linkspan.runtimes.cni_deletions")

RETRY = 5.0
"""Seconds until a failed removal is retried."""


class Removals:
    """The queue folder beside the agent's socket."""

    def __init__(self, folder: Path, registry: Registry, boot_id: str) -> None:
        self._folder = folder
        self._registry = registry
        self._boot_id = boot_id
        self._draining = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._watch: FolderWatch | None = None
        """None if the machine has no instance of inotify left."""

    async def start(self) -> None:
        """Start to watch, and then drain, so that none is missed. Raises Invalid without a folder."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            hint = remedy(error, self._folder, "give --socket another path")
            raise Invalid(f"folder {self._folder}: {reason(error)}", hint) from error
        try:
            self._watch = FolderWatch(self._folder, self._come)
        except KernelError as error:
            log.warning("%s: polling every %.0f s instead", error.message, RETRY)
        await self._drain()

    async def stop(self) -> None:
        """Stop watching."""
        if self._watch is not None:
            self._watch.close()
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._retry is not None:
            self._retry.cancel()

    def _come(self) -> None:
        task = asyncio.create_task(self._drain())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _drain(self) -> None:
        async with self._draining:
            try:
                waiting = cni_queue.entries(self._folder)
            except LinkspanError as error:
                log.warning("%s", error.message)
                waiting = []
            again = self._watch is None
            for entry in waiting:
                try:
                    await self._apply(entry)
                except LinkspanError as error:
                    again = True
                    log.warning("queued removal of %s: %s", entry.container_id, error.message)
            if self._retry is not None:  # this drain has tried all: one more timer for each failure would pile up
                self._retry.cancel()
            if again:
                self._retry = asyncio.get_running_loop().call_later(RETRY, self._come)

    async def _apply(self, entry: cni_queue.Entry) -> None:
        """Detach, unless the runtime attached the same identity again after it had queued this."""
        identity = (entry.container_id, entry.ifname)
        await rename.recognise(self._registry, *identity)
        attached = self._registry.attached_ns.get(identity)
        if attached is not None and entry.applies(self._boot_id, attached, self._boot_id):
            await detach.detach(self._registry, entry.container_id, entry.ifname, entry.network)
        entry.done()
