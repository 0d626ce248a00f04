"""Health between this host and its peers: each problem that `status` shows, with its reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from linkspan.backends.wireguard import backend as wireguard
from linkspan.cluster.hosts import COME_BACK, Hosts
from linkspan.cluster.networks import Networks
from linkspan.core.model import Host
from linkspan.core.states.wireguard import key_id

Told = dict[str, str]


def unreachable(
    hosts: Hosts, silent: Mapping[tuple[str, str], str], lacks: Iterable[str], unclaimed: Mapping[str, str]
) -> list[Told]:
    """Return the peers that are unreachable or silent, and what this host itself lacks.

    ``silent`` has the reason by network and host, ``lacks`` what this host lacks for any network, and ``unclaimed``
    why it has no lease, by network.
    """
    known = hosts.all()
    found: list[Told] = []
    for (network, peer), why in sorted(silent.items()):
        found.append(_told(network, hosts.name(peer), why))
    for id_, host in sorted(known.items()):
        if hosts.lives(id_) is False:
            found.append(_told("", host.name, "its agent has been silent for a while"))
    found += [_told("", names, why) for names, why in (*doubled(known.values()), *_one_key(known.values()))]
    if hosts.removed():
        why = f"this host was removed from the cluster; {COME_BACK}"
        found.append(_told("", hosts.here.name, why))
    found += [_told("", hosts.here.name, why) for why in lacks]
    return found + [_told(name, hosts.here.name, why) for name, why in unclaimed.items()]


def overlaps(networks: Networks, here: str) -> list[Told]:
    """Return the networks whose pools overlap with routes of this host, which has the name ``here``."""
    return [_told(name, here, why) for name, why in sorted(networks.overlaps().items())]


def doubled(hosts: Iterable[Host]) -> list[tuple[str, str]]:
    """Return the hosts that announce the same underlay address, and a sentence that names them and the address."""
    owners: dict[str, list[str]] = {}
    for host in hosts:
        for family in (4, 6):
            if host.underlay is not None and (address := host.underlay.address(family)) is not None:
                owners.setdefault(address.address, []).append(host.name)
    return [
        (
            ", ".join(sorted(names)),
            f"hosts {' and '.join(sorted(names))} have the same underlay address, {address}",
        )
        for address, names in sorted(owners.items())
        if len(names) > 1
    ]


def _one_key(hosts: Iterable[Host]) -> Iterable[tuple[str, str]]:
    for public, names in wireguard.doubled(hosts):
        said = f"hosts {' and '.join(names)} have the same WireGuard key, {key_id(public)}"
        said += ": no host sends to them with it"
        yield ", ".join(names), f"{said} (on one of them: linkspan host rotate-keys)"


def _told(network: str, host: str, why: str) -> Told:
    return {"network": network, "host": host, "why": why}
