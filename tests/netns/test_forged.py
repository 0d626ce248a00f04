"""Packets that somebody forged reach no container: by another host, a peer, or a container."""

from __future__ import annotations

import socket

import pytest

from linkspan.ipip_endpoint import drops
from support.netns.forgery import HOST_2, Listener, datagram, send, vxlan
from support.netns.overlay import Cluster, network


def test_forged_vxlan_gets_nothing_through(trio: Cluster) -> None:
    """It must come from a peer's underlay address, with the peer's own VTEP MAC, VNI and inner source."""
    demo = network("demo", 77, "vxlan", (4,), vni="100")
    trio.joined([demo])
    one, two, three = (host.lease(demo).endpoints["vxlan"].data["mac"] for host in trio.hosts)
    listener = Listener(trio)

    def passes(netns: str, source: str, vtep: str, target: str = HOST_2, vni: int = 100) -> bool:
        send(trio, netns, vxlan(source, vtep, two, vni), udp=True, target=target)
        return listener.heard()

    assert passes("h1", "10.77.1.5", one), "what host 1 says of itself passes"
    assert not passes("x", "10.77.1.5", one), "a stranger's does not"
    assert not passes("h1", "10.77.3.5", one), "host 1 does not speak for host 3's containers"
    assert not passes("h1", "10.77.2.7", one), "nor for host 2's own"
    assert not passes("h1", "198.51.100.1", one), "nor for the outside"
    assert not passes("h1", "10.77.1.5", "02:00:00:00:00:99"), "an unknown VTEP is nobody"
    assert not passes("h1", "10.77.1.5", one, vni=101), "and another VNI is no network"
    assert not passes("c1", "10.77.1.5", one), "a container does not speak as its host, though masqueraded"
    assert not passes("c2", "10.77.1.5", one, target="10.77.0.1"), "nor does it by its gateway's address"
    assert not passes("c2", "10.77.1.5", one), "nor by its own host's"
    trio.world.sh("h2", "ip addr add 192.0.2.102/24 dev eth0")
    assert passes("h1", "10.77.1.5", one, target="192.0.2.102"), "host 2 takes it by each of its addresses"
    assert not passes("c1", "10.77.1.5", one, target="192.0.2.102"), "a container reaches none of them"
    assert passes("h3", "10.77.3.5", three)
    listener.close()


def test_forged_ipip_gets_nothing_through(trio: Cluster) -> None:
    """The outer source must be a peer's, and the inner one that same peer's; other packets are dropped and counted."""
    demo = network("demo", 77, "ipip")
    trio.joined([demo])
    table = trio.hosts[1].machine.tunnel_table.path
    listener = Listener(trio)

    def passes(netns: str, source: str) -> bool:
        send(trio, netns, datagram(source), udp=False)
        return listener.heard()

    assert passes("h1", "10.77.1.5"), "what host 1 says of itself passes"
    assert not passes("x", "10.77.1.5"), "a stranger's does not"
    assert drops(table)["stranger"] == 0, "the endpoint does not even see it"
    assert not passes("h1", "10.77.3.5"), "host 1 does not speak for host 3's containers"
    assert not passes("h1", "198.51.100.1"), "nor for the outside"
    assert drops(table)["stranger"] == 2
    assert not passes("c1", "10.77.1.5"), "a container does not speak as its host, though masqueraded"
    assert not passes("c2", "10.77.1.5"), "nor to its own host"
    assert passes("h3", "10.77.3.5")
    listener.close()


@pytest.mark.parametrize("backend", ["host-gw", "vxlan", "ipip"])
def test_a_pools_source_from_the_wire_needs_a_route_of_that_kind(trio: Cluster, backend: str) -> None:
    """Plain packets with a pool's source come in only if the network sends to that host's block without a tunnel."""
    demo = network("demo", 77, backend, (4,), **({"vni": "100"} if backend == "vxlan" else {}))
    trio.joined([demo])
    listener = Listener(trio)

    def passes(source: str) -> bool:
        raw = socket.IPPROTO_RAW
        trio.world.sh("x", "ip route replace 10.77.0.0/16 via 192.0.2.2")
        with trio.world.entered("x"), socket.socket(socket.AF_INET, socket.SOCK_RAW, raw) as out:
            out.sendto(datagram(source), ("10.77.2.5", 0))
        return listener.heard()

    assert passes("10.77.1.5") == (backend == "host-gw")
    assert not passes("10.77.9.5"), "the block of nobody"
    assert not passes("10.77.2.9"), "the block of host 2 itself"
    listener.close()
