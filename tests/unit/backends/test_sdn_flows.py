"""Flows of switches, and what they do with packets: walked like a trace walks them."""

from __future__ import annotations

import re

import msgspec
import pytest

from linkspan.backends.sdn.backend import GATEWAY
from linkspan.backends.sdn.flows import spared, switches
from linkspan.core.addresses import GATEWAY_MAC, prefix
from linkspan.core.states.openflow import Claim, Counted, Flow, Held, Map, Port, Seen, Served
from linkspan.diagnose.trace.packet import Packet
from linkspan.diagnose.trace.parts import Entry, Part
from linkspan.diagnose.trace.switches import Underlay, part
from linkspan.kernel.drivers.openflow import added, parsed

MACS = {"h1": "06:00:00:00:00:01", "h2": "06:00:00:00:00:02"}
OUTER = {"h1": "192.0.2.1", "h2": "192.0.2.2", "h3": "192.0.2.3"}
WHERE = Map(
    ("left", "right"),
    (("h1", ("left", 3)), ("h2", ("right", 4))),
    ((("left", 1), "right", 1), (("right", 2), "left", 1)),
    (("left", (1, 3)), ("right", (2, 4))),
)


def _served(name: str, pool: str, *, closed: bool = True, allowed: tuple[str, ...] = ()) -> Served:
    return Served(name, (prefix(pool),), (prefix(GATEWAY),), GATEWAY_MAC, closed, allowed)


def _held(*networks: Served, claims: tuple[tuple[str, str, str], ...]) -> Held:
    found = (Claim(name, prefix(text), host) for name, text, host in claims)
    return Held(networks, tuple(sorted(found)), tuple(MACS.items()))


DEMO = _served("demo", "10.1.0.0/16")
CLAIMS = (("demo", "10.1.1.0/24", "h1"), ("demo", "10.1.2.0/24", "h2"))
HELD = _held(DEMO, claims=CLAIMS)


def _walk(
    held: Held, source: str, target: str, *, sender: str = "h1", where: Map = WHERE, to: Packet | None = None,
    foreign: str = "",
) -> Part:  # fmt: skip
    """Walk with a ping, or a packet like ``to``; ``foreign`` is the match of somebody else's flow that drops."""
    flows = switches(held, where)
    others = [Counted(Flow(0, 65535, tuple(foreign.split(",")), "drop", 0), 0, 0, ours=False)] if foreign else []
    ports = tuple(Port(n, f"p{n}", up=True) for n in range(1, 5))
    known = Underlay(
        held, where, {name: Seen(ports) for name in where.switches},
        {host: (host, (prefix(text).packed,), 1500) for host, text in OUTER.items()}, {},
        lambda name: [*others, *(Counted(one, 0, 0, ours=True) for one in flows[name])],
    )  # fmt: skip
    packet = msgspec.structs.replace(to or Packet(b"", b""), source=prefix(source).packed, target=prefix(target).packed)
    return part(known, Entry(packet, at=prefix(OUTER[sender]).packed))


def test_a_packet_goes_from_switch_to_switch_to_its_host() -> None:
    """In by the sender's port, over the link, out by the target's."""
    found = _walk(HELD, "10.1.1.9", "10.1.2.9")
    assert (found.broken, found.to) == ("", "h2")
    assert [(hop.host, hop.action) for hop in found.hops] == [
        ("left", "matched"), ("left", "matched"), ("left", "switched"), ("right", "matched"), ("right", "switched"),
    ]  # fmt: skip


@pytest.mark.parametrize(("match", "fits"), [
    ("tcp,tp_dst=80", True), ("tcp,tp_dst=81", False), ("tcp,tp_src=53", False), ("tcp,tp_src=40000", None),
    ("tcp,tp_src=0x8000/0x8000", None),
])  # fmt: skip
def test_a_flow_for_a_port_takes_what_has_it_for_certain(match: str, fits: bool | None) -> None:
    """The port of a client is one of those that its kernel chooses from."""
    client = Packet(b"", b"", "tcp", 80).sent_by((32768, 60999))
    found = _walk(HELD, "10.1.1.9", "10.1.2.9", to=client, foreign=match)
    assert (bool(found.broken), bool(found.unknown)) == (fits is True, fits is None)


def test_what_a_host_does_not_hold_it_cannot_send() -> None:
    """A foreign prefix, or an address in no pool, is dropped where it enters the network."""
    for source, holder in (("10.1.2.7", "host h2"), ("203.0.113.5", "nobody")):
        found = _walk(HELD, source, "10.1.2.9")
        assert f"switch left drops it: the host at that port does not have {source}; {holder} has it" in found.broken


def test_an_address_that_nobody_holds_is_dropped() -> None:
    """And named as such."""
    assert "nobody has 10.1.9.9" in _walk(HELD, "10.1.1.9", "10.1.9.9").broken


def test_networks_are_isolated_unless_they_are_allowed() -> None:
    """Both ways, for which of the two may begin is the hosts' to hold."""
    claims = (*CLAIMS, ("web", "10.9.2.0/24", "h2"))
    apart = _held(DEMO, _served("web", "10.9.0.0/16"), claims=claims)
    assert "isolated" in _walk(apart, "10.1.1.9", "10.9.2.9").broken
    names = (_served("demo", "10.1.0.0/16", allowed=("web",)), _served("web", "10.9.0.0/16", allowed=("demo",)))
    open_ = _held(*names, claims=claims)
    assert _walk(open_, "10.1.1.9", "10.9.2.9").to == "h2"
    assert _walk(open_, "10.9.2.9", "10.1.1.9", sender="h2").to == "h1"


def test_an_exact_address_wins_over_the_block_that_it_is_in() -> None:
    """The longest prefix does, wherever it lives."""
    held = _held(DEMO, claims=(*CLAIMS, ("demo", "10.1.1.77/32", "h2")))
    assert _walk(held, "10.1.1.9", "10.1.1.77").to == "h2"
    assert _walk(held, "10.1.1.77", "10.1.1.9", sender="h2").to == "h1"


def test_a_host_without_a_way_is_not_sent_to() -> None:
    """Its switch is cut off: packets for it end at the first switch, and count as unknown there."""
    alone = Map(WHERE.switches, WHERE.places, ())
    assert "or its host is not found" in _walk(HELD, "10.1.1.9", "10.1.2.9", where=alone).broken


def test_a_prefix_costs_two_flows_at_its_own_switch() -> None:
    """And one at any other."""
    one = _held(DEMO, claims=CLAIMS[:1])
    fewer, more = switches(one, WHERE), switches(HELD, WHERE)
    assert len(more["right"]) - len(fewer["right"]) == 2
    assert len(more["left"]) - len(fewer["left"]) == 1


def _kept(held: Held, where: Map, switch: str, *, whole: bool, before: Map = WHERE) -> list[Flow]:
    """Return what stays in a switch of the flows for what was known before, beside those for what is known now."""
    there = switches(HELD, before)[switch]
    return spared(held, where, switch, there, switches(held, where).get(switch, []), whole=whole)


def test_what_another_controller_put_stays_while_a_switch_was_never_seen() -> None:
    """Right does not answer: left keeps h2's flows and the port towards right; once all is seen, they go."""
    where = Map(("left",), (("h1", ("left", 3)),), (), WHERE.ports)
    kept = _kept(HELD, where, "left", whole=False)
    assert sorted(one.kind for one in kept) == ["forward", "gateway", "gateway", "transit", "transit"]
    assert {part for one in kept for part in one.match if part.startswith("nw_dst")} == {"nw_dst=10.1.2.0/24"}
    assert {*kept, *switches(HELD, where)["left"]} == set(switches(HELD, WHERE)["left"])
    assert _kept(HELD, where, "left", whole=True) == []


def test_a_host_that_is_not_found_yet_keeps_its_own_flows() -> None:
    """At its last port, until the map is complete; but not if another host has its prefix or its MAC now."""
    nobody = Map(WHERE.switches, (), WHERE.links, WHERE.ports)
    kept = _kept(HELD, nobody, "left", whole=False)
    assert {*kept, *switches(HELD, nobody)["left"]} == set(switches(HELD, WHERE)["left"])
    gone = _held(DEMO, claims=CLAIMS[1:])
    assert "source" not in {one.kind for one in _kept(gone, nobody, "left", whole=False)}
    changed = msgspec.structs.replace(HELD, macs=(("h1", "06:00:00:00:00:07"), ("h2", MACS["h2"])))
    assert "source" not in {one.kind for one in _kept(changed, nobody, "left", whole=False)}


def test_a_host_that_was_found_keeps_no_old_flow() -> None:
    """It is at another port, or switch: what led in and out at the old one goes at once."""
    moved = Map(WHERE.switches, (("h1", ("right", 3)), ("h2", ("right", 4))), WHERE.links)
    assert _kept(HELD, moved, "left", whole=False) == []


def test_a_port_with_a_host_is_no_more_trusted() -> None:
    """A host is connected where a switch was: no packet from there has been checked."""
    where = Map(("left",), (("h1", ("left", 1)),), ())
    assert "gateway" not in {one.kind for one in _kept(HELD, where, "left", whole=False)}


def test_hosts_with_one_mac_keep_the_flows_that_are_there() -> None:
    """A controller that starts does not know which of them was seen; it moves nobody."""
    twins = msgspec.structs.replace(HELD, macs=(("h1", MACS["h1"]), ("h2", MACS["h2"]), ("h9", MACS["h1"])))
    where = Map(WHERE.switches, (("h2", ("right", 4)),), WHERE.links)
    kinds = sorted(one.kind for one in _kept(twins, where, "left", whole=True))
    assert kinds == ["forward", "source", "transit"]


def test_hosts_with_one_mac_are_told_apart_by_their_prefixes() -> None:
    """At any switch on the way: packets for one host do not leave by the other's port."""
    claims = (*CLAIMS, ("demo", "10.1.3.0/24", "h3"))
    twins = msgspec.structs.replace(
        _held(DEMO, claims=claims), macs=(("h1", MACS["h1"]), ("h2", MACS["h2"]), ("h3", MACS["h1"]))
    )
    places = (("h1", ("left", 3)), ("h2", ("right", 4)), ("h3", ("left", 4)))
    where = msgspec.structs.replace(WHERE, places=places)
    for target, host in (("10.1.1.9", "h1"), ("10.1.3.9", "h3")):
        found = _walk(twins, "10.1.2.9", target, sender="h2", where=where)
        assert (found.broken, found.to) == ("", host)
    flows = switches(twins, where)["left"]
    assert len({flow.key for flow in flows}) == len(flows)


def test_the_edge_is_open_while_a_network_migrates() -> None:
    """A tunnel's or host-gw's own packets are not dropped, for peers still send so."""
    closed = {flow.kind for flow in switches(HELD, WHERE)["left"] if flow.table == 0}
    open_ = _held(_served("demo", "10.1.0.0/16", closed=False), claims=CLAIMS)
    assert "past" in closed
    assert "past" not in {flow.kind for flow in switches(open_, WHERE)["left"] if flow.table == 0}


def test_without_a_network_a_switch_has_no_flow_of_ours() -> None:
    """All of them go with the last network."""
    assert switches(Held(), WHERE) == {"left": [], "right": []}


def test_what_is_noted_of_one_port_takes_no_room_of_another() -> None:
    """A host that answers with ever new MACs meets the limit of its own port: the notes' cookie counts them."""
    notes = [flow for flow in switches(HELD, WHERE)["left"] if flow.kind == "sighting"]
    assert {part for flow in notes for part in flow.match if part.startswith("in_port")} == {"in_port=1", "in_port=3"}
    cookies = {(flow.match[-1], *re.findall("cookie=0x[0-9a-f]+", flow.actions)) for flow in notes}
    assert [port for port, _ in sorted(cookies)] == ["in_port=1", "in_port=3"]
    assert len({cookie for _, cookie in cookies}) == 2
    assert all("limit=256" in flow.actions for flow in notes)


def test_every_kind_of_flow_is_told_by_its_cookie() -> None:
    """Kind and subject; equal subjects of two kinds differ."""
    flows = switches(HELD, WHERE)["left"]
    assert {flow.kind for flow in flows} >= {"sighting", "answer", "gateway", "source", "forward", "transit", "forged"}
    assert len({flow.key for flow in flows}) == len(flows)


def test_a_flow_is_the_same_when_it_is_read_back() -> None:
    """As dump-flows prints it, in its own order of the match and with counters."""
    line = (
        " cookie=0x4c530304d2aabbcc, duration=25.633s, table=101, n_packets=7, n_bytes=98, hard_timeout=30, "
        "idle_age=25, priority=124,ip,in_port=1,dl_src=06:00:00:00:00:01,nw_src=10.1.1.0/24 "
        "actions=write_metadata:0x5,goto_table:102"
    )
    found = parsed(line)
    assert (found.packets, found.octets, found.ours, found.flow.table) == (7, 98, True, 101)
    assert found.flow.match == ("dl_src=06:00:00:00:00:01", "in_port=1", "ip", "nw_src=10.1.1.0/24")
    assert parsed(f" n_packets=0, n_bytes=0, {added(found.flow)}".replace(",table", ", table")).flow == found.flow
    plain = parsed(" cookie=0x0, duration=1s, table=0, n_packets=1, n_bytes=2, priority=0 actions=NORMAL")
    assert (plain.flow.match, plain.flow.actions, plain.ours) == ((), "NORMAL", False)
