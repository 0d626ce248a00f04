"""Reaper: detaches endpoints whose namespace is gone, if their runtime does not.

The kernel removes a container's end of the veth pair with its namespace, and so the pair: then the link on the host is
missing, and cannot be restored. So only endpoints whose link fails are suspects, and the reaper checks only their
namespaces.
"""

from __future__ import annotations

import asyncio
import time

from linkspan.core.states.host import HOST, Key
from linkspan.endpoints import multihoming
from linkspan.endpoints.detach import detach
from linkspan.endpoints.registry import Identity, Registry, source


class Reaper:
    """The endpoints without a namespace, each with the time of its first observation."""

    def __init__(self, registry: Registry, after: float) -> None:
        """``after`` is how many seconds a runtime has for its own detach."""
        self._registry = registry
        self._after = after
        self._dead_since: dict[Identity, float] = {}
        self._looking = asyncio.Lock()

    def dead(self) -> dict[Identity, float]:
        """Return the endpoints whose namespace is gone, with the seconds until the agent detaches them."""
        now = time.monotonic()
        return {i: max(0.0, since + self._after - now) for i, since in self._dead_since.items()}

    def orphaned(self, key: Key) -> bool:
        """Return whether only containers that are gone want the object."""
        endpoints = self._registry.endpoints
        dead = [endpoints[identity] for identity in self._dead_since if identity in endpoints]
        gone = {source(endpoint) for endpoint in dead} | {multihoming.source(endpoint) for endpoint in dead}
        owners = set(self._registry.worker.machine.reconciler.desired.owners(key)) if gone else set()
        return bool(owners) and owners <= gone

    async def look(self) -> None:
        """Detach the endpoints whose namespace has been gone for long enough; do nothing while another call runs.

        Two calls at once would report the same endpoints twice.
        """
        if self._looking.locked():
            return
        async with self._looking:
            await self._look()

    async def _look(self) -> None:
        worker, endpoints = self._registry.worker, self._registry.endpoints
        missing = await worker.run(self._missing_links) if worker.machine.reconciler.failing else set()
        suspects = [endpoint for endpoint in endpoints.values() if endpoint.host_ifname in missing]
        dead = [one for one in suspects if not await worker.run(worker.machine.alive, one)]
        now = time.monotonic()
        self._dead_since = {one.identity: self._dead_since.get(one.identity, now) for one in dead}
        for one in dead:
            if now - self._dead_since[one.identity] < self._after:
                continue
            if endpoints.get(one.identity) is not one:  # it was changed meanwhile, or attached again
                continue
            if await detach(self._registry, *one.identity):
                self._registry.event_log.add(
                    "reap", f"{one.id} is gone, its address is free again", endpoint=one.id
                )

    def _missing_links(self) -> set[str]:
        """Return the names of the links on the host that cannot be restored (worker thread)."""
        reconciler = self._registry.worker.machine.reconciler
        states = [state for key in reconciler.failing if (state := reconciler.desired.state(key)) is not None]
        return {name for state in states for netns, name in reconciler.kinds.makes(state) if netns == HOST}
