"""Network states: what this host has in the kernel for its networks and their peers, applied in a fixed order.

A network's device is put before its peers' entries on it, and removed after them. What serves all peers, such as a BGP
speaker, follows once they are known.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping

from linkspan.cluster.networks import Networks
from linkspan.cluster.peers import Peers
from linkspan.cluster.shared_states import SharedStates
from linkspan.core.errors import LinkspanError
from linkspan.core.model import Network
from linkspan.core.states.host import Key
from linkspan.kernel.worker import Worker


class NetworkStates:
    """Applies the states of networks, of their peers, and of all peers together."""

    def __init__(
        self,
        worker: Worker,
        networks: Networks,
        peers: Peers,
        shared: SharedStates,
        put_plans: Callable[[], Awaitable[Mapping[Key, LinkspanError]]],
        drop_plans: Callable[[], Awaitable[None]],
    ) -> None:
        """``put_plans`` applies the states that belong to no peer, and ``drop_plans`` removes those that were."""
        self._worker = worker
        self._networks = networks
        self.peers = peers
        self._shared = shared
        self._put_plans = put_plans
        self._drop_plans = drop_plans

    async def apply(self, changed: set[str], *, everything: bool) -> dict[Key, LinkspanError]:
        """Apply what depends on the changed keys; return the errors by the key of the state."""
        concerned = set(self.peers.concerned(changed, everything))
        names = {network.name for network in self._networks.all()}
        await self.peers.follow(pair for pair in concerned if pair[0] not in names)
        failed = dict(await self._put_plans())
        await self.peers.follow(concerned)
        failed |= await self._shared.put()
        await self._drop_plans()  # last, because peers' states may be on a device that is removed
        return failed

    def complete(self, networks: Iterable[Network]) -> set[str]:
        """Return the names of those networks whose states, and those of their backends, are all in the kernel."""
        unwell = self._worker.machine.reconciler.unwell
        return {
            network.name
            for network in networks
            if not unwell(("network", network.name)) and not any(unwell(("host", way.backend)) for way in network.ways)
        }

    async def look(self) -> None:
        """Apply what may differ now although no record changed: paths to peers, and what follows from them."""
        await self.peers.look()
        await self._shared.put()
