"""VXLAN: what a host knows to states."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from linkspan.backends.vxlan import BACKEND, device
from linkspan.core.addresses import derived_mac, mac, mac_text, prefix
from linkspan.core.errors import Invalid, Unavailable
from linkspan.core.host_view import Facts, Standing
from linkspan.core.model import Allowance, Underlay
from linkspan.core.ruleset import element, tunnel_peer
from linkspan.core.states.host import Address, FdbEntry, Neighbour, NftElement, Route, State, Sysctl, Vxlan
from support.records.peers import HERE, ONLY_6, network, peer, view

MAC = "02:00:00:00:00:02"
OFFER = {"mac": MAC, "address": "192.0.2.2"}
BOTH = (4, 6)


def packed(text: str) -> bytes:
    """Return an address in bytes."""
    return prefix(text).packed


def test_a_peer_is_a_neighbour_an_entry_and_a_route_for_each_family() -> None:
    """And the guard's elements: its underlay address, and its blocks by its VTEP's MAC."""
    demo = network("vxlan", BOTH, vni="100")
    assert set(BACKEND.peer(view(demo), demo, peer(demo, OFFER))) == {
        Neighbour("lsx64", packed("10.77.2.0"), mac(MAC)),
        Neighbour("lsx64", packed("fd77:0:0:2::"), mac(MAC)),
        FdbEntry("lsx64", mac(MAC), packed("192.0.2.2")),
        Route(prefix("10.77.2.0/24"), "lsx64", packed("10.77.2.0"), packed("10.77.1.0"), onlink=True),
        Route(
            prefix("fd77:0:0:2::/64"), "lsx64", packed("fd77:0:0:2::"), packed("fd77:0:0:1::"), onlink=True
        ),
        tunnel_peer(prefix("192.0.2.2"), "udp", 4789),
        element("vteps4", "lsx64", MAC, "10.77.2.0"),
        element("vteps6", "lsx64", MAC, "fd77:0:0:2::"),
    }


def test_what_all_peers_have_in_common_is_in_memory_once() -> None:
    """The names of the device and of the sets, and the port: a thousand peers would have a thousand of each."""
    demo = network("vxlan", BOTH, vni="100")
    one, other = (list(BACKEND.peer(view(demo), demo, peer(demo, OFFER))) for _ in range(2))
    for first, second in zip(one, other, strict=True):
        for name in ("device", "set"):
            assert getattr(first, name, None) is getattr(second, name, None)
    ports = [state.parts[2] for state in (*one, *other) if isinstance(state, NftElement) and "udp" in state.parts]
    assert ports[0] is ports[1]


def test_a_peer_of_a_fast_network_is_in_its_chains_too() -> None:
    """Where the kernel can forward early; and a network without the option has none of it."""
    slow, demo = network("vxlan", vni="100"), network("vxlan", vni="100", fast="true")
    sees = msgspec.structs.replace(view(demo), facts=Facts(early=True))
    assert set(BACKEND.peer(sees, demo, peer(demo, OFFER))) - set(BACKEND.peer(sees, slow, peer(slow, OFFER))) == {
        NftElement("netdev", "linkspan", "vteps4_lsx64", (MAC, "10.77.2.0")),
        NftElement("netdev", "linkspan", "hops4_lsx64", ("10.77.2.0",), ("10.77.2.0",)),
    }
    assert BACKEND.fast_device(demo) == "lsx64"
    assert BACKEND.fast_device(slow) == ""


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"options": {"vni": "100", "fast": "maybe"}}, "no switch"),
        ({"options": {"vni": "100", "fast": "true", "direct": "true"}}, "exclude each other"),
        ({"options": {"vni": "100", "fast": "true"}, "internal": True}, "internal"),
    ],
)
def test_what_no_network_can_be_is_refused(change: dict[str, Any], why: str) -> None:
    """With the reason; the same without ``fast=true`` is accepted."""
    with pytest.raises(Invalid, match=why):
        BACKEND.check(msgspec.structs.replace(network("vxlan"), **change))
    change["options"].pop("fast")
    BACKEND.check(msgspec.structs.replace(network("vxlan"), **change))


@pytest.mark.parametrize("allowed", [("demo", "web"), ("web", "demo")], ids=["reaches", "is-reached"])
def test_a_peer_sends_to_an_allowed_network_by_that_network_s_device(allowed: tuple[str, str]) -> None:
    """Its blocks are let in there by its VTEP's MAC in that network: requests one way, and replies the other."""
    demo = network("vxlan", vni="100")
    web = msgspec.structs.replace(demo, name="web", options={"vni": "200"})
    other = msgspec.structs.replace(demo, name="other", options={"vni": "300"})
    sees = msgspec.structs.replace(view(demo), networks=(demo, web, other), allowances=(Allowance(*allowed),))
    entry = element("vteps4", "lsxc8", mac_text(derived_mac("vtep", "id2", "web")), "10.77.2.0")
    with_web, alone = (set(BACKEND.peer(one, demo, peer(demo, OFFER))) for one in (sees, view(demo)))
    assert with_web - alone == {entry}
    direct = msgspec.structs.replace(web, options={"vni": "200", "direct": "true"})
    sees = msgspec.structs.replace(sees, networks=(demo, direct, other))
    assert element("ways4", "eth0", "10.77.2.0") in set(BACKEND.peer(sees, demo, peer(demo, OFFER)))


def test_an_address_that_lives_apart_from_its_block_is_a_route_and_an_element_of_its_own() -> None:
    """A container that moved to another host keeps its address."""
    demo = network("vxlan", vni="100")
    states = set(BACKEND.peer(view(demo), demo, peer(demo, OFFER, exact=("10.77.9.0",))))
    route = Route(prefix("10.77.9.0/32"), "lsx64", packed("10.77.2.0"), packed("10.77.1.0"), onlink=True)
    assert {route, element("vteps_exact4", "lsx64", MAC, "10.77.9.0")} <= states
    assert element("vteps4", "lsx64", MAC, "10.77.9.0") not in states


@pytest.mark.parametrize(
    ("direct", "on_link", "standing", "plain"),
    [
        ("true", True, "answers", True),
        ("true", True, "awaited", False),
        ("true", True, "lost", False),
        ("true", True, "silent", False),
        ("true", False, "answers", False),
        ("false", True, "answers", False),
    ],
)
def test_direct_routes_are_for_peers_that_answer_on_the_link(
    direct: str, on_link: bool, standing: Standing, plain: bool
) -> None:
    """Else it is the tunnel; the peer is let in by both, for it may see it otherwise at the moment."""
    demo = network("vxlan", BOTH, vni="100", direct=direct)
    other = msgspec.structs.replace(peer(demo, OFFER, on_link=on_link), standing=standing)
    states = set(BACKEND.peer(view(demo), demo, other))
    route = Route(prefix("10.77.2.0/24"), "eth0", packed("192.0.2.2"), packed("10.77.1.0"))
    six = Route(prefix("fd77:0:0:2::/64"), "eth0", packed("fd02::2"), packed("fd77:0:0:1::"))
    assert ({route, six} <= states) == plain
    assert (element("ways4", "eth0", "10.77.2.0") in states) == (direct == "true")
    assert element("vteps4", "lsx64", MAC, "10.77.2.0") in states


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ("192.0.2.1/24", "192.0.2.2/32"),
        ("192.0.2.1/32", "192.0.2.2/24"),
        ("192.0.3.1/23", "192.0.2.2/24"),
    ],
)
def test_a_peer_is_on_the_link_where_both_say_so(here: str, there: str) -> None:
    """One whose prefix does not hold the other's address gets no plain route, and lets in no plain packet."""
    demo = network("vxlan", vni="100", direct="true")
    other = peer(demo, OFFER, underlay=Underlay("eth0", (there,)))
    states = set(BACKEND.peer(view(demo, Underlay("eth0", (here,))), demo, other))
    assert {s.device for s in states if isinstance(s, Route)} == {"lsx64"}
    assert element("ways4", "eth0", "10.77.2.0") not in states


@pytest.mark.parametrize("direct", ["true", "false"])
def test_a_direct_network_s_underlay_takes_what_is_answered_by_the_tunnel(direct: str) -> None:
    """The two hosts may see each other otherwise for a moment: a strict reverse path filter would drop it."""
    demo = network("vxlan", vni="100", direct=direct)
    loose = Sysctl("net/ipv4/conf/eth0/rp_filter", "2")
    assert (loose in set(BACKEND.network(view(demo), demo))) == (direct == "true")


def test_a_peer_needs_the_port_with_the_tunnel_s_largest_packet_and_its_neighbour_where_direct() -> None:
    """The frame inside has the VNI and is for nobody; plain packets have the network's own size and addresses."""
    demo = network("vxlan", vni="100", mtu=1450, direct="true", port="4790")
    tunnel, plain = BACKEND.needs(view(demo), demo, peer(demo, OFFER))
    assert (tunnel.protocol, tunnel.port, tunnel.size, tunnel.target) == ("udp", 4790, 1500, packed("192.0.2.2"))
    assert tunnel.inside(1000)[:8] == bytes.fromhex("0800000000006400")
    assert (plain.source, plain.target, plain.size) == (packed("10.77.1.0"), packed("10.77.2.0"), 1450)
    assert (plain.neighbour, plain.spare) == (packed("192.0.2.2"), True)


def test_a_family_that_the_peer_has_no_underlay_address_for_stays_in_the_tunnel() -> None:
    """IPv6 pools over an IPv4 segment have no router on the link."""
    demo = network("vxlan", BOTH, vni="100", direct="true")
    four = Underlay("eth0", ("192.0.2.2/24",))
    states = BACKEND.peer(view(demo), demo, peer(demo, OFFER, underlay=four))
    devices = {s.destination.family: s.device for s in states if isinstance(s, Route)}
    assert devices == {4: "eth0", 6: "lsx64"}


@pytest.mark.parametrize(
    ("underlay", "mtu", "expected"),
    [
        (HERE, 1500, 1450),
        (HERE, 1400, 1400),
        (ONLY_6, 1500, 1430),
        (Underlay("eth0", ("192.0.2.1/24",), 9000), 65535, 8950),
    ],
)
def test_the_devices_mtu_is_the_underlays_less_the_headers(
    underlay: Underlay, mtu: int, expected: int
) -> None:
    """50 bytes over IPv4, 70 over IPv6, and never more than the network's."""
    demo = network("vxlan", BOTH, mtu, vni="100")
    (found,) = [s for s in BACKEND.network(view(demo, underlay), demo) if isinstance(s, Vxlan)]
    assert (found.mtu, found.vni, found.port) == (expected, 100, 4789)
    assert found.local == prefix(underlay.addresses[0]).packed


def test_the_device_bears_the_hosts_own_addresses_alone() -> None:
    """They are the sources of its routes."""
    demo = network("vxlan", BOTH, vni="100")
    found = {s.prefix for s in BACKEND.network(view(demo), demo) if isinstance(s, Address)}
    assert found == {prefix("10.77.1.0/32"), prefix("fd77:0:0:1::/128")}


def test_pools_fail_closed_without_any_peer() -> None:
    """The pool's route is unreachable, and its sources from the wire are looked up."""
    demo = network("vxlan", vni="100")
    states: list[State] = list(BACKEND.network(view(demo), demo))
    assert [s.destination for s in states if isinstance(s, Route) and not s.device] == [
        prefix("10.77.0.0/16")
    ]
    (source,) = [s for s in states if isinstance(s, NftElement) and s.set == "sources4"]
    assert (source.parts, source.data) == (("10.77.0.0/16",), ("jump from4_24",))


def test_what_is_announced_is_what_peers_need() -> None:
    """The MAC is the host's own in this network, and the address the one by which others reach it."""
    demo = network("vxlan", vni="100")
    nat = msgspec.structs.replace(HERE, advertise=("203.0.113.1",))
    first, second = BACKEND.announce(view(demo), demo), BACKEND.announce(view(demo, nat), demo)
    assert (first["address"], second["address"]) == ("192.0.2.1", "203.0.113.1")
    assert first["mac"] == second["mac"]
    (found,) = [s for s in BACKEND.network(view(demo, nat), demo) if isinstance(s, Vxlan)]
    assert found.mac == mac(first["mac"])
    assert found.local == packed("192.0.2.1"), "a NAT's address is not the host's to send from"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vni", "0"),
        ("vni", "16777216"),
        ("vni", "x"),
        ("port", "0"),
        ("port", "65536"),
        ("direct", "yes"),
        ("a", "b"),
    ],
)
def test_options_out_of_range_are_refused(name: str, value: str) -> None:
    """The message names the network and the option."""
    with pytest.raises(Invalid, match=f"network demo: .*{name}={value}"):
        BACKEND.check(msgspec.structs.replace(network("vxlan"), options={name: value}))


@pytest.mark.parametrize("options", [{}, {"vni": "1"}, {"vni": "16777215", "port": "8472", "direct": "true"}])
def test_good_options_are_taken(options: dict[str, str]) -> None:
    """The VNI may still be allocated."""
    BACKEND.check(msgspec.structs.replace(network("vxlan"), options=options))


def test_a_network_has_a_device_by_its_vni() -> None:
    """In hexadecimal, so the largest fits an interface name."""
    assert device(network("vxlan", vni="16777215")) == "lsxffffff"


@pytest.mark.parametrize(
    ("offer", "words"),
    [
        (None, "host h2 does not receive by vxlan"),
        ({**OFFER, "address": "fd02::2"}, "this host sends by IPv4"),
    ],
)
def test_a_peer_that_cannot_be_reached_is_named(offer: dict[str, str] | None, words: str) -> None:
    """It has not announced itself yet, or by an address of the other family."""
    demo = network("vxlan", vni="100")
    with pytest.raises(Unavailable, match=words):
        list(BACKEND.peer(view(demo), demo, peer(demo, offer)))


def test_a_host_without_an_underlay_is_told_so() -> None:
    """A network across hosts needs one."""
    demo = network("vxlan", vni="100")
    with pytest.raises(Unavailable, match="this host has no underlay"):
        list(BACKEND.network(view(demo, None), demo))
