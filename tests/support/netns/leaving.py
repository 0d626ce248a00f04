"""A network that leaves to the outside by an address of one host of a cluster without agents."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import msgspec

from linkspan.core.addresses import prefix
from linkspan.core.model import Egress, Network
from linkspan.kernel.probe import gratuitous_arp
from support.netns.overlay import Cluster

EXIT = "192.0.2.100"


@contextlib.contextmanager
def leaving(cluster: Cluster, network: Network, holder: int) -> Iterator[Network]:
    """Let a network leave by EXIT, which a host holds meanwhile; give the network as it is then."""
    changed = msgspec.structs.replace(network, egress=(Egress(EXIT),))
    name = f"h{holder}"
    for host in cluster.hosts:
        host.exits = {(network.name, 4): f"id-{holder}"}
    cluster.world.sh(name, f"ip addr add {EXIT}/32 dev eth0")
    _announced(cluster, name)
    try:
        cluster.joined([changed])
        yield changed
    finally:
        cluster.world.sh(name, f"ip addr del {EXIT}/32 dev eth0")
        for host in cluster.hosts:
            host.exits = {}
        cluster.joined([network])


def _announced(cluster: Cluster, host: str) -> None:
    """Tell the segment of the address, as an agent does: others may have the MAC of the holder before."""
    with cluster.world.entered(host), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as own:
        own.bind(("eth0", 0))
        gratuitous_arp.announce("eth0", own.getsockname()[4], [prefix(EXIT)])


def source(cluster: Cluster, container: str, outside: str, address: str) -> str:
    """Return the source that a namespace outside sees of a container's datagram, and answers; '' if none comes."""
    with cluster.world.entered(outside):
        there = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        there.bind((address, 0))
    with cluster.world.entered(container):
        here = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with here, there:
        here.settimeout(2)
        there.settimeout(2)
        try:
            here.sendto(b"?", there.getsockname())
            _, seen = there.recvfrom(1)
            there.sendto(b"!", seen)
            here.recv(1)
        except OSError:
            return ""
    return str(seen[0])
