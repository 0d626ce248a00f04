"""Interest: of which networks and hosts this host keeps the endpoints in memory.

A network matters while a container here is in it, and a while longer. Which hosts have containers in a network is told
by the leases: a host has one in each network in which it has a container. So nobody has to look at all endpoints to
know which ones matter.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from linkspan.cluster.leases import leased
from linkspan.cluster.remote_endpoints import RemoteEndpoints
from linkspan.core.model import Endpoint
from linkspan.core.supervise import lasting, woken
from linkspan.store.replica import Replica

LINGER = 60.0
"""Seconds for which a network matters after its last container here, or after somebody asked about it: longer than its
server of names lasts, and than a container takes to come again."""
FOR_EVER = float("inf")


class Interest:
    """Tells ``RemoteEndpoints`` what matters, when that changes."""

    def __init__(
        self, replica: Replica, remote: RemoteEndpoints, endpoints: Mapping[tuple[str, str], Endpoint]
    ) -> None:
        self._replica = replica
        self._remote = remote
        self._endpoints = endpoints
        self._until: dict[str, float] = {}
        """By network: until when it matters, by the monotonic clock."""
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to follow, from what is known now."""
        self.look()
        self._remote.start()
        self._task = lasting("following which endpoints matter", self._follow)

    async def stop(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._remote.stop()

    def note(self, _identity: tuple[str, str]) -> None:
        """Follow an endpoint of this host that was added, changed or removed."""
        self._wake.set()

    def changed(self, keys: frozenset[str]) -> None:
        """Follow changed leases of networks that matter."""
        if any(key.startswith("leases/") and key.split("/", 2)[1] in self._until for key in keys):
            self.look()

    def ask(self, network: str) -> None:
        """Let a network matter for a while, though no container here is in it."""
        fresh = network not in self._until
        self._until[network] = max(self._until.get(network, 0.0), time.monotonic() + LINGER)
        if fresh:
            self._wake.set()

    async def _follow(self) -> None:
        while True:
            ends = [until for until in self._until.values() if until != FOR_EVER]
            await woken(self._wake, max(min(ends) - time.monotonic(), 0.0) if ends else None)
            self._wake.clear()
            self.look()

    def look(self) -> None:
        """Work out what matters, and tell it."""
        now = time.monotonic()
        here = {endpoint.network for endpoint in self._endpoints.values()}
        past = {name: min(until, now + LINGER) for name, until in self._until.items() if name not in here}
        self._until = dict.fromkeys(here, FOR_EVER) | {name: until for name, until in past.items() if until > now}
        self._remote.want({name: leased(self._replica, name) for name in self._until})
