"""Grants: the part of a lease that block records, address records and the network's pools confirm.

A host writes its own lease, so a lease is a claim and no proof. A block in it counts if it is a block of the
network and its record names the lease's host. An address in it counts if it is in such a block, or is an
exact address of that host. The other parts are left out. A block that another host owns is also a conflict
(``conflicts``).

Exact addresses are in shared blocks. After a restore of the store such a block may have an owner, until a host has
made it shared again. So an exact address in an owned block counts, unless the owner has the same address.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import msgspec

from linkspan.cluster.blocks import block_of
from linkspan.core.addresses import Prefix, prefix
from linkspan.core.errors import NotFound, first_of
from linkspan.core.model import Lease, Network
from linkspan.store.records import SHARED, BlockRecord

SHOWN = 3
"""Prefixes of a lease that an error names; an attacker's lease may have thousands."""

Owned = Callable[[Prefix], BlockRecord | None]
"""Returns the record of a block of the network, None if there is none."""
Holds = Callable[[Prefix], bool]
"""Returns whether an exact address counts for the lease's host."""
Living = Callable[[str], Collection[Prefix]]
"""Returns the addresses that the host with this id has in the network: its own, and its containers'."""


class Grant(msgspec.Struct, frozen=True):
    """The part of a lease that counts; ``refused`` says why other parts do not, '' if all of it counts."""

    lease: Lease
    refused: str = ""


def granted(network: Network, lease: Lease, owned: Owned, holds: Holds, *, own: bool = False) -> Grant:
    """Return the part of a lease that counts.

    In this host's ``own`` lease a block without an owner counts, because this host claims it again.
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
    if not refused and not lost:
        return Grant(lease)  # as most: a copy of each lease of a large cluster would stay in memory
    left = msgspec.structs.replace(lease, prefixes=tuple(map(str, kept)), addresses=tuple(addresses))
    return Grant(left, "; ".join(_words(found, why) for why, found in refused.items()))


def baseless(network: Network, address: Prefix, holder: str, owned: Owned, living: Living) -> str:
    """Return why an exact address of the host ``holder`` does not count, '' if it does."""
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
    """Return the network's gateways as single addresses: no host and no container may have one."""
    return {prefix(text).single() for text in network.gateways}


def _no_block(network: Network, block: Prefix) -> str:
    """Return why a prefix is no block of a network, '' if it is one."""
    try:
        wanted = block_of(network, block)
    except NotFound:
        return "it is outside the network's pools"
    return "" if wanted == block else f"blocks of this network are /{wanted.length}"


def _words(found: list[str], why: str) -> str:
    return f"{first_of(found, SHOWN)}: {why}"
