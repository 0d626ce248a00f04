"""Blocks of addresses: the block of an address, free blocks, and the earlier of two claims; pure.

Every address belongs to a block of the network's subnet length. A block's record names its owner
(``records``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from linkspan.core.addresses import BITS, Prefix
from linkspan.core.errors import NotFound
from linkspan.core.ipam import gateway
from linkspan.core.model import Network
from linkspan.store.records import AddressRecord, BlockRecord


def block_of(network: Network, address: Prefix) -> Prefix:
    """Return the block that an address of the network belongs to. Raises NotFound outside its pools."""
    for pool in network.prefixes:
        if pool.holds(address.single()):
            length = max(network.subnet_len[str(pool.family)], pool.length)
            return Prefix(address.packed, length).network()
    raise NotFound(
        f"address {address.address} is in no pool of network {network.name}", ", ".join(network.pools)
    )


def is_block(network: Network, block: Prefix) -> bool:
    """Return whether a prefix is a block of the network: it has the length of blocks, and is in a pool."""
    try:
        return block_of(network, block) == block
    except NotFound:
        return False


def is_strange(network: Network, block: Prefix) -> bool:
    """Return whether a host cannot have claimed a prefix in its lease: it overlaps a pool, and is no block of it.

    A prefix outside all pools may be of a pool that a restored store does not have; its host keeps it.
    """
    return not is_block(network, block) and any(pool.overlaps(block) for pool in network.prefixes)


def own_address(pool: Prefix, block: Prefix) -> Prefix:
    """Return the host's own address in the network: the block's second, the third where that is the gateway."""
    offset = 2 if block.at(1).packed == gateway(pool, True).packed else 1
    return block.at(offset).single()


def candidates(pool: Prefix, length: int, host: str, taken: set[Prefix]) -> Iterator[Prefix]:
    """Yield the pool's free blocks, from a place that follows from the host's id: two hosts seldom meet."""
    length = max(length, pool.length)
    count = 1 << (length - pool.length)
    step = 1 << (BITS[pool.family] - length)
    start = int.from_bytes(hashlib.blake2b(host.encode(), digest_size=8).digest(), "big") % count
    for number in range(count):
        at = pool.first + ((start + number) % count) * step
        block = Prefix(at.to_bytes(len(pool.packed), "big"), length)
        if block not in taken:
            yield block


def earlier(mine: BlockRecord | AddressRecord | None, found: BlockRecord | AddressRecord, host: str) -> bool:
    """Return whether this host's claim was made before the one that the store has in its place.

    A claim is made only if there is none. So the store had lost ours when ``found`` was made, which is
    therefore the later one, whatever any clock says. Only if the store lost both, the times decide; and a
    decision is final.
    """
    if found.over == host:
        return False
    return not found.back or (mine is not None and mine.at < found.at)
