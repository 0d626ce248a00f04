"""Address audit: who has which address, and whether the allocations match the running containers (pure)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import msgspec

from linkspan.core.addresses import Prefix, prefix
from linkspan.core.model import Endpoint, Lease, Network, Reservation
from linkspan.core.states.host import Address, Veth


class Holding(msgspec.Struct, frozen=True):
    """One line of `address list`: ``state`` is held, host (a host's own in the network), gateway or reserved."""

    address: str
    network: str
    state: str
    holder: str
    ifname: str = ""
    host: str = ""


class Finding(msgspec.Struct, frozen=True):
    """One problem, as `address check` shows it."""

    address: str
    network: str
    holder: str
    why: str


class Check(msgspec.Struct, frozen=True):
    """All problems with addresses on this host."""

    ok: bool
    leaked: tuple[Finding, ...]
    duplicate: tuple[Finding, ...]
    orphaned: tuple[Finding, ...]


class Seen(msgspec.Struct, frozen=True):
    """The observation: our veth pairs, and the addresses inside each namespace that still exists."""

    veths: Mapping[str, Veth]
    inside: Mapping[int, tuple[Address, ...]]


def holdings(
    networks: Iterable[Network],
    endpoints: Iterable[Endpoint],
    reservations: Iterable[Reservation],
    hosts: Iterable[tuple[str, Lease]],
) -> list[Holding]:
    """Return every address that is not free, in order; ``hosts`` are names, with a lease each."""
    found = [
        Holding(
            gateway.address,
            network.name,
            "gateway",
            network.bridge if not network.routed else "every container",
        )
        for network in networks
        for _, gateway in network.pairs
    ]
    found += [Holding(r.cidr, r.network, "reserved", "") for r in reservations]
    found += [
        Holding(prefix(text).address, lease.network, "host", name, "", name)
        for name, lease in hosts
        for text in lease.addresses
    ]
    found += [
        Holding(address.address, e.network, "held", e.name or e.id, e.ifname, e.host)
        for e in endpoints
        for address in e.prefixes
    ]
    return sorted(found, key=lambda h: (h.network, prefix(h.address).family, prefix(h.address)))


def check(endpoints: Collection[Endpoint], seen: Seen) -> Check:
    """Compare allocations with the observation.

    Leaked: allocated, but the container or its interface is gone. Duplicate: a second container has it as
    well. Orphaned: a link of ours exists, or a container has an address of ours, and no endpoint has it
    allocated.
    """
    attached = [e for e in endpoints if e.netns]
    leaked: list[Finding] = []
    for endpoint in attached:
        why = ""
        if endpoint.netns not in seen.inside:
            why = f"the namespace of {endpoint.id} is gone"
        elif endpoint.host_ifname not in seen.veths:
            why = f"its interface {endpoint.host_ifname} is gone"
        if why:
            leaked += [_finding(p, endpoint, why) for p in endpoint.prefixes]
    holders = {p.packed: e for e in attached for p in e.prefixes}
    duplicate, orphaned = [], []
    for addresses in seen.inside.values():
        for address in addresses:
            holder = holders.get(address.prefix.packed)
            if holder and (holder.netns, holder.ifname) != (address.netns, address.device):
                why = f"{address.device} in namespace {address.netns} has it as well"
                duplicate.append(_finding(address.prefix, holder, why))
    known = {e.host_ifname for e in endpoints}
    for name, veth in seen.veths.items():
        if name not in known:
            orphaned.append(Finding("", "", name, f"link {name} leads to no endpoint ({veth.peer_name})"))
    return Check(not (leaked or duplicate or orphaned), tuple(leaked), tuple(duplicate), tuple(orphaned))


def others(endpoints: Collection[Endpoint], seen: Seen) -> list[Address]:
    """Return the addresses that are in a container, and that another endpoint holds."""
    places: dict[bytes, set[tuple[int, str]]] = {}
    for endpoint in endpoints:
        for address in endpoint.prefixes if endpoint.netns else ():
            places.setdefault(address.packed, set()).add((endpoint.netns, endpoint.ifname))
    every = [address for addresses in seen.inside.values() for address in addresses]
    return [a for a in every if (a.netns, a.device) not in places.get(a.prefix.packed, {(a.netns, a.device)})]


def _finding(address: Prefix, endpoint: Endpoint, why: str) -> Finding:
    return Finding(address.address, endpoint.network, endpoint.name or endpoint.id, why)
