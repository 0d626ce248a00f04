"""Changes of networks that an operator asks this host for: each is planned, written to the store, and applied here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

import msgspec

from linkspan.backends import migration
from linkspan.cluster import address_probe, controller_status, network_plans
from linkspan.cluster.endpoint_records import EndpointRecords
from linkspan.cluster.hosts import Hosts
from linkspan.cluster.membership import Membership, raise_first
from linkspan.cluster.network_plans import InUse, NetworkRequest
from linkspan.core.addresses import Prefix
from linkspan.core.errors import Conflict, Invalid, LinkspanError, Unavailable, counted
from linkspan.core.host_view import HostView
from linkspan.core.model import Endpoint, Network, NetworkPolicy
from linkspan.endpoints import detach
from linkspan.endpoints.registry import Registry
from linkspan.runtimes import check_exposure
from linkspan.store.compare_and_swap import revised
from linkspan.store.replica import Replica


class NetworkChanges:
    """Creates, changes and deletes networks.

    One change runs at a time: each is planned against the networks that exist.
    """

    def __init__(
        self,
        registry: Registry,
        replica: Replica,
        hosts: Hosts,
        endpoint_records: EndpointRecords,
        membership: Membership,
        view: Callable[[], HostView],
        look: Callable[[], Awaitable[object]],
        end_names: Callable[[str], Awaitable[None]],
    ) -> None:
        """``view`` returns what backends see, ``look`` reads the machine's facts again.

        ``end_names`` ends the servers of names of a deleted network.
        """
        self._registry = registry
        self._worker = registry.worker
        self._networks = registry.networks
        self._event_log = registry.event_log
        self._replica = replica
        self._hosts = hosts
        self._endpoint_records = endpoint_records
        self._membership = membership
        self._view = view
        self._look = look
        self._end_names = end_names
        self._changing = asyncio.Lock()

    async def create(self, request: NetworkRequest, require_closable: Callable[[Network], None]) -> Network:
        """Create a network and everything that the host needs for it. If a part is refused, undo the rest.

        ``require_closable`` raises Invalid or Conflict if no host could enforce default-deny of a network.
        """
        machine = self._worker.machine
        async with self._changing:
            await self._look()  # another program may have taken a port
            routes, mtu = await self._worker.run(machine.routes), await self._worker.run(machine.mtu)
            network = network_plans.planned(request, self._in_use(routes), self._hosts.here.underlay, mtu)
            check_exposure(network)
            if network.policy == "default-deny":
                require_closable(network)
            migration.require(self._view(), network)
            controller_status.require(self._replica, network, "create network")
            with self._membership.watched() as refused:
                try:
                    await self._networks.create(network)
                except Unavailable as error:
                    raise error.within(f"create network {network.name}") from error
                try:
                    await self._membership.converge({"networks/"})
                    raise_first(refused)
                except LinkspanError as error:
                    await self._delete(network.name)
                    raise error.within(f"create network {network.name}") from error
        self._event_log.add("network", f"network {network.name} was created", network=network.name)
        return network

    def _in_use(self, routes: Mapping[Prefix, str]) -> InUse:
        return InUse(self._networks.every(), self._hosts.all().values(), routes)

    async def update(
        self,
        name: str,
        add_pools: Iterable[str] = (),
        mtu: int = 0,
        options: Mapping[str, str] | None = None,
        policy: NetworkPolicy | None = None,
        egress: Sequence[str] | None = None,
    ) -> Network:
        """Add pools, change the MTU, also of running containers, the default for what no policy is about, or egress.

        A container that cannot change stops no other.
        """
        if egress and not self._hosts.shared:
            raise Invalid(
                f"network {name}: an egress address needs a store that several hosts share",
                "found a cluster: linkspan cluster init",
            )
        async with self._changing:
            routes = await self._worker.run(self._worker.machine.routes)

            def enlarged() -> Network:
                self._networks.refresh()
                network, in_use = self._networks.get(name), self._in_use(routes)
                changed = network_plans.enlarged(network, add_pools, mtu, options or {}, in_use)
                if egress is not None:
                    changed = network_plans.left_by(changed, egress, in_use)
                return msgspec.structs.replace(changed, policy=policy or network.policy)

            if egress:
                await self._check_free(enlarged())
            with self._membership.watched() as refused:
                network = await revised(self._replica, f"networks/{name}", enlarged)
                await self._membership.converge({"networks/"})
        self._event_log.add("network", f"network {name} was changed", network=name)
        raise_first(refused)
        return network

    async def _check_free(self, wanted: Network) -> None:
        """Refuse a network's egress addresses that another machine on a link of this host has. Raises Conflict.

        Those that a network has already are on their holders.
        """
        ours = {one.prefix for network in self._networks.every() for one in network.egress}
        new = [one.prefix for one in wanted.egress if one.prefix not in ours]
        for address, words in (await address_probe.rivals(self._worker, new)).items():
            raise Conflict(
                f"network {wanted.name}: egress address {address.address} is in use by {words}",
                "choose a free address, or take it off that machine",
            )

    async def delete(self, name: str, force: bool = False) -> list[Endpoint]:
        """Delete a network; return the endpoints that this cuts off, of all hosts, as far as they are known.

        Raises Conflict with their names if endpoints exist, unless ``force``.
        """
        async with self._changing:
            if all(network.name != name for network in self._networks.every()):
                self._networks.get(name)  # raises
            users = [e for e in self._registry.endpoints.values() if e.network == name]
            users += [e async for some in self._endpoint_records.elsewhere(name) for e in some]
            if users and not force:
                names = ", ".join(sorted(e.called for e in users)[:5])
                raise Conflict(
                    f"network {name} has {counted(len(users), 'endpoint')} "
                    f"({names}{', ...' if len(users) > 5 else ''})",
                    "detach them (or stop their containers) first, or use --force, which cuts them off",
                )
            await self._delete(name)
        who = ", ".join(f"{e.called} on host {e.host}" for e in users)
        cut = f", which cut off {who}" if users else ""
        self._event_log.add("network", f"network {name} was deleted{cut}", network=name)
        return users

    async def _delete(self, name: str) -> None:
        await self._networks.delete(name)  # first: an attach that is under way then fails
        for endpoint in [e for e in self._registry.endpoints.values() if e.network == name]:
            await detach.detach(self._registry, *endpoint.identity)
        await self._membership.converge({"networks/"})
        await self._end_names(name)
