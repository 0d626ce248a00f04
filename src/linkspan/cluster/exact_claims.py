"""Exact claims: single addresses that this host claims in the store, from blocks that no host owns.

They are for containers that ask for an address outside this host's blocks, for all containers of a network with exact
addresses, and for containers with an identity, which keep their address on another host.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import random
import time
from collections.abc import Callable, Iterator

from linkspan.cluster.blocks import block_of
from linkspan.cluster.doubled_addresses import Doubled
from linkspan.cluster.leases import Leases
from linkspan.cluster.reservations import Reservations
from linkspan.core.addresses import Prefix, prefix
from linkspan.core.errors import Conflict, Exhausted, Invalid, LinkspanError
from linkspan.core.ipam import Allocation, usable
from linkspan.core.model import AttachRequest, Network
from linkspan.store.records import SHARED, AddressRecord, address_key

log = logging.getLogger("linkspan.cluster.exact_claims")

IDENTITY = "linkspan.io/identity"
"""The label with a container's identity: with it a container keeps its address on another host."""

RACES = 16
"""Addresses that a claim tries, if other hosts are quicker."""
RESTED = 256
"""Released addresses past their cool-down that a network may have before they are preferred."""


class ExactClaims:
    """Claims exact addresses, and gives them back."""

    def __init__(
        self,
        host: str,
        leases: Leases,
        reservations: Reservations,
        doubled: Doubled,
        cooldown: float,
        owed: Callable[[set[str]], None],
    ) -> None:
        """``host`` is this host's id, and ``cooldown`` is in seconds.

        ``owed`` is called with the keys of addresses whose release the store refused.
        """
        self._host = host
        self._leases = leases
        self._reservations = reservations
        self._doubled = doubled
        self._cooldown = cooldown
        self._owed = owed
        self._cursor: dict[tuple[str, int], int] = {}

    async def take(self, network: Network, address: Prefix, request: AttachRequest) -> Allocation:
        """Claim an address of a pool. Raises Conflict, Invalid or Unavailable."""
        _refuse_unusable(network, address)
        if whose := self._doubled.elsewhere(network.name, block_of(network, address)).get(address.single()):
            raise Conflict(
                f"address {address.address} is in use by {whose}", "choose another, or detach that one first"
            )
        identity = request.labels.get(IDENTITY, "")
        await self._leases.take(network, address, request.id, request.ifname, identity)
        return Allocation(address, reused=True)

    def sticky(self, network: Network, family: int, identity: str) -> Prefix | None:
        """Return the exact address that an identity has or had on any host, None if there is none."""
        return self._leases.exact(network.name).of_identity(identity, family)

    async def next(self, network: Network, family: int, request: AttachRequest) -> Allocation:
        """Claim a free address of blocks that no host owns. Raises Conflict, Exhausted or Unavailable."""
        identity = request.labels.get(IDENTITY, "")
        tried = 0
        for address in self._free(network, family):
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

    def _free(self, network: Network, family: int) -> Iterator[Prefix]:
        """Yield candidates: first those never in use, from an offset of this host's own, then those past cool-down.

        Once RESTED are past cool-down, some of these come first: otherwise a large pool would get a record for each
        container that ever was in the network. Hosts take them at random, so that they seldom want the same one.
        """
        exact = self._leases.exact(network.name)
        ranges = [usable(pool, routed=True) for pool in network.prefixes if pool.family == family]
        owners = self._leases.blocks(network.name)
        reserved = [prefix(r.cidr) for r in self._reservations.all() if r.network == network.name]
        elsewhere: dict[Prefix, dict[Prefix, str]] = {}

        def fits(address: Prefix) -> bool:
            number = int.from_bytes(address.packed, "big")
            if not any(low <= number <= high for low, high in ranges) or any(r.holds(address) for r in reserved):
                return False
            block = block_of(network, address)
            if owners.get(block, SHARED) != SHARED:
                return False
            if block not in elsewhere:
                elsewhere[block] = self._doubled.elsewhere(network.name, block)
            return address not in elsewhere[block]

        oldest = itertools.islice(exact.free.get(family, {}).items(), 2 * RESTED)
        rested = [a for a, record in oldest if _cool(record, self._cooldown) and fits(a)]
        if len(rested) >= RESTED:
            yield from random.sample(rested, RACES)
        for pool, (low, high) in zip((p for p in network.prefixes if p.family == family), ranges, strict=True):
            size = high - low + 1
            seed = int.from_bytes(hashlib.blake2b(self._host.encode(), digest_size=8).digest(), "big")
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
                if address not in exact.all and fits(address):
                    self._cursor[network.name, family] = (at + 1) % size
                    yield address
        released = [*exact.free.get(family, {}).items(), *exact.of_host("").items()]
        cooled = [(r.at, a) for a, r in released if a.family == family and _cool(r, self._cooldown) and fits(a)]
        yield from (address for _, address in sorted(cooled))

    async def give_back(self, name: str, address: Prefix) -> None:
        """Release an address of a network. If the store refuses that, log it, and call ``owed``."""
        try:
            await self._leases.give_back(name, address.single())
        except LinkspanError as error:
            log.warning("%s", error.within(f"release address {address.address} of network {name}").message)
            self._owed({address_key(name, address)})


def _refuse_unusable(network: Network, address: Prefix) -> None:
    pool = next(p for p in network.prefixes if p.holds(address))
    low, high = usable(pool, routed=True)
    if not low <= int.from_bytes(address.packed, "big") <= high:
        raise Invalid(f"address {address.address} of pool {pool} is its gateway, network or broadcast address")


def _cool(record: AddressRecord, cooldown: float) -> bool:
    """Return whether a released address is past its cool-down (seconds), by the wall clock, which all hosts share.

    A time far in the future comes from a wrong clock and is ignored.
    """
    waited = time.time() - record.at
    return waited >= cooldown or waited < -cooldown
