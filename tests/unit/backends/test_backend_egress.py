"""Egress addresses: what a host and a peer need, by who holds the address; which networks may have one."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from linkspan.backends import backend
from linkspan.cluster.network_plans import InUse, left_by, migrated
from linkspan.core import egress
from linkspan.core.addresses import prefix, whole
from linkspan.core.errors import Conflict, Invalid, LinkspanError, NotFound
from linkspan.core.model import Egress, Host, Network, Underlay
from linkspan.core.program import Program
from linkspan.core.ruleset import element
from linkspan.core.states.host import (
    HOST,
    UNREACHABLE_METRIC,
    NftElement,
    PolicyRule,
    Route,
    State,
    TunnelExit,
)
from linkspan.core.states.programs import IpipHelper, Process
from support.records.peers import network, peer, view

EXIT = "192.0.2.100"
OFFER = {"mac": "02:00:00:00:00:02", "address": "192.0.2.2"}


def leaving(name: str, **options: str) -> Network:
    """Return a network that leaves by the address."""
    return replace(network(name, (4,), 1500, **options), egress=(Egress(EXIT),))


def seen(one: Network, holder: str) -> Any:
    """Return the view of a host, h1's, when another host holds the address."""
    return replace(view(one), exits={(one.name, 4): holder} if holder else {})


def elements(states: set[State], name: str) -> set[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return the elements of a set."""
    return {(s.parts, s.data) for s in states if isinstance(s, NftElement) and s.set == name}


HELPER = IpipHelper(("python", "endpoint.py"), ("--exits", "exits"))
WAYS = [("vxlan", {"vni": "100"}), ("host-gw", {}), ("ipip", {}), ("bgp", {})]
"""The backends whose networks may leave by an address, with options."""


@pytest.mark.parametrize(("name", "options"), WAYS)
def test_the_holder_translates_and_the_others_lead_there(name: str, options: dict[str, str]) -> None:
    """Without a holder the others have the unreachable route alone; nobody masquerades the network."""
    demo, mark = leaving(name, **options), egress.MARK | egress.numbers([leaving(name, **options)])["demo"]
    table, pool = egress.TABLES + (mark & 0xFFFF), str(demo.prefixes[0])
    way = backend(name)
    away = {
        Route(whole(4), metric=UNREACHABLE_METRIC, table=table),
        PolicyRule(HOST, egress.PRIORITY, whole(4), table, mark=mark),
    }
    for holder in ("", "id2", "id1"):
        states = set(way.network(seen(demo, holder), demo))
        here = holder == "id1"
        assert (away <= states) == (not here)
        assert elements(states, "egress_by4") == ({((pool,), (EXIT,))} if here else set())
        assert elements(states, "egress_marks4") == (set() if here else {((pool,), (str(mark),))})
        assert elements(states, "egress_nets4") == {((pool,), ())}
        assert not elements(states, "masquerade4")
        by_peer = set(way.peer(seen(demo, holder), demo, peer(demo, OFFER)))
        led = {s for s in by_peer if isinstance(s, Route) and s.table}
        assert bool(led) == (holder == "id2")
        assert all((r.destination, r.table) == (whole(4), table) for r in led)
        hops = elements(by_peer, "egress_hops4")
        assert hops == ({(("192.0.2.2",), ())} if holder == "id2" and name in ("host-gw", "bgp") else set())


def test_answers_are_let_in_by_the_holder_s_way_alone() -> None:
    """By the device of the network and the MAC of the holder's VTEP."""
    demo = leaving("vxlan", vni="100")
    let_in = element("egress_ways", "lsx64", OFFER["mac"])
    assert let_in in set(backend("vxlan").peer(seen(demo, "id2"), demo, peer(demo, OFFER)))
    assert let_in not in set(backend("vxlan").peer(seen(demo, "id3"), demo, peer(demo, OFFER)))


@pytest.mark.parametrize("helped", [False, True], ids=["kernel", "helper"])
def test_ipip_leads_to_the_holder_and_admits_answers_from_it_alone(helped: bool) -> None:
    """The kernel's device by the next hop, and a mark on what the holder sends; the helper by its second table."""
    demo = leaving("ipip")
    programs: tuple[Program, ...] = (HELPER,) if helped else ()
    far = prefix("192.0.2.2").packed
    table = egress.TABLES + egress.numbers([demo])["demo"]
    found = {}
    for holder in ("id2", "id3"):
        known = replace(seen(demo, holder), facts=view(demo, programs=programs).facts)
        found[holder] = set(backend("ipip").peer(known, demo, peer(demo, {"address": "192.0.2.2"})))
        processes = [s for s in backend("ipip").network(known, demo) if isinstance(s, Process)]
        assert ["--exits" in process.argv for process in processes] == [True] * helped
    more = {
        Route(whole(4), "lsipip", b"" if helped else far, onlink=not helped, table=table),
        element("egress_links", "lsipip"),
        element("egress_tunnels", "lsipip", "0" if helped else str(0x4C540000)),
        TunnelExit(demo.prefixes[0], far) if helped else element("ipip_holders", "192.0.2.2"),
    }
    assert found["id2"] - found["id3"] == more


def test_a_helper_without_networks_that_leave_elsewhere_runs_as_before() -> None:
    """Another argv would be another process, and cut all tunnels."""
    demo = network("ipip")
    (process,) = [s for s in backend("ipip").network(view(demo, programs=(HELPER,)), demo) if isinstance(s, Process)]
    assert "--exits" not in process.argv


def test_bgp_leads_to_a_holder_on_the_segment_alone() -> None:
    """A router would send the packets elsewhere: then nothing leaves, and `status` says why."""
    demo, way = leaving("bgp"), backend("bgp")
    told = {}
    for on_link in (True, False):
        other = peer(demo, {}, on_link=on_link)
        known = replace(seen(demo, "id2"), peers=(other,))
        host = replace(known.host, settings={"bgp.next-hops": "any"})
        states = set(way.peer(replace(known, host=host), demo, other))
        assert any(isinstance(s, Route) and s.table for s in states) == on_link
        told[on_link] = list(way.troubles(known))
    assert told[True] == []
    (text,) = told[False]
    assert text.startswith(f"network demo: host h2, which holds its egress address {EXIT}, is not on this host's")


def test_networks_have_numbers_of_their_own() -> None:
    """The same on every host, whatever their order; a network without an address has none."""
    many = [replace(leaving("vxlan", vni="1"), name=f"n{number}") for number in range(2000)]
    found = egress.numbers(many)
    assert found == egress.numbers(many[::-1])
    assert len(set(found.values())) == len(many)
    assert all(0 < number < 65536 for number in found.values())
    assert egress.numbers([network("vxlan", vni="1")]) == {}


HOSTS = tuple(
    Host(id=f"id{n}", name=f"h{n}", underlay=Underlay("eth0", (f"192.0.2.{n}/24",)), egresses=True) for n in (1, 2)
)


@pytest.mark.parametrize(
    ("texts", "change", "why", "error"),
    [
        (["10.77.9.9"], {}, r"is in a pool of network demo", Conflict),
        (["192.0.2.2"], {}, r"192\.0\.2\.2 is host h2's own", Conflict),
        (["fd02::9"], {}, r"has no pool of IPv6", Invalid),
        ([EXIT, "192.0.2.101"], {}, r"two egress addresses of one family", Invalid),
        ([f"{EXIT},host=h9"], {}, r"host 'h9' does not exist", NotFound),
        ([f"{EXIT},on=h1"], {}, r"is not understood", Invalid),
        (["192.0.2.0/24"], {}, r"--egress 192\.0\.2\.0/24", Invalid),
        (["outside"], {}, r"--egress outside", Invalid),
        ([EXIT], {"internal": True}, r"is internal: nothing leaves it", Invalid),
        ([EXIT], {"masquerade": False}, r"keeps its containers' addresses", Invalid),
        ([EXIT], {"backend": "wireguard", "options": {}}, r"WireGuard chooses the peer by a packet's target", Invalid),
        ([EXIT], {"backend": "bridge", "options": {}}, r"of backend bridge cannot have .* on one host", Invalid),
    ],
)
def test_a_network_that_cannot_leave_by_an_address_says_why(
    texts: list[str], change: dict[str, Any], why: str, error: type[LinkspanError]
) -> None:
    """Before anything is written."""
    demo = replace(network("vxlan", vni="100"), **change)
    with pytest.raises(error, match=why) as refused:
        left_by(demo, texts, InUse((demo,), HOSTS))
    assert refused.value.hint


def test_an_address_is_one_network_s_on_hosts_that_all_know_it() -> None:
    """Another network's is refused, and so is any while an agent does not know egress addresses."""
    demo = network("vxlan", vni="100")
    made = left_by(demo, [f"{EXIT},host=h2"], InUse((demo,), HOSTS))
    assert made.egress == (Egress(EXIT, "id2", 1),)
    assert left_by(made, [f"{EXIT},host=h2"], InUse((made,), HOSTS)).egress == (Egress(EXIT, "id2", 2),)
    assert left_by(made, [], InUse((made,), HOSTS)).egress == ()
    other = replace(network("vxlan", vni="200"), name="other", pools=("10.78.0.0/16",))
    with pytest.raises(Conflict, match=r"192\.0\.2\.100 is network demo's"):
        left_by(other, [EXIT], InUse((made, other), HOSTS))
    old = (HOSTS[0], replace(HOSTS[1], egresses=False))
    with pytest.raises(Conflict, match="host h2 is of a version without egress addresses"):
        left_by(demo, [EXIT], InUse((demo,), old))


def test_a_drained_host_cannot_be_asked_to_hold_it() -> None:
    """It gives up what it holds, too."""
    demo, drained = network("vxlan", vni="100"), (HOSTS[0], replace(HOSTS[1], settings={"drained": "1"}))
    with pytest.raises(Conflict, match="host h2 is drained, so it holds no egress address") as refused:
        left_by(demo, [f"{EXIT},host=h2"], InUse((demo,), drained))
    assert refused.value.hint.endswith("linkspan host undrain h2")
    assert left_by(demo, [EXIT], InUse((demo,), drained)).egress


def test_such_a_network_does_not_migrate_to_a_backend_that_cannot() -> None:
    """It would lose its way out."""
    demo = leaving("vxlan", vni="100")
    with pytest.raises(Invalid, match="has an egress address, which it cannot have with backend wireguard: WireGuard"):
        migrated(demo, "wireguard", {}, [demo], Underlay("eth0", ("192.0.2.1/24",)), [], [])


def test_an_address_is_parsed() -> None:
    """Its family follows from it."""
    assert Egress("fd00::1").prefix == prefix("fd00::1/128")
