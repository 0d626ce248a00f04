"""CNI's service: calls of the plugin, DELs that it queued while no agent ran, and what later plugins change."""

from __future__ import annotations

from pathlib import Path

from linkspan.endpoints.registry import Registry
from linkspan.endpoints.tuning import Tuning
from linkspan.runtimes.base import HostAgent, Service
from linkspan.runtimes.cni.cni_deletions import Removals
from linkspan.runtimes.cni.cni_verbs import Cni


class CniService(Service):
    """Serves every runtime that speaks CNI."""

    def __init__(self, agent: HostAgent, registry: Registry, queue: Path) -> None:
        """Take ``queue``, the plugin's folder beside the agent's socket."""
        self._tuning = Tuning(registry)
        self._removals = Removals(queue, registry, registry.journal.boot_id)
        self._cni = Cni(agent, self._tuning)
        registry.subscribe(self._tuning.note)

    async def answer(self, path: str, body: bytes, pid: int, uid: int) -> tuple[int, bytes]:  # noqa: ARG002 - only one
        """Answer a call of the plugin."""
        return await self._cni.handle(body, pid, uid)

    async def start(self) -> None:
        """Apply the queued DELs, and watch for more. Raises Invalid without the folder."""
        await self._removals.start()

    async def stop(self) -> None:
        """Stop watching the queue and the namespaces."""
        await self._removals.stop()
        await self._tuning.stop()
