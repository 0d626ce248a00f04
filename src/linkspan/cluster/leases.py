"""Leases: this host's claims in every network that crosses hosts, and exact addresses.

A host allocates from its own blocks in memory. Exact addresses come from shared blocks, each by one transaction. A
host can neither own a shared block nor share an owned one. Every claim also requires that the network's record has not
changed: so nobody claims in a network that is being deleted.

A claim requires that the record is absent. The ownership stays until an operator drains or removes the host. If the
cluster has ``reclaim_after``, it also ends after the host has been silent for that long (``liveness``). Liveness is a
separate record.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import msgspec

from linkspan.cluster.blocks import block_of, candidates, is_strange, own_address
from linkspan.cluster.exact_records import ExactRecords, InNetwork
from linkspan.cluster.grants import Grant, baseless, granted
from linkspan.cluster.hosts import Hosts
from linkspan.core.addresses import BITS, Prefix, prefix
from linkspan.core.errors import Conflict, Exhausted, Invalid, NotFound, Unavailable
from linkspan.core.ipam import usable
from linkspan.core.model import Host, Lease, Network, Offer
from linkspan.store import records, validation
from linkspan.store.records import (
    ENDPOINTS,
    GONE,
    SHARED,
    AddressRecord,
    BlockRecord,
    address_key,
    block_key,
    lease_key,
)
from linkspan.store.replica import Replica
from linkspan.store.request import MOST_KEYS
from linkspan.store.validation import MOST_BLOCKS

log = logging.getLogger("linkspan.cluster.leases")

ITSELF = "(host)"
"""The container's name in the record of a host's own exact address; no container may have that name."""
TRIES = 64
"""Blocks that a claim tries, one after the other: 200 hosts that start at once need few tries."""


class Leases:
    """This host's claims, and the claims of all other hosts as it knows them."""

    def __init__(
        self,
        replica: Replica,
        hosts: Hosts,
        living: Callable[[str, str], Collection[Prefix]] = lambda _network, _host: (),
        overdue: Callable[[str], bool] = lambda _host: False,
    ) -> None:
        """``living`` returns the addresses of a host's containers in a network (the network's name, the host's id).

        ``overdue`` returns whether a host, by its id, has been silent for so long that others may reclaim its blocks.
        """
        self._replica = replica
        self._hosts = hosts
        self._overdue = overdue
        self._living = living
        self._exact = ExactRecords(replica)
        self.changing = asyncio.Lock()
        """Held from reading this host's own lease to writing it: otherwise a change by another task would be lost."""

    @property
    def _host(self) -> Host:
        return self._hosts.here

    def all(self, network: str = "") -> list[Lease]:
        """Return the leases of one network, or of all."""
        prefix_ = f"leases/{network}/" if network else "leases/"
        return list(self._replica.read(prefix_, Lease).values())

    def of(self, network: str, host: str) -> Lease | None:
        """Return a host's lease in a network, None if it has none."""
        return self._replica.value(lease_key(network, host), Lease)

    def grant(self, network: Network, lease: Lease) -> Grant:
        """Return the part of a lease that counts."""

        def holds(address: Prefix) -> bool:
            record = self._replica.value(address_key(network.name, address), AddressRecord)
            return record is not None and record.host == lease.host and not self._baseless(network, address, record)

        return granted(network, lease, self._owned(network.name), holds, own=lease.host == self._host.id)

    def counted(self, network: Network, hosts: Collection[str]) -> dict[str, list[Prefix]]:
        """Return the exact addresses of a network that count for these hosts, by host."""
        exact = self.exact(network.name)
        found = {}
        for host in hosts:
            of_host = exact.of_host(host).items()
            if counted := [a for a, record in of_host if not self._baseless(network, a, record)]:
                found[host] = counted
        return found

    def doubtful(self, network: Network) -> set[str]:
        """Return the hosts with an exact address in a block that another host owns.

        Whether such an address counts depends on that host's containers, too (``baseless``).
        """
        if not self._replica.change_in("addresses", network.name):
            return set()
        owners = {block: owner for block, owner in self.blocks(network.name).items() if owner not in (SHARED, "")}
        found = set()
        for address, record in self.exact(network.name).all.items() if owners else ():
            with contextlib.suppress(NotFound):
                if record.host and owners.get(block_of(network, address), record.host) != record.host:
                    found.add(record.host)
        return found

    def _baseless(self, network: Network, address: Prefix, record: AddressRecord) -> str:
        def living(host: str) -> Collection[Prefix]:
            lease = self.of(network.name, host)
            own = {prefix(text).single() for text in lease.addresses} if lease else set()
            return own | set(self._living(network.name, host))

        return baseless(network, address, record.host, self._owned(network.name), living)

    def _owned(self, network: str) -> Callable[[Prefix], BlockRecord | None]:
        return lambda block: self._replica.value(block_key(network, block), BlockRecord)

    def refused(self, networks: Iterable[Network]) -> dict[str, str]:
        """Return why leases, blocks and exact addresses do not count, or not completely, by the record's key.

        Records of a host without a record never count: no host serves them or puts them back.
        """
        found = {}
        hosts = {self._host.id, SHARED, "", *self._hosts.ids()}
        for network in networks:
            for block, owner in self.blocks(network.name).items():
                if owner not in hosts:
                    found[block_key(network.name, block)] = _unknown(owner)
            for address, record in self.exact(network.name).all.items():
                why = "" if record.host in hosts else _unknown(record.host)
                if record.host and (why := why or self._baseless(network, address, record)):
                    found[address_key(network.name, address)] = why
            for lease in self.all(network.name):
                why = "" if lease.host in hosts else _unknown(lease.host)
                if why := why or self.grant(network, lease).refused:
                    found[lease_key(network.name, lease.host)] = why
        return found

    def networks(self, among: Collection[str]) -> dict[str, tuple[str, ...]]:
        """Return the networks ``among`` these in which each host has a lease, by the host's id."""
        found: dict[str, list[str]] = {}
        for lease in (lease for name in among for lease in self.all(name)):
            found.setdefault(lease.host, []).append(lease.network)
        return {host: tuple(names) for host, names in found.items()}

    def hosts_in(self, network: str) -> set[str]:
        """Return the ids of the hosts that have a lease in a network, readable or not."""
        return self._replica.suffixes(f"leases/{network}/")

    def of_host(self, host: str) -> tuple[Lease, ...]:
        """Return a host's leases as they are in the store, without ``grant``."""
        keys = [lease_key(network, host) for network in self._replica.groups("leases")]
        return tuple(lease for key in keys if (lease := self._replica.value(key, Lease)) is not None)

    def own(self) -> tuple[Lease, ...]:
        """Return this host's leases as they are in the store, without ``grant``."""
        return self.of_host(self._host.id)

    def serving(self, networks: Iterable[Network]) -> tuple[Lease, ...]:
        """Return the parts of this host's leases in these networks that count."""
        own = {lease.network: lease for lease in self.own()}
        return tuple(self.grant(one, own[one.name]).lease for one in networks if one.name in own)

    def mine(self, network: str) -> Lease | None:
        """Return this host's lease in a network, None if it has none."""
        return self.of(network, self._host.id)

    def blocks(self, network: str) -> dict[Prefix, str]:
        """Return every block of a network that has a record, with its owner ('' if the record cannot be read)."""
        start = f"blocks/{network}/"
        read = self._replica.read(start, BlockRecord)
        found = {}
        for key in self._replica.keys_under(start):
            try:
                found[prefix(key.removeprefix(start))] = read[key].owner if key in read else ""
            except Invalid as error:
                self._replica.skip(key, error.message)
        return found

    def claimed(self, network: str) -> int:
        """Return how many records of blocks a network has."""
        return len(self._replica.keys_under(f"blocks/{network}/"))

    def lost(self, network: str) -> dict[tuple[str, str], str]:
        """Return the blocks that a lease lists and another host owns, by (host of the lease, block), with the owner.

        This happens after a restore from a backup, if two hosts have claimed a block: the lease's host has lost it.
        Blocks without a readable record are left out.
        """
        found = {}
        for lease in self.all(network):
            for text in lease.prefixes:
                record = self._replica.value(block_key(network, text), BlockRecord)
                if record is not None and record.owner != lease.host:
                    found[lease.host, text] = record.owner
        return found

    def frozen(self, network: str) -> dict[Prefix, str]:
        """Return the blocks that this host has lost, with their owners: it gives out no address from them any more."""
        lease = self.mine(network)
        found = {}
        for text in lease.prefixes if lease else ():
            record = self._replica.value(block_key(network, text), BlockRecord)
            if record is not None and record.owner != self._host.id:
                found[prefix(text)] = record.owner
        return found

    async def claim(
        self, network: Network, offers: dict[str, Offer], unchanged: Mapping[str, int] | None = None
    ) -> Lease:
        """Make sure that this host has a block of each family, and that its offers are published; return the lease.

        Raises Exhausted if no block is left, and Unavailable if the store does not answer or has lost records. Raises
        Conflict, without publishing the offers, if the record of the network or of ``unchanged`` has changed.
        """
        async with self.changing:
            await self._put_back(network.name)
            # Its first block and its offers are one record: peers could do nothing with the one alone.
            lease = self.mine(network.name) or Lease(network=network.name, host=self._host.id, endpoints=offers)
            if network.ipam == "block":
                counting = [block for block in lease.blocks if not is_strange(network, block)]
                have = {block.family for block in counting if block not in self.frozen(network.name)}
                for family in sorted({pool.family for pool in network.prefixes} - have):
                    lease = await self._claim_block(network, lease, family)
            else:
                held = self.exact(network.name).all
                mine = [a for a in lease.addresses if (r := held.get(prefix(a).single())) and r.host == self._host.id]
                lacking = {p.family for p in network.prefixes} - {prefix(text).family for text in mine}
                own = [await self._own_exact(network, family) for family in sorted(lacking)]
                lease = msgspec.structs.replace(lease, addresses=(*mine, *map(str, own)))
            if lease.endpoints != offers or lease != self.mine(network.name):
                lease = msgspec.structs.replace(lease, endpoints=offers)
                same = await self._standing(network) | dict(unchanged or {})
                if not await self._replica.write({lease_key(network.name, self._host.id): lease}, unchanged=same):
                    raise Conflict(f"network {network.name} was changed at this moment", "it is tried again soon")
            return lease

    async def put_back(self, network: str) -> None:
        """Write this host's lease as it was, if somebody else has rewritten it. Raises Unavailable."""
        async with self.changing:
            await self._put_back(network)

    async def _put_back(self, network: str) -> None:
        """Do the same, with ``changing`` held."""
        key = lease_key(network, self._host.id)
        lease = self.mine(network) if key in self._replica.rewritten else None
        if lease is None or key in self._replica.unreadable:  # of the latter its last readable version is in force
            return
        try:
            before = validation.decode(key, self._replica.rewritten[key], Lease)
        except Invalid:
            del self._replica.rewritten[key]
            return
        ours = self._corrected(before, lease)
        if ours == lease:
            del self._replica.rewritten[key]
        elif await self._replica.write({key: ours}, unchanged={key: await self._replica.revision(key)}):
            log.warning("this host's lease in network %s was rewritten by somebody else, and is put back", network)

    def _corrected(self, before: Lease, lease: Lease) -> Lease:
        """Return this host's lease as it knew it, with what it may have forgotten.

        - A block that only the rewritten lease lists stays in it if its record names this host: this host may have
          claimed it, and been killed before it had that on disk.
        - A block of another host is left out, unless a container here has an address in it. An old state folder (of a
          machine that was set back) lists blocks that this host has released since.
        """
        here, owners = self._host.id, self.blocks(before.network)
        living = self._living(before.network, here)
        blocks = [b for b in before.blocks if owners.get(b) in (None, "", here) or any(map(b.holds, living))]
        blocks += [b for b in lease.blocks if owners.get(b) == here and b not in blocks]
        addresses: dict[int, str] = {}
        for text in (*before.addresses, *lease.addresses):
            address = prefix(text).single()
            if not before.prefixes or any(block.holds(address) for block in blocks):
                addresses.setdefault(address.family, text)
        own, prefixes = tuple(addresses.values()), tuple(map(str, blocks))
        return msgspec.structs.replace(before, prefixes=prefixes, addresses=own)

    async def _standing(self, network: Network) -> dict[str, int]:
        """Return the condition that the network's record is unchanged and this host was not removed.

        Raises NotFound if the network was deleted, and Conflict if this host was removed. A network without any record
        (as in tests of this class alone) passes.
        """
        key, grave = f"networks/{network.name}", f"{GONE}hosts/{self._host.id}"
        if self._hosts.removed():
            raise self._hosts.gone()
        gone = NotFound(f"network {network.name} was deleted", "create it again")
        if key not in self._replica.records:
            if GONE + key in self._replica.records:
                raise gone
            return {grave: 0}
        try:
            return {key: await self._replica.revision(key), grave: 0}
        except NotFound:
            raise gone from None

    async def _own_exact(self, network: Network, family: int) -> Prefix:
        """Claim an exact address for the host itself, or return the one that an earlier try has claimed."""
        exact = self.exact(network.name)
        for address, record in exact.of_host(self._host.id).items():
            if (record.container, address.family) == (ITSELF, family):
                return address
        tried = 0
        for pool in [p for p in network.prefixes if p.family == family]:
            low, high = usable(pool, routed=True)
            for address in candidates(pool, BITS[family], self._host.id, set(exact.all)):
                if not low <= int.from_bytes(address.packed, "big") <= high:
                    continue
                if tried == TRIES:
                    break
                try:
                    await self.take(network, address, ITSELF, "")
                except Conflict:
                    tried += 1
                    continue
                return address.single()
        raise Exhausted(
            f"network {network.name}: no address is left for host {self._host.name} itself",
            "add a pool (network update --add-pool)",
        )

    async def grow(self, network: Network, family: int, known: Collection[Prefix]) -> None:
        """Claim one block, unless the lease already has another one than the ``known`` ones.

        Raises as ``claim`` does, and Unavailable if this host has no lease yet.
        """
        async with self.changing:
            await self._put_back(network.name)
            lease = self.mine(network.name)
            if lease is None:
                if self._hosts.removed():
                    raise self._hosts.gone()
                raise Unavailable(
                    f"host {self._host.name} has no lease in network {network.name} yet", "`linkspan status` says why"
                )
            mine = {block for block in lease.blocks if block.family == family} - self.frozen(network.name).keys()
            if mine <= set(known):  # otherwise another attach has claimed a block meanwhile, and both may use it
                await self._claim_block(network, lease, family)

    async def _claim_block(self, network: Network, lease: Lease, family: int) -> Lease:
        self._replica.require_settled(f"claim a block of network {network.name}")
        if self._host.settings.get("drained"):
            raise Conflict(f"host {self._host.name} is drained", f"linkspan host undrain {self._host.name}")
        length, key = network.subnet_len[str(family)], lease_key(network.name, self._host.id)
        if len(lease.prefixes) >= MOST_BLOCKS:
            raise Exhausted(
                f"network {network.name}: host {self._host.name} has {MOST_BLOCKS} blocks, and a lease lists no more",
                "use another network with larger blocks (--subnet-len) for more containers on this host",
            )
        now = self.time(network.name)
        refused: set[Prefix] = set()
        pools = [p for p in network.prefixes if p.family == family]
        for pool in pools:
            for _ in range(TRIES):
                taken = self.blocks(network.name).keys() | refused
                block = next(candidates(pool, length, self._host.id, taken), None)
                if block is None:
                    break
                at, claimed = block_key(network.name, block), self._with(lease, pool, block)
                puts = {at: BlockRecord(self._host.id, now), key: claimed}
                if await self._replica.write(puts, absent=[at], unchanged=await self._standing(network)):
                    return claimed
                refused.add(block)
        for block, owner in self.blocks(network.name).items():
            around = [pool for pool in pools if pool.holds(block)]
            if not around or owner in ("", SHARED, self._host.id) or not self._overdue(owner):
                continue
            at, claimed = block_key(network.name, block), self._with(lease, around[0], block)
            puts = {at: BlockRecord(self._host.id, now, over=owner), key: claimed}
            same = {**await self._standing(network), at: await self._replica.revision(at)}
            if await self._replica.write(puts, absent=[f"alive/{owner}"], unchanged=same):
                before = self._hosts.name(owner)
                log.warning("block %s of network %s is reclaimed from host %s", block, network.name, before)
                return claimed
        owned = len([b for b in self.blocks(network.name) if b.family == family])
        raise Exhausted(
            f"network {network.name}: no /{length} block is left for host {self._host.name} (all {owned} have owners)",
            "add a pool (network update --add-pool), or remove hosts that are gone (host remove)",
        )

    def time(self, network: str) -> float:
        """Return the time for a new claim, in seconds since the epoch: later than that of all blocks of the network."""
        known = [record.at for record in self._replica.read(f"blocks/{network}/", BlockRecord).values()]
        return max([time.time(), *(at + 1e-6 for at in known)])

    def _with(self, lease: Lease, pool: Prefix, block: Prefix) -> Lease:
        """Return the lease with one more block, and the host's own address if it is the first block of its family.

        An own address in a block that this host has lost belongs to the block's owner, so it is left out.
        """
        lost = self.frozen(lease.network)
        addresses = [a for a in lease.addresses if not any(b.holds(prefix(a).single()) for b in lost)]
        if not any(prefix(text).family == block.family for text in addresses):
            addresses.append(str(own_address(pool, block)))
        return msgspec.structs.replace(lease, prefixes=(*lease.prefixes, str(block)), addresses=tuple(addresses))

    async def take(self, network: Network, address: Prefix, container: str, ifname: str, identity: str = "") -> None:
        """Claim one exact address for a container; a block that nobody owns becomes a shared one.

        Raises Conflict, which names the host that owns the block or the container that has the address, Unavailable as
        ``require_settled`` does, and NotFound if the network was deleted.
        """
        self._replica.require_settled(f"take address {address.address}")
        block, key = block_of(network, address), address_key(network.name, address)
        owner = self.blocks(network.name).get(block)
        if owner not in (None, SHARED):
            raise Conflict(
                f"address {address.address} is in block {block} of host {self._hosts.name(str(owner))}",
                "attach it there, or choose an address of a block that nobody owns",
            )
        puts: dict[str, msgspec.Struct] = {}
        absent: list[str] = []
        unchanged = await self._standing(network)
        if owner is None:
            puts[block_key(network.name, block)] = BlockRecord(SHARED, time.time())
            absent.append(block_key(network.name, block))
        else:
            unchanged[block_key(network.name, block)] = await self._replica.revision(
                block_key(network.name, block)
            )
        old = await self._replica.store.get(key)
        over = ""
        if old is None:
            absent.append(key)
        else:
            held = _address(key, old.value)
            if held.host and (held.host, held.container, held.ifname) != (self._host.id, container, ifname):
                if held.host == self._host.id or not self._overdue(held.host):
                    raise Conflict(
                        f"address {address.address} is in use by {held.called} on host {self._hosts.name(held.host)}",
                        "choose another, or detach that one first",
                    )
                over = held.host
                absent.append(f"alive/{over}")
            unchanged[key] = old.revision
        puts[key] = AddressRecord(self._host.id, container, ifname, time.time(), identity, over=over)
        if not await self._replica.write(puts, absent=absent, unchanged=unchanged):
            raise Conflict(f"address {address.address} was taken by another host at this moment", "try again")

    async def give_back(self, network: str, address: Prefix) -> None:
        """Release an exact address of this host: no host gives it out during cool-down, except to its identity.

        If the store refuses that (Unavailable), ``ExactAddresses`` releases the address later.
        """
        key = address_key(network, address)
        record = self._replica.records.get(key)
        if record is None or _address(key, record.value).host != self._host.id:
            return
        free = AddressRecord("", "", "", time.time(), _address(key, record.value).identity)
        same = await self._replica.store.get(key)
        if same is not None and _address(key, same.value).host == self._host.id:
            await self._replica.write({key: free}, unchanged={key: same.revision})

    def exact(self, network: str) -> InNetwork:
        """Return the records of a network's exact addresses: those in use, and those that were released."""
        return self._exact.of(network)

    def holder(self, network: str, address: Prefix) -> str:
        """Return the id of the host that has an exact address by its record, '' if none has it."""
        record = self._replica.value(address_key(network, address), AddressRecord)
        return record.host if record is not None else ""

    def held(self, host: str, network: str = "") -> list[str]:
        """Return the keys of a host's leases, blocks and exact addresses, in one network or in all."""
        of = f"{network}/" if network else ""
        keys = [key for key in self._replica.keys_under(f"leases/{of}") if key.endswith(f"/{host}")]
        keys += [k for k, r in self._replica.read(f"blocks/{of}", BlockRecord).items() if r.owner == host]
        keys += [k for k, r in self._replica.read(f"addresses/{of}", AddressRecord).items() if r.host == host]
        return keys

    async def remove_host(self, host: str) -> None:
        """Remove a host with its leases, blocks, addresses and endpoints, by tombstones. Only root may decide that.

        Its blocks are free for others. Its own record is deleted first: so the host does not come back, even if the
        rest fails. Raises Unavailable.
        """
        endpoints, _ = await self._replica.store.list(f"{ENDPOINTS}{host}/")
        await self.delete([f"hosts/{host}", *self.held(host), *(record.key for record in endpoints)])

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete records, with tombstones, in as many transactions as needed."""
        for start in range(0, len(keys), MOST_KEYS // 2):
            await self._replica.write({}, deletes=keys[start : start + MOST_KEYS // 2])

    async def leave(self, networks: Iterable[Network]) -> None:
        """Delete this host's claims in networks that somebody deleted while it claimed."""
        start = f"{GONE}networks/"
        graves = {key.removeprefix(start) for key in self._replica.keys_under(start)}
        # Without a name ``held`` means all networks, so no key may lead to that, whoever wrote it.
        gone = {name for name in graves if name and "/" not in name} - {network.name for network in networks}
        await self.delete([key for name in gone for key in self.held(self._host.id, name)])

    @property
    def settled(self) -> bool:
        """Return whether new claims may be made now."""
        return self._replica.settled

    @property
    def listed(self) -> bool:
        """Return whether the store has been listed since the start."""
        return self._replica.listed


def _unknown(host: str) -> str:
    return f"host {host} has no record, so nobody serves this; `linkspan host remove {host}` deletes what it has"


def _address(key: str, value: bytes) -> AddressRecord:
    """Return the record of an exact address. Raises Conflict if it cannot be read: somebody may have the address."""
    try:
        return records.decode(value, AddressRecord)
    except Invalid as error:
        raise Conflict(
            f"record {key} cannot be read: {error.message}", "correct it, or delete it from the store"
        ) from error
