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
    """Return the block that an address of the network belongs to. Raises NotFound if it is in no pool."""
    for pool in network.prefixes:
        if pool.holds(address.single()):
            length = max(network.subnet_len[str(pool.family)], pool.length)
            return Prefix(address.packed, length).network()
    raise NotFound(
        f"address {address.address} is in no pool of network {network.name}", ", ".join(network.pools)
    )


def is_block(network: Network, block: Prefix) -> bool:
    """Return whether a prefix is a block of the network: it is in a pool and has the length of its blocks."""
    try:
        return block_of(network, block) == block
    except NotFound:
        return False


def is_strange(network: Network, block: Prefix) -> bool:
    """Return whether a host cannot have claimed a prefix: it overlaps a pool, and is no block of the network.

    A prefix outside all pools may belong to a pool that a restored store does not have, so its host keeps it.
    """
    return not is_block(network, block) and any(pool.overlaps(block) for pool in network.prefixes)


def own_address(pool: Prefix, block: Prefix) -> Prefix:
    """Return the host's own address in the network: the block's second; its third if the second is the gateway."""
    offset = 2 if block.at(1).packed == gateway(pool, True).packed else 1
    return block.at(offset).single()


def candidates(pool: Prefix, length: int, host: str, taken: set[Prefix]) -> Iterator[Prefix]:
    """Yield the pool's blocks of this length that are not ``taken``.

    The first one depends on the id of ``host``, so two hosts seldom try the same block.
    """
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
    """Return whether this host's claim ``mine`` (None: not known) is earlier than ``found``, which the store has now.

    A host makes a claim only if there is none. So the store had lost this host's claim when ``found`` was made, and
    ``found`` is the later one, whatever any clock says. Only if ``found`` was put back too, the times decide. If
    ``found`` names this host in ``over``, that was decided already, and is final.
    """
    if found.over == host:
        return False
    return not found.back or (mine is not None and mine.at < found.at)
