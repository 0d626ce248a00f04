"""Owners by the store in networks that switches carry, and contradictions between records."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import msgspec

from linkspan.backends.multi_host import reached
from linkspan.backends.sdn import backend as sdn
from linkspan.cluster.leases import Leases
from linkspan.cluster.networks import Networks
from linkspan.core.addresses import Prefix, mac
from linkspan.core.errors import Invalid
from linkspan.core.host_view import Peer
from linkspan.core.model import Allowance, Host, Lease, Network
from linkspan.core.states.openflow import Claim, Held, Served

RECORDS = ("networks/", "leases/", "hosts/", "blocks/", "addresses/", "allowances/", "gone/", "settings/")
"""The records from which ``Holders`` are made."""


class Holders(msgspec.Struct, frozen=True):
    """Owners of prefixes, where to ask for each host, host names, and problems.

    ``claims`` are all, for routers; ``held`` has those of networks whose gateway is the switches. ``twins``
    says, by host id, with whom a host shares its MAC.
    """

    held: Held = Held()
    claims: tuple[Claim, ...] = ()
    hosts: tuple[Host, ...] = ()
    problems: tuple[str, ...] = ()
    twins: Mapping[str, str] = {}

    def name(self, host: str) -> str:
        """Return a host's name."""
        return next((one.name for one in self.hosts if one.id == host), host)


def holders(
    networks: Networks, allowances: Collection[Allowance], hosts: Mapping[str, Host], leases: Leases
) -> Holders:
    """Return the present owners; ``hosts`` are all of the cluster, by id."""
    problems: list[str] = []
    carried = [(n, w) for n in networks.all() for w in n.ways if w.backend == sdn.BACKEND.name]
    names = {network.name for network, _ in carried}
    served = []
    for network, way in carried:
        allowed = {a.target for a in allowances if a.source == network.name}
        allowed |= {a.source for a in allowances if a.target == network.name}
        if not sdn.is_virtual(way):  # a router's: no flow may match packets to its MAC
            continue
        closed = network.migration is None and network.masquerade
        others = tuple(sorted(allowed & names))
        served.append(
            Served(network.name, network.prefixes, sdn.gateway(way), way.options["mac"], closed, others)
        )
    claims: dict[tuple[str, Prefix], str] = {}
    disputed = set()
    for network, _ in carried:
        for lease, found, refused in _leased(network, leases, hosts):
            if refused:
                problems.append(f"lease of host {hosts[lease.host].name} in network {network.name}: {refused}")
            for target in found:
                holder = claims.setdefault((network.name, target), lease.host)
                if holder != lease.host:
                    disputed.add((network.name, target))
                    both = " and ".join(sorted(hosts[h].name for h in (holder, lease.host)))
                    problems.append(f"{target} is claimed by {both}: neither has it until one gives it up")
    kept = sorted(Claim(*key, host) for key, host in claims.items() if key not in disputed)
    steered = tuple(claim for claim in kept if any(one.name == claim.network for one in served))
    macs = []
    for host in sorted({claim.host for claim in steered}):
        if (here := hosts[host].underlay) is not None and _is_mac(here.mac):
            macs.append((host, here.mac))
        else:
            problems.append(f"host {hosts[host].name} does not announce its underlay's MAC: is its agent older?")
    held = Held(tuple(served), steered, tuple(macs))
    used = sorted(set(claims.values()))
    twins = dict(_twins(macs, hosts))
    return Holders(held, tuple(kept), tuple(hosts[host] for host in used), tuple(problems), twins)


def _is_mac(text: str) -> bool:
    """Return whether a host's link has a MAC: a tunnel has none, or no valid one."""
    try:
        return bool(mac(text))
    except Invalid:
        return False


def _twins(macs: list[tuple[str, str]], hosts: Mapping[str, Host]) -> Iterable[tuple[str, str]]:
    """Yield hosts with a MAC that others have as well."""
    owners: dict[str, list[str]] = {}
    for host, address in macs:
        owners.setdefault(address, []).append(host)
    for address, found in owners.items():
        for host in found if len(found) > 1 else ():
            others = ", ".join(sorted(hosts[other].name for other in found if other != host))
            yield host, f"its MAC {address} is also that of host {others}: none of them is moved to another port"


def _leased(network: Network, leases: Leases, hosts: Mapping[str, Host]) -> list[tuple[Lease, list[Prefix], str]]:
    """Return the leases of hosts that receive by the switches, their valid part, and why the rest is not valid."""
    exact = leases.counted(network, hosts)
    found = []
    for lease in leases.all(network.name):
        if lease.host in hosts and sdn.BACKEND.name in lease.endpoints:
            addresses = tuple(exact.get(lease.host, ()))
            grant = leases.grant(network, lease)
            peer = Peer(hosts[lease.host], grant.lease, exact=addresses)
            found.append((lease, list(reached(peer)), grant.refused))
    return found
