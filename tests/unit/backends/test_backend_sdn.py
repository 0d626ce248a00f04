"""The host's side of SDN: constant, whatever the peers are."""

from __future__ import annotations

import msgspec
import pytest

from linkspan.backends.sdn.backend import BACKEND, GATEWAY, gateway, is_virtual
from linkspan.core.addresses import GATEWAY_MAC, mac, prefix
from linkspan.core.errors import Conflict, Invalid, Unavailable
from linkspan.core.ruleset import element
from linkspan.core.states.host import Neighbour, Route
from support.records.peers import network, peer, view

DEMO = BACKEND.completed(network("sdn", (4, 6)), ())


def test_a_network_is_given_the_virtual_gateway() -> None:
    """The record has its addresses and MAC, and all networks have the same."""
    assert DEMO.options == {"gateway": f"{GATEWAY},fe80::4c:53ff:fe00:1", "mac": GATEWAY_MAC}
    other = network("sdn")
    assert BACKEND.completed(other, (DEMO,)).options == DEMO.options
    assert is_virtual(DEMO)
    assert gateway(DEMO)[0] == prefix(GATEWAY).single()
    assert gateway(network("vxlan")) == ()


def test_a_network_with_another_gateway_than_the_others_is_refused() -> None:
    """A host has one neighbour for all of them."""
    first = msgspec.structs.replace(DEMO, name="first")
    with pytest.raises(Conflict, match="differs from that of the other networks"):
        BACKEND.completed(network("sdn", mac="02:00:00:00:00:09"), (first,))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gateway": "192.0.2.254"}, "has no MAC"),
        ({"mac": "01:00:00:00:00:01"}, "network demo: --opt mac: 01:00:00:00:00:01 is not a unicast MAC"),
        ({"gateway": "10.77.0.254", "mac": GATEWAY_MAC}, "in its own pool"),
        ({"gateway": "x", "mac": GATEWAY_MAC}, "not an IP address"),
        ({"vni": "7"}, "unknown to backend sdn"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, str], said: str) -> None:
    """Each error says what is wrong with the option."""
    with pytest.raises(Invalid, match=said):
        BACKEND.check(msgspec.structs.replace(network("sdn"), options=options))


def test_a_host_needs_a_route_for_each_pool_and_a_neighbour_for_each_family() -> None:
    """And one element by which the gateway's packets are let in."""
    states = list(BACKEND.network(view(DEMO), DEMO))
    four, six = gateway(DEMO)
    routes = {s.destination: s for s in states if isinstance(s, Route) and s.device == "eth0"}
    assert {str(p): (r.gateway, r.onlink) for p, r in routes.items()} == {
        "10.77.0.0/16": (four.packed, True), "fd77::/48": (six.packed, True),
    }  # fmt: skip
    assert [s for s in states if isinstance(s, Neighbour)] == [
        Neighbour("eth0", four.packed, mac(GATEWAY_MAC)), Neighbour("eth0", six.packed, mac(GATEWAY_MAC)),
    ]  # fmt: skip
    assert element("gateways", "eth0", GATEWAY_MAC) in states


def test_a_peer_costs_a_host_nothing() -> None:
    """But one that does not receive by the switches is named."""
    assert list(BACKEND.peer(view(DEMO), DEMO, peer(DEMO, {}))) == []
    with pytest.raises(Unavailable, match="h2 does not receive by sdn"):
        list(BACKEND.peer(view(DEMO), DEMO, peer(DEMO, None)))


def test_a_router_that_is_there_is_left_to_the_kernel() -> None:
    """Its neighbour entry is not ours: the host's own traffic goes by it."""
    demo = BACKEND.completed(network("sdn", gateway="192.0.2.254", mac="02:00:00:00:00:09"), ())
    states = list(BACKEND.network(view(demo), demo))
    assert not [s for s in states if isinstance(s, Neighbour)]
    (route,) = [s for s in states if isinstance(s, Route) and s.device]
    assert route.gateway == prefix("192.0.2.254").packed
    six = BACKEND.completed(network("sdn", (6,), gateway="192.0.2.254", mac="02:00:00:00:00:09"), ())
    with pytest.raises(Invalid, match="no address of IPv6"):
        list(BACKEND.network(view(six), six))
