"""Host facts: what backends must know of this machine, as the agent observed it last."""

from __future__ import annotations

from collections.abc import Iterable

from linkspan.backends import backend
from linkspan.core.host_view import Facts
from linkspan.core.model import Network
from linkspan.kernel.worker import Worker


class HostFacts:
    """Keeps the last facts. Whoever looks at them again also applies what follows from a change."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.last = Facts()

    async def look(self) -> bool:
        """Observe the facts; return whether they changed."""
        found = await self._worker.run(self._worker.machine.facts)
        before, self.last = self.last, found
        return before != found

    async def stale(self, networks: Iterable[Network]) -> bool:
        """Return whether a program that networks need changed without an event: by a key file's mode, for example."""
        machine, ways = self._worker.machine, {way.backend for network in networks for way in network.ways}
        for kind in {kind for way in ways for kind in backend(way).watches}:
            if await self._worker.run(machine.program, kind) != self.last.program(kind):
                return True
        return False
