"""host-gw and IPIP: what a host knows to states."""

from __future__ import annotations

import msgspec
import pytest

from linkspan.backends import host_gw, ipip
from linkspan.core.addresses import prefix
from linkspan.core.errors import Invalid, Unavailable
from linkspan.core.host_view import Standing
from linkspan.core.model import Underlay
from linkspan.core.ruleset import element
from linkspan.core.states.host import Address, Bridge, Ipip, Route, TunnelPrefix
from linkspan.core.states.programs import IpipHelper, Process
from linkspan.kernel.io.packets import checksum
from support.records.peers import HERE, ONLY_6, network, peer, view

OFFER = {"address": "192.0.2.2"}
HELPER = ("python", "endpoint.py")
OWN, THEIRS = prefix("10.77.1.0").packed, prefix("192.0.2.2").packed
BLOCK = prefix("10.77.2.0/24")


def test_a_host_gw_peer_is_a_plain_route_for_each_prefix() -> None:
    """By its underlay address of the same family, with the host's own address as source."""
    demo = network("host-gw", (4, 6))
    six = prefix("fd02::2").packed, prefix("fd77:0:0:1::").packed
    assert set(host_gw.BACKEND.peer(view(demo), demo, peer(demo, {}))) == {
        Route(BLOCK, "eth0", THEIRS, OWN),
        Route(prefix("fd77:0:0:2::/64"), "eth0", *six),
        element("ways4", "eth0", "10.77.2.0"),
        element("ways6", "eth0", "fd77:0:0:2::"),
    }


def test_a_host_gw_peer_behind_a_router_is_refused_by_name() -> None:
    """The error has the cause, and the backend to use instead."""
    demo = network("host-gw")
    with pytest.raises(
        Unavailable, match=r"host h2 cannot be reached by host-gw.*a router is between"
    ) as caught:
        list(host_gw.BACKEND.peer(view(demo), demo, peer(demo, {}, on_link=False)))
    assert "vxlan" in caught.value.hint


@pytest.mark.parametrize(("standing", "refused"), [("awaited", False), ("lost", False), ("silent", True)])
def test_a_host_gw_peer_that_never_answered_is_refused_by_name(standing: Standing, refused: bool) -> None:
    """One that did keeps its routes, though it is silent now: there is no other way to it."""
    demo = network("host-gw")
    other = msgspec.structs.replace(peer(demo, {}), standing=standing)
    if refused:
        with pytest.raises(Unavailable, match=r"host h2 .*nobody answers for 192.0.2.2 on eth0"):
            list(host_gw.BACKEND.peer(view(demo), demo, other))
    else:
        assert list(host_gw.BACKEND.peer(view(demo), demo, other))


def test_an_ipip_peer_needs_protocol_4_with_a_packet_inside_that_goes_nowhere() -> None:
    """Its header is complete: version, length and checksum; its TTL is one, and no host has its addresses."""
    demo = network("ipip", mtu=1480)
    (need,) = ipip.BACKEND.needs(view(demo), demo, peer(demo, OFFER))
    assert (need.protocol, need.size, need.target, need.neighbour) == ("ipip", 1500, THEIRS, b"")
    inside = need.inside(1480)
    assert (inside[0], int.from_bytes(inside[2:4], "big"), inside[8]) == (0x45, 1480, 1)
    assert checksum(inside) == 0


def test_a_host_gw_peer_needs_plain_packets_of_each_family() -> None:
    """To its addresses in the network, by its addresses on the link."""
    demo = network("host-gw", (4, 6))
    four, six = host_gw.BACKEND.needs(view(demo), demo, peer(demo, {}))
    assert (four.target, four.neighbour) == (prefix("10.77.2.0").packed, THEIRS)
    assert (six.target, six.neighbour) == (prefix("fd77:0:0:2::").packed, prefix("fd02::2").packed)
    assert not four.spare


def test_a_host_gw_peer_without_an_address_of_the_family_is_refused() -> None:
    """An IPv6 pool needs an IPv6 neighbour."""
    demo = network("host-gw", (4, 6))
    with pytest.raises(Unavailable, match="no underlay addresses in the same IPv6 prefix"):
        list(
            host_gw.BACKEND.peer(
                view(demo), demo, peer(demo, {}, underlay=Underlay("eth0", ("192.0.2.2/24",)))
            )
        )


def test_host_gw_keeps_the_hosts_own_address_on_a_bridge_without_ports() -> None:
    """Otherwise there is no device of its own."""
    demo = network("host-gw")
    states = list(host_gw.BACKEND.network(view(demo), demo))
    assert Address("ls-demo", prefix("10.77.1.0/32")) in states
    assert [s.mtu for s in states if isinstance(s, Bridge)] == [1500]


def test_ipip_by_the_kernel_is_a_route_by_the_peers_underlay_address() -> None:
    """One device, whose local address is the host's, and no table."""
    demo = network("ipip")
    assert Ipip("lsipip", 1480, prefix("192.0.2.1").packed, tun=False) in set(
        ipip.BACKEND.network(view(demo), demo)
    )
    assert set(ipip.BACKEND.peer(view(demo), demo, peer(demo, OFFER))) == {
        Route(BLOCK, "lsipip", THEIRS, OWN, onlink=True),
        element("ipip_peers", "192.0.2.2"),
        element("ways4", "lsipip", "10.77.2.0"),
    }


def test_ipip_in_user_space_is_a_row_of_the_endpoints_table() -> None:
    """The device is a TUN, and a helper process serves it."""
    demo = network("ipip")
    seen = view(demo, programs=(IpipHelper(HELPER),))
    states = set(ipip.BACKEND.network(seen, demo))
    assert Ipip("lsipip", 1480, b"", tun=True) in states
    assert Process("ipip", (*HELPER, "--device", "lsipip", "--local", "192.0.2.1")) in states
    found = set(ipip.BACKEND.peer(seen, demo, peer(demo, OFFER)))
    assert {Route(BLOCK, "lsipip", b"", OWN), TunnelPrefix(BLOCK, THEIRS)} <= found


def test_ipip_direct_still_takes_the_peers_tunnel_packets() -> None:
    """The peer may not know yet that it is on the link."""
    demo = network("ipip", direct="true")
    states = set(ipip.BACKEND.peer(view(demo, programs=(IpipHelper(HELPER),)), demo, peer(demo, OFFER)))
    assert Route(BLOCK, "eth0", THEIRS, OWN) in states
    assert {TunnelPrefix(BLOCK, THEIRS), element("ways4", "lsipip", "10.77.2.0")} <= states


def test_the_tunnel_of_all_networks_has_one_mtu() -> None:
    """A network with a smaller MTU does not change the device."""
    small, large = network("ipip", mtu=1300), network("ipip")
    found = [{s for s in ipip.BACKEND.network(view(n), n) if isinstance(s, Ipip)} for n in (small, large)]
    assert found[0] == found[1]


def test_ipip_refuses_ipv6_by_name() -> None:
    """Pools of it at creation, an underlay of it alone on the host that has it."""
    with pytest.raises(Invalid, match="pool fd77::/48 is IPv6"):
        ipip.BACKEND.check(network("ipip", (4, 6)))
    demo = network("ipip")
    with pytest.raises(Unavailable, match="needs an underlay address of IPv4"):
        list(ipip.BACKEND.network(view(demo, ONLY_6), demo))
    assert ipip.BACKEND.announce(view(demo, HERE), demo) == {"address": "192.0.2.1"}


@pytest.mark.parametrize("backend", [host_gw.BACKEND, ipip.BACKEND])
def test_unknown_options_and_missing_offers_are_refused(
    backend: ipip.IpipBackend | host_gw.HostGwBackend,
) -> None:
    """By name, each."""
    with pytest.raises(Invalid, match="option vni=1 is unknown"):
        backend.check(network(backend.name, vni="1"))
    demo = network(backend.name)
    with pytest.raises(Unavailable, match=f"host h2 does not receive by {backend.name}"):
        list(backend.peer(view(demo), demo, peer(demo, None)))
