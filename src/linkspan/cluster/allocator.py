"""Address allocator: from this host's own blocks in memory, or exact addresses through the store."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable

from linkspan.cluster.address_usage import AddressUsage
from linkspan.cluster.exact_claims import IDENTITY, ExactClaims
from linkspan.cluster.leases import Leases
from linkspan.cluster.networks import Networks, crosses
from linkspan.cluster.readiness import Readiness
from linkspan.core.addresses import Prefix, prefix
from linkspan.core.clock import now
from linkspan.core.errors import Conflict, Exhausted, Invalid
from linkspan.core.ipam import Allocation
from linkspan.core.model import AttachRequest, Network


class Allocator:
    """Gives out addresses, and takes them back."""

    def __init__(
        self,
        networks: Networks,
        leases: Leases,
        blocks: AddressUsage,
        exact: ExactClaims,
        readiness: Readiness,
        holder: Callable[[str, Prefix], str],
        take_part: Callable[[Network], Awaitable[None]],
        give_up: Callable[[str, Prefix], Awaitable[None]],
    ) -> None:
        """``holder`` names the endpoint that has an address of a network ('': none is known).

        ``take_part`` claims a lease for this host in a network, and applies what follows from it. ``give_up`` takes an
        address of a network out of the states of the peer that had it: the container's states would contradict these.
        """
        self._networks = networks
        self._leases = leases
        self._blocks = blocks
        self._exact = exact
        self.readiness = readiness
        self._holder = holder
        self._take_part = take_part
        self._give_up = give_up

    async def allocate(
        self, network: Network, request: AttachRequest, families: Collection[int] = (4, 6)
    ) -> list[Allocation]:
        """Allocate the requested addresses, and the next free one of each other family, if it is in ``families``.

        If one allocation fails, all are released. Returns the allocations, IPv4 first. Raises Conflict, Invalid,
        Exhausted or Unavailable.
        """
        self.readiness.require(network)
        if crosses(network):
            await self._blocks.complete(network.name)
        given: list[Allocation] = []
        try:
            for text in request.ips:
                given.append(await self._exactly(network, prefix(text).single(), request))
            asked = {allocation.address.family for allocation in given}
            for family in sorted({p.family for p in network.prefixes}.intersection(families) - asked):
                given.append(await self._next(network, family, request))
            for allocation in given:
                if allocation.reused and crosses(network):
                    await self._give_up(network.name, allocation.address)
        except BaseException:
            await self.release(network.name, [allocation.address for allocation in given])
            raise
        return sorted(given, key=lambda allocation: allocation.address.family)

    async def take_part(self, network: Network) -> None:
        """Claim a lease in a network before its first container here comes.

        The caller must not have a lock of the registry, because what follows from the lease may need it. Raises what
        ``allocate`` raises.
        """
        if crosses(network) and self._leases.mine(network.name) is None:
            self.readiness.require(network)
            await self._take_part(network)

    async def _exactly(self, network: Network, address: Prefix, request: AttachRequest) -> Allocation:
        try:
            return await self._claimed(network, address, request)
        except Conflict as error:  # a claim has the runtime's first id of the container, which may be no name
            if whose := self._holder(network.name, address):
                raise Conflict(
                    f"address {address.address} is in use by {whose}",
                    "choose another, or detach that one first",
                ) from error
            raise

    async def _claimed(self, network: Network, address: Prefix, request: AttachRequest) -> Allocation:
        holder = request.name or request.id
        if not any(pool.holds(address) for pool in network.prefixes):
            raise Invalid(
                f"address {address.address} is in no pool of network {network.name}",
                f"its pools: {', '.join(network.pools)}",
            )
        block = self._blocks.holding(network.name, address)
        if block is not None:
            self._blocks.refuse_disputed(network.name, block, address)
            return block.take(address, holder)
        return await self._exact.take(network, address, request)

    async def _next(self, network: Network, family: int, request: AttachRequest) -> Allocation:
        sticky = self._exact.sticky(network, family, request.labels.get(IDENTITY, ""))
        if sticky is not None:
            return await self._exactly(network, sticky, request)
        if crosses(network) and (network.ipam == "exact" or IDENTITY in request.labels):
            return await self._exact.next(network, family, request)
        full: Exhausted | None = None
        for block in self._blocks.blocks(network.name, family):
            try:
                return block.allocate(now(), request.name or request.id)
            except Exhausted as error:
                full = error
        if not crosses(network):
            assert full is not None
            raise full
        await self._leases.grow(network, family, {block.pool for block in self._blocks.blocks(network.name, family)})
        self._blocks.refresh()
        return self._blocks.blocks(network.name, family)[-1].allocate(now(), request.name or request.id)

    async def release(self, name: str, addresses: Iterable[Prefix]) -> None:
        """Release addresses; their cool-down begins now.

        This never fails, because it is part of undoing something, or of an end. If the store refuses the release of an
        exact one, ``ExactAddresses`` releases it later.
        """
        for address in addresses:
            if self._blocks.holding(name, address) is not None:
                self._blocks.release(name, [address])
            elif name in {network.name for network in self._networks.all()}:
                await self._exact.give_back(name, address)
