"""Warnings about a network that is created or changed: it is valid, but may not do what was intended. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from linkspan.backends import backend, bridge
from linkspan.backends.bgp import backend as bgp
from linkspan.backends.bgp.settings import meshed
from linkspan.backends.multi_host import CHECK_MAC
from linkspan.core.host_view import Facts
from linkspan.core.model import Host, Network, Underlay
from linkspan.core.states.bgp import REFLECTORS, crowded

BRIDGE = bridge.BACKEND.name
ASSIGNED = ("vni", "gateway", "mac")
"""Options that a backend chooses where none is given: nobody misses them."""
KERNEL = "kernel"
"""The data path of a network whose packets no program touches."""


def cautions(network: Network, hosts: Collection[Host], here: Underlay | None) -> Iterator[str]:
    """Yield a sentence for each warning, for a cluster of these hosts, as this one sees it."""
    way, count = backend(network.backend), len(hosts)
    if not way.crosses_hosts:
        if network.backend == BRIDGE and count > 1:
            yield (
                f"backend bridge does not cross the {count} hosts: containers on different hosts do not reach each "
                "other, and each host allocates from the pool by itself (--backend vxlan crosses hosts)"
            )
        return
    if network.options.get(CHECK_MAC) == "false":
        yield (
            f"check-mac=false: any machine on the underlay's segment can send with addresses of network {network.name} "
            "(leave it out, unless VRRP or proxy ARP changes the hosts' MACs)"
        )
    if network.backend == bgp.BACKEND.name and (why := crowded(meshed(hosts))):
        yield f"{why} ({REFLECTORS})"
    for pool in network.prefixes if network.ipam == "block" else ():
        length = network.subnet_len[str(pool.family)]
        blocks = 1 << (length - pool.length)
        if blocks < count:
            yield (
                f"pool {pool} has {blocks} block{'s'[: blocks > 1]} of /{length}, and there are {count} hosts: "
                "the last ones get none (a longer --subnet-len, or --ipam exact)"
            )
    if here is not None and (most := here.mtu - way.overhead[here.outer]) < network.mtu:
        yield (
            f"MTU {network.mtu} is more than this host's underlay carries, {most}: larger packets will not arrive "
            f"(linkspan network update {network.name} --mtu {most})"
        )


def data_path(network: Network, facts: Facts) -> str:
    """Return the data path of a network's packets: "kernel", or a (much slower) program with the reason."""
    lacks = backend(network.backend).lacks(facts)
    return f"in user space: this kernel has no {lacks}" if lacks else KERNEL


def dropped(old: Network, new: Network) -> Iterator[str]:
    """Return the options that a migration drops, because the new backend does not have them."""
    for key, value in old.options.items():
        if key not in new.options and key not in ASSIGNED:
            yield (
                f"backend {new.backend} has no option {key}, so {key}={value} is dropped; "
                f"a later migration to a backend that has it needs --opt {key}={value} again"
            )
