"""Address allocator: from this host's own blocks in memory, or exact addresses through the store."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from typing import Protocol

from linkspan.backends import backend
from linkspan.cluster.blocks import block_of, candidates, is_block, is_strange, own_address
from linkspan.cluster.hosts import Hosts
from linkspan.cluster.leases import Leases
from linkspan.cluster.networks import Networks
from linkspan.cluster.reservations import Reservations
from linkspan.core.addresses import Prefix, prefix
from linkspan.core.clock import now
from linkspan.core.errors import Conflict, Exhausted, Invalid, LinkspanError, Unavailable
from linkspan.core.ipam import Allocation, Block, usable
from linkspan.core.model import AttachRequest, Endpoint, Network
from linkspan.store.records import SHARED, AddressRecord, address_key

IDENTITY = "linkspan.io/identity"
"""The label with a container's identity: with it a container keeps its address on another host."""

RACES = 16
"""Addresses that a claim tries, if other hosts are quicker."""


def crosses(network: Network) -> bool:
    """Return whether a network crosses hosts, so that its addresses come from hosts' blocks."""
    return backend(network.backend).crosses_hosts


class Doubled(Protocol):
    """Addresses of this host's own blocks that containers of other hosts have, after a block changed its owner."""

    def elsewhere(self, network: str, block: Prefix) -> dict[Prefix, str]:
        """Return these addresses of a block, with a text for each."""

    async def know(self, network: str) -> bool:
        """Wait until ``elsewhere`` is complete for a network; return whether it is."""


class Allocator:
    """Gives out addresses: from the blocks of all networks on this host, and exact ones."""

    def __init__(
        self,
        networks: Networks,
        reservations: Reservations,
        hosts: Hosts,
        leases: Leases,
        doubled: Doubled,
        holder: Callable[[str, Prefix], str],
        cooldown: float,
        stalled: Callable[[], str],
        owed: Callable[[set[str]], None],
        take_part: Callable[[Network], Awaitable[None]],
    ) -> None:
        """``stalled`` returns why no address may be given out now, '' if one may; ``cooldown`` is in seconds.

        ``holder`` names the endpoint that has an address of a network ('': none is known).
        ``owed`` is called with the keys of exact addresses whose release the store refused. ``take_part`` claims a
        lease for this host in a network, and applies what follows from it.
        """
        self._networks = networks
        self._reservations = reservations
        self._hosts = hosts
        self._leases = leases
        self._doubled = doubled
        self._holder = holder
        self._cooldown = cooldown
        self._stalled = stalled
        self._owed = owed
        self._take_part = take_part
        self._blind: set[str] = set()
        """Links of running containers on this host whose addresses are unknown."""
        self._blocks: dict[tuple[str, Prefix], Block] = {}
        self._frozen: dict[tuple[str, Prefix], str] = {}
        """Blocks that this host has lost, with the id of the owner."""
        self._forgotten: set[tuple[str, Prefix]] = set()
        """Blocks of pools that the store has lost: containers keep their addresses, and no new one is given out."""
        self._elsewhere: dict[tuple[str, Prefix], dict[Prefix, str]] = {}
        self._cursor: dict[tuple[str, int], int] = {}
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

    def doubt(self, link: str) -> None:
        """Record a container's link whose addresses are in use but unknown."""
        self._blind.add(link)

    def trust(self, link: str) -> None:
        """Record that a link's addresses are known, or that it is gone."""
        self._blind.discard(link)

    def blocks(self, name: str, family: int = 0) -> list[Block]:
        """Return the blocks from which this host gives out a network's addresses; ``family`` is 4, 6 or 0 (both)."""
        return [
            b
            for (n, p), b in self._blocks.items()
            if n == name and family in (0, p.family) and (n, p) not in self._frozen and (n, p) not in self._forgotten
        ]

    async def allocate(
        self, network: Network, request: AttachRequest, families: Collection[int] = (4, 6)
    ) -> list[Allocation]:
        """Allocate the requested addresses, and the next free one of each other family, if it is in ``families``.

        If one allocation fails, all are released. Returns the allocations, IPv4 first. Raises Conflict, Invalid,
        Exhausted or Unavailable.
        """
        self._require_giving(network)
        if crosses(network):
            await self._know_doubled(network.name)
        given: list[Allocation] = []
        try:
            for text in request.ips:
                given.append(await self._exactly(network, prefix(text).single(), request))
            asked = {allocation.address.family for allocation in given}
            for family in sorted({p.family for p in network.prefixes}.intersection(families) - asked):
                given.append(await self._next(network, family, request))
        except Exception:
            await self.release(network.name, [allocation.address for allocation in given])
            raise
        return sorted(given, key=lambda allocation: allocation.address.family)

    async def take_part(self, network: Network) -> None:
        """Claim a lease in a network before its first container here comes.

        The caller must not have a lock of the registry, because what follows from the lease may need it. Raises what
        ``allocate`` raises.
        """
        if crosses(network) and self._leases.mine(network.name) is None:
            self._require_giving(network)
            await self._take_part(network)

    def _require_giving(self, network: Network) -> None:
        """Raise Conflict or Unavailable, with the reason, if this host gives out no address now."""
        host = self._hosts.here
        if host.settings.get("drained"):
            raise Conflict(f"host {host.name} is drained", f"linkspan host undrain {host.name}")
        if crosses(network) and (why := self._stalled()):
            raise Unavailable(
                f"host {host.name} gives no address now: {why}", "`linkspan status` shows the store"
            )
        if self._blind and not self._leases.listed:  # once listed, the store's records name these addresses
            why = f"it does not know the addresses of {', '.join(sorted(self._blind))}, whose containers run"
            raise Unavailable(
                f"host {host.name} gives no address now: {why}", "`linkspan status` shows them, and the store"
            )

    async def _know_doubled(self, name: str) -> None:
        """Learn which addresses of this host's blocks other hosts' containers have. Raises Unavailable."""
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

    def _block_holding(self, name: str, address: Prefix) -> Block | None:
        return next(
            (b for (n, p), b in self._blocks.items() if n == name and p.holds(address.single())), None
        )

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
        block = self._block_holding(network.name, address)
        if block is not None:
            self._refuse_disputed(network.name, block, address)
            return block.take(address, holder)
        self._refuse_unusable(network, address)
        if whose := self._doubled.elsewhere(network.name, block_of(network, address)).get(address.single()):
            raise Conflict(
                f"address {address.address} is in use by {whose}", "choose another, or detach that one first"
            )
        identity = request.labels.get(IDENTITY, "")
        await self._leases.take(network, address, request.id, request.ifname, identity)
        return Allocation(address, reused=True)

    def _refuse_disputed(self, name: str, block: Block, address: Prefix) -> None:
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

    def _refuse_unusable(self, network: Network, address: Prefix) -> None:
        pool = next(p for p in network.prefixes if p.holds(address))
        low, high = usable(pool, routed=True)
        if not low <= int.from_bytes(address.packed, "big") <= high:
            raise Invalid(
                f"address {address.address} of pool {pool} is its gateway, network or broadcast address"
            )

    async def _next(self, network: Network, family: int, request: AttachRequest) -> Allocation:
        sticky = self._sticky(network, family, request.labels.get(IDENTITY, ""))
        if sticky is not None:
            return await self._exactly(network, sticky, request)
        if crosses(network) and (network.ipam == "exact" or IDENTITY in request.labels):
            return await self._next_exact(network, family, request)
        full: Exhausted | None = None
        for block in self.blocks(network.name, family):
            try:
                return block.allocate(now(), request.name or request.id)
            except Exhausted as error:
                full = error
        if not crosses(network):
            assert full is not None
            raise full
        await self._leases.grow(network, family, {block.pool for block in self.blocks(network.name, family)})
        self.refresh()
        return self.blocks(network.name, family)[-1].allocate(now(), request.name or request.id)

    def _sticky(self, network: Network, family: int, identity: str) -> Prefix | None:
        """Return the exact address that an identity has or had on any host, None if there is none."""
        if not identity:
            return None
        records = self._leases.exact(network.name)
        return next((a for a, r in records.items() if r.identity == identity and a.family == family), None)

    async def _next_exact(self, network: Network, family: int, request: AttachRequest) -> Allocation:
        """Allocate a free exact address from blocks that no host owns."""
        identity = request.labels.get(IDENTITY, "")
        tried = 0
        for address in self._free_exact(network, family):
            try:
                await self._leases.take(network, address, request.id, request.ifname, identity)
            except Conflict:  # another host was quicker
                tried += 1
                if tried == RACES:
                    raise
                continue
            return Allocation(address, reused=True)
        raise Exhausted(
            f"network {network.name}: no address is left that no host's block has",
            "add a pool (network update)",
        )

    def _free_exact(self, network: Network, family: int) -> Iterator[Prefix]:
        """Yield candidates: first those never in use, from an offset of this host's own, then those past cool-down."""
        records = self._leases.exact(network.name)
        owners = self._leases.blocks(network.name)
        reserved = [prefix(r.cidr) for r in self._reservations.all() if r.network == network.name]
        elsewhere: dict[Prefix, dict[Prefix, str]] = {}
        for pool in [p for p in network.prefixes if p.family == family]:
            low, high = usable(pool, routed=True)
            size = high - low + 1
            seed = int.from_bytes(
                hashlib.blake2b(self._hosts.here.id.encode(), digest_size=8).digest(), "big"
            )
            start = self._cursor.get((network.name, family), seed % size)
            number = 0
            while number < size:
                at = (start + number) % size
                address = Prefix((low + at).to_bytes(len(pool.packed), "big"), len(pool.packed) * 8)
                block = block_of(network, address)
                if owners.get(block, SHARED) != SHARED:
                    number += block.size - (low + at - block.first)  # on to the next block
                    continue
                number += 1
                if block not in elsewhere:
                    elsewhere[block] = self._doubled.elsewhere(network.name, block)
                if address in elsewhere[block]:
                    continue
                if address not in records and not any(r.holds(address) for r in reserved):
                    self._cursor[network.name, family] = (at + 1) % size
                    yield address
        cooled = [
            (r.at, a)
            for a, r in records.items()
            if not r.host and a.family == family and _cool(r, self._cooldown)
        ]
        yield from (address for _, address in sorted(cooled))

    async def release(self, name: str, addresses: Iterable[Prefix]) -> None:
        """Release addresses; their cool-down begins now.

        If the store refuses the release of an exact one, call ``owed`` with its key, release all others, and raise
        Unavailable.
        """
        failed: Unavailable | None = None
        for address in addresses:
            block = self._block_holding(name, address)
            if block is not None:
                block.release(address.single(), now())
            elif name in {network.name for network in self._networks.all()}:
                try:
                    await self._leases.give_back(name, address.single())
                except Unavailable as error:
                    failed = error
                    self._owed({address_key(name, address)})
        if failed is not None:
            raise failed

    def restore(self, endpoint: Endpoint) -> None:
        """Put back an endpoint's addresses. Raises Conflict, and reserves nothing, if another endpoint has one."""
        held: list[Prefix] = []
        try:
            for address in endpoint.prefixes:
                self.hold(endpoint.network, address, endpoint.called)
                held.append(address)
        except LinkspanError:
            self.unhold(endpoint.network, held)
            raise

    def hold(self, name: str, address: Prefix, holder: str) -> None:
        """Reserve an address because it is in use. Raises Conflict if another endpoint has it."""
        block = self._block_holding(name, address)
        if block is not None:
            block.restore(address.single(), holder)

    def unhold(self, name: str, addresses: Iterable[Prefix]) -> None:
        """Undo ``hold``; ``ExactAddresses`` corrects the store's records of exact addresses."""
        for address in addresses:
            if (block := self._block_holding(name, address)) is not None:
                block.release(address.single(), now())

    def cool(self, name: str, address: Prefix, since: float) -> None:
        """Restore an address in cool-down, which was released at ``since`` (``core.clock.now``)."""
        block = self._block_holding(name, address)
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


def _cool(record: AddressRecord, cooldown: float) -> bool:
    """Return whether a released address is past its cool-down (seconds), by the wall clock, which all hosts share.

    A time far in the future comes from a wrong clock and is ignored.
    """
    waited = time.time() - record.at
    return waited >= cooldown or waited < -cooldown
