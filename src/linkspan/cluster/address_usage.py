"""Blocks of this host: which of their addresses are in use or in cool-down, in memory.

Of a network across hosts they are the blocks of this host's lease, of another one its pools.
"""

from __future__ import annotations

from collections.abc import Iterable

from linkspan.cluster.blocks import candidates, is_block, is_strange, own_address
from linkspan.cluster.doubled_addresses import Doubled
from linkspan.cluster.hosts import Hosts
from linkspan.cluster.leases import Leases
from linkspan.cluster.networks import Networks, crosses
from linkspan.cluster.reservations import Reservations
from linkspan.core.addresses import Prefix, prefix
from linkspan.core.clock import now
from linkspan.core.errors import Conflict, LinkspanError, Unavailable
from linkspan.core.ipam import Block
from linkspan.core.model import Endpoint, Network


class AddressUsage:
    """The blocks from which this host gives out addresses, of all networks."""

    def __init__(
        self,
        networks: Networks,
        reservations: Reservations,
        hosts: Hosts,
        leases: Leases,
        doubled: Doubled,
        cooldown: float,
    ) -> None:
        """``cooldown`` is in seconds."""
        self._networks = networks
        self._reservations = reservations
        self._hosts = hosts
        self._leases = leases
        self._doubled = doubled
        self._cooldown = cooldown
        self._blocks: dict[tuple[str, Prefix], Block] = {}
        self._frozen: dict[tuple[str, Prefix], str] = {}
        """Blocks that this host has lost, with the id of the owner."""
        self._forgotten: set[tuple[str, Prefix]] = set()
        """Blocks of pools that the store has lost: containers keep their addresses, and no new one is given out."""
        self._elsewhere: dict[tuple[str, Prefix], dict[Prefix, str]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Adopt changed networks, leases and reservations; addresses in use stay in use."""
        wanted: dict[tuple[str, Prefix], Network] = {}
        for network in self._networks.all():
            for block in self._own(network):
                wanted[network.name, block] = network
        for key in self._blocks.keys() - wanted.keys():
            del self._blocks[key]
        self._frozen = {
            (name, block): owner
            for name in {name for name, _ in wanted}
            for block, owner in self._leases.frozen(name).items()
        }
        self._forgotten = {
            (network.name, block)
            for (_, block), network in wanted.items()
            if crosses(network) and not is_block(network, block)
        }
        reservations = self._reservations.all()
        for (name, block), network in wanted.items():
            others = self._elsewhere[name, block] = self._doubled.elsewhere(name, block)
            reserved = {prefix(r.cidr) for r in reservations if r.network == name}
            reserved |= self._own_addresses(network, block) | others.keys()
            found = self._blocks.get((name, block))
            if found is None:
                routed = network.routed
                self._blocks[name, block] = Block(
                    block, reserved, self._cooldown, routed=routed, network=name
                )
                continue
            here = {r for r in reserved if r.overlaps(block)}
            for reservation in here - found.reserved:
                found.reserve(reservation)
            for reservation in found.reserved - here:
                found.unreserve(reservation)

    def _own(self, network: Network) -> Iterable[Prefix]:
        if not crosses(network):
            return network.prefixes
        lease = self._leases.mine(network.name)
        blocks = lease.blocks if lease else ()
        return [block for block in blocks if not is_strange(network, block)]

    def _own_addresses(self, network: Network, block: Prefix) -> set[Prefix]:
        """Return the host's own addresses in a block: no container may have them."""
        lease = self._leases.mine(network.name) if crosses(network) else None
        return {a for a in map(prefix, lease.addresses if lease else ()) if block.holds(a.single())}

    def blocks(self, name: str, family: int = 0) -> list[Block]:
        """Return the blocks from which this host gives out a network's addresses; ``family`` is 4, 6 or 0 (both)."""
        return [
            b
            for (n, p), b in self._blocks.items()
            if n == name and family in (0, p.family) and (n, p) not in self._frozen and (n, p) not in self._forgotten
        ]

    def holding(self, name: str, address: Prefix) -> Block | None:
        """Return the block of this host that holds an address of a network, None if none does."""
        return next(
            (b for (n, p), b in self._blocks.items() if n == name and p.holds(address.single())), None
        )

    async def complete(self, name: str) -> None:
        """Learn which addresses of a network's blocks containers of other hosts have. Raises Unavailable."""
        if not await self._doubled.know(name):
            raise Unavailable(
                f"network {name}: a block of this host was another host's, and which of its addresses containers there "
                "have is not known yet",
                "`linkspan status` shows the store; try again",
            )
        for (network, block), others in self._elsewhere.items():
            if network == name and others.keys() != self._doubled.elsewhere(name, block).keys():
                self.refresh()
                return

    def refuse_disputed(self, name: str, block: Block, address: Prefix) -> None:
        """Raise Conflict if this host may not give an address of its block: another host has the block, or it."""
        if (owner := self._frozen.get((name, block.pool))) is not None:
            raise Conflict(
                f"address {address.address} is in block {block.pool}, which is host {self._hosts.name(owner)}'s "
                "by an earlier claim, and this host gives nothing from it",
                "`linkspan status` shows how to end the conflict; choose an address of another block",
            )
        if whose := self._elsewhere.get((name, block.pool), {}).get(address.single()):
            raise Conflict(
                f"address {address.address} is in use by {whose}", "choose another, or detach that one first"
            )

    def restore(self, endpoint: Endpoint) -> None:
        """Put back an endpoint's addresses. Raises Conflict, and reserves nothing, if another endpoint has one."""
        held: list[Prefix] = []
        try:
            for address in endpoint.prefixes:
                self.hold(endpoint.network, address, endpoint.called)
                held.append(address)
        except LinkspanError:
            self.release(endpoint.network, held)
            raise

    def hold(self, name: str, address: Prefix, holder: str) -> None:
        """Reserve an address because it is in use. Raises Conflict if another endpoint has it."""
        block = self.holding(name, address)
        if block is not None:
            block.restore(address.single(), holder)

    def release(self, name: str, addresses: Iterable[Prefix]) -> None:
        """Release those of the addresses that are in blocks of this host; their cool-down begins now."""
        for address in addresses:
            if (block := self.holding(name, address)) is not None:
                block.release(address.single(), now())

    def cool(self, name: str, address: Prefix, since: float) -> None:
        """Restore an address in cool-down, which was released at ``since`` (``core.clock.now``)."""
        block = self.holding(name, address)
        if block is not None:
            block.cool(address.single(), since)

    def free(self, name: str) -> int:
        """Return the number of free addresses in this host's blocks of a network, of the family that has the fewest.

        If this host takes no part in the network yet, they are those of the block that it would claim.
        """
        if name not in {network for network, _ in self._blocks} and (network := self._unclaimed(name)) is not None:
            return min((self._claimable(network, family) for family in {p.family for p in network.prefixes}), default=0)
        left: dict[int, int] = {}
        for block in self.blocks(name):
            left[block.pool.family] = left.get(block.pool.family, 0) + block.free(now())
        return min(left.values(), default=0)

    def _unclaimed(self, name: str) -> Network | None:
        """Return a network if this host has no lease in it, and could claim one."""
        found = next((network for network in self._networks.all() if network.name == name), None)
        if found is None or not crosses(found) or self._leases.mine(name) is not None:
            return None
        return found if self._leases.settled and not self._hosts.here.settings.get("drained") else None

    def _claimable(self, network: Network, family: int) -> int:
        """Return the number of addresses in the block of a family that this host would claim, 0 if none is left."""
        pools, length = [p for p in network.prefixes if p.family == family], network.subnet_len[str(family)]
        # While there are fewer records than blocks, a block is free: the records need not be read.
        every = sum(1 << max(length - pool.length, 0) for pool in pools)
        taken = set(self._leases.blocks(network.name)) if self._leases.claimed(network.name) >= every else set()
        for pool in pools:
            for block in candidates(pool, length, self._hosts.here.id, taken):
                found = Block(block, {own_address(pool, block)}, self._cooldown, routed=network.routed)
                return found.free(now())
        return 0
