"""Grants: the part of a lease that the blocks, the exact addresses and the network's pools confirm.

A host writes its own lease, so a lease is a claim and no proof. A block in it counts if it is a block of the
network and its record names the lease's host. An address in it counts if it is in such a block, or is an
exact address of that host. Only the rest is left out. A block that another host owns is also a conflict
(``conflicts``).

Exact addresses are in blocks that hosts share. After a restore of the store the block of one may have another
owner, until a host has restored the shared block. So an exact address in an owned block counts, unless the
owner has it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import msgspec

from linkspan.cluster.blocks import block_of
from linkspan.core.addresses import Prefix, prefix
from linkspan.core.errors import NotFound
from linkspan.core.model import Lease, Network
from linkspan.store.records import SHARED, BlockRecord

SHOWN = 3
"""Prefixes of a lease that a sentence names; an attacker's may be thousands."""

Owned = Callable[[Prefix], BlockRecord | None]
"""Tells who owns a block of the network."""
Holds = Callable[[Prefix], bool]
"""Tells whether an exact address counts for the lease's host."""
Living = Callable[[str], Collection[Prefix]]
"""Tells which addresses a host has in the network: its own, and its containers'."""


class Grant(msgspec.Struct, frozen=True):
    """The part of a lease that counts, and ``refused``: why other parts do not, '' where all does."""

    lease: Lease
    refused: str = ""


def granted(network: Network, lease: Lease, owned: Owned, holds: Holds, *, own: bool = False) -> Grant:
    """Return the valid part of a lease; ``holds`` says which exact addresses belong to its host.

    In a host's ``own`` lease a block without an owner stays: that host claims it again.
    """
    refused: dict[str, list[str]] = {}
    kept: list[Prefix] = []
    lost: list[Prefix] = []
    for block in lease.blocks:
        why = _no_block(network, block)
        record = None if why else owned(block)
        if not why and record is None and not own:
            why = "no record says that it is its block"
        if why:
            refused.setdefault(why, []).append(str(block))
        elif record is None or record.owner == lease.host:
            kept.append(block)
        else:
            lost.append(block)
    addresses = []
    for text in lease.addresses:
        address = prefix(text).single()
        of_a_block = any(block.holds(address) for block in kept) and address not in gateways(network)
        if of_a_block or holds(address):
            addresses.append(text)
        elif not any(block.holds(address) for block in lost):
            refused.setdefault("it is not of its blocks", []).append(address.address)
    left = msgspec.structs.replace(lease, prefixes=tuple(map(str, kept)), addresses=tuple(addresses))
    return Grant(left, "; ".join(_words(found, why) for why, found in refused.items()))


def baseless(network: Network, address: Prefix, holder: str, owned: Owned, living: Living) -> str:
    """Return why an exact address of a host does not count, '' where it does."""
    try:
        block = owned(block_of(network, address))
    except NotFound:
        return "it is outside the network's pools"
    if address in gateways(network):
        return "it is the network's gateway"
    if block is not None and block.owner not in (SHARED, holder) and address in living(block.owner):
        return "its block is another host's, which has it"
    return ""


def gateways(network: Network) -> set[Prefix]:
    """Return the network's gateways, alone: no host's address, and no container's."""
    return {prefix(text).single() for text in network.gateways}


def _no_block(network: Network, block: Prefix) -> str:
    """Return why a prefix is no block of a network, '' where it is one."""
    try:
        wanted = block_of(network, block)
    except NotFound:
        return "it is outside the network's pools"
    return "" if wanted == block else f"blocks of this network are /{wanted.length}"


def _words(found: list[str], why: str) -> str:
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return f"{', '.join(found[:SHOWN])}{more}: {why}"
