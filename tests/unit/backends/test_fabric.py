"""Fabric: the places of hosts and links, from what switches have seen."""

from __future__ import annotations

import pytest

from linkspan.backends.sdn.fabric import SILENT_COST, Fabric
from linkspan.core.states.openflow import Map, Port, Seen, Spot

H1, H2 = "06:00:00:00:00:01", "06:00:00:00:00:02"
NAMES = ("spine", "left", "right")


def _probe(spot: Spot) -> str:
    return f"0e:00:00:00:0{NAMES.index(spot[0])}:0{spot[1]}"


LINKS = {
    ("spine", 1): ("left", 1), ("spine", 2): ("right", 1), ("left", 2): ("right", 2),
}  # fmt: skip
BOTH: dict[Spot, Spot] = {**LINKS, **{b: a for a, b in LINKS.items()}}
PROBES = {_probe((name, number)): (name, number) for name in NAMES for number in range(1, 5)}


def _seen(
    hosts: dict[Spot, str], down: tuple[Spot, ...] = (), unheard: tuple[Spot, ...] = ()
) -> dict[str, Seen]:
    """Return a triangle of switches, hosts at ports 3 and 4, some ports down and some links not heard."""
    found = {}
    for name in NAMES:
        ports = tuple(Port(n, f"p{n}", (name, n) not in down) for n in range(1, 5))
        notes = [(n, _probe(there)) for (here, n), there in BOTH.items() if here == name and (here, n) not in unheard]
        notes += [(n, mac) for (here, n), mac in hosts.items() if here == name]
        found[name] = Seen(ports, tuple(notes))
    return found


def _take(fabric: Fabric, seen: dict[str, Seen], now: float = 100.0, macs: dict[str, str] | None = None) -> Map:
    return fabric.take(seen, macs or {"h1": H1, "h2": H2}, PROBES, now)


def test_hosts_are_found_and_the_short_way_is_taken() -> None:
    """Left to right goes by their own link."""
    where = _take(Fabric(), _seen({("left", 3): H1, ("right", 3): H2}))
    assert where.places == (("h1", ("left", 3)), ("h2", ("right", 3)))
    assert where.ways("right") == {"left": 2, "spine": 2}
    assert where.trunks("left") == (1, 2)


def test_a_link_that_is_down_is_gone_round() -> None:
    """By the spine, and nothing is sent into the dead port."""
    fabric = Fabric()
    _take(fabric, _seen({}))
    where = _take(fabric, _seen({}, down=(("left", 2),)))
    assert where.ways("right") == {"left": 1, "spine": 2}


def test_a_link_that_is_silent_is_used_where_no_other_is_left() -> None:
    """Its ports are up, and nobody hears: the last choice, but one."""
    fabric = Fabric()
    _take(fabric, _seen({}))
    where = _take(fabric, _seen({}, unheard=(("left", 2),)))
    assert where.ways("right")["left"] == 1
    where = _take(fabric, _seen({}, unheard=(("left", 2),), down=(("left", 1),)))
    assert where.ways("right")["left"] == 2


def test_a_link_that_flaps_is_taken_up_later_each_time() -> None:
    """After its first fall at once; after the third, in four seconds."""
    fabric, now = Fabric(), 100.0
    costs = []
    for _ in range(3):
        _take(fabric, _seen({}), now)
        _take(fabric, _seen({}, down=(("left", 2),)), now + 0.5)
        now += 1
        costs.append({link[0]: link[2] for link in _take(fabric, _seen({}), now).links}["left", 2])
    assert costs == [1, SILENT_COST, SILENT_COST]
    later = {link[0]: link[2] for link in _take(fabric, _seen({}), now + 4).links}
    assert later["left", 2] == 1


def test_a_host_stays_where_it_was_while_its_port_is_down_or_the_switch_forgot_it() -> None:
    """A port that flaps changes no flow."""
    fabric = Fabric()
    _take(fabric, _seen({("left", 3): H1}))
    assert _take(fabric, _seen({}, down=(("left", 3),))).places == (("h1", ("left", 3)),)
    assert _take(fabric, _seen({})).places == (("h1", ("left", 3)),)


def test_a_host_that_moved_is_followed() -> None:
    """It is seen at a new port, and no longer at the old one."""
    fabric = Fabric()
    _take(fabric, _seen({("left", 3): H1}))
    assert _take(fabric, _seen({("right", 4): H1})).places == (("h1", ("right", 4)),)
    assert fabric.doubles == {}


def test_a_mac_at_two_ports_stays_at_the_first_and_is_named() -> None:
    """A later claim gets nothing."""
    fabric = Fabric()
    _take(fabric, _seen({("left", 3): H1}))
    where = _take(fabric, _seen({("left", 3): H1, ("right", 4): H1}))
    assert where.places == (("h1", ("left", 3)),)
    assert fabric.doubles["h1"] == f"its MAC {H1} is seen at left port 3 and at right port 4"


def test_a_mac_that_two_hosts_have_moves_neither() -> None:
    """The one that was there first continues at its port, wherever the MAC is seen; the second gets none."""
    fabric = Fabric()
    _take(fabric, _seen({("left", 3): H1}), macs={"h1": H1})
    where = _take(fabric, _seen({("right", 4): H1}), macs={"h1": H1, "h9": H1})
    assert where.places == (("h1", ("left", 3)),)
    assert _take(fabric, _seen({("right", 4): H1}), macs={"h1": H1}).places == (("h1", ("right", 4)),)


def test_what_one_end_alone_has_heard_is_no_link() -> None:
    """A host that sends on what a switch says of itself does not make its own port a trusted one."""
    fabric = Fabric()
    seen = _seen({}, unheard=(("left", 2), ("left", 1), ("spine", 1)))
    links = {link[0] for link in _take(fabric, seen).links}
    assert links == {("spine", 2), ("right", 1)}
    forged = _seen({})
    forged["right"] = Seen(forged["right"].ports, (*forged["right"].notes, (4, _probe(("spine", 1)))))
    where = _take(fabric, forged)
    assert ("right", 4) not in {link[0] for link in where.links}
    assert {(here, there) for here, there, _ in where.links} == {(a, b[0]) for a, b in BOTH.items()}


def _through(seen: dict[str, Seen], one: Spot, other: Spot) -> dict[str, Seen]:
    """Return what is seen if two ports hear each other as well, through a switch that forwards LLDP frames."""
    for here, there in ((one, other), (other, one)):
        was = seen[here[0]]
        seen[here[0]] = Seen(was.ports, (*was.notes, (here[1], _probe(there))))
    return seen


def _ends(where: Map) -> set[tuple[Spot, str]]:
    return {(here, there) for here, there, _ in where.links}


ALL = {(here, there[0]) for here, there in BOTH.items()}


def test_what_comes_by_a_switch_without_flows_misleads_nobody() -> None:
    """It sends on what it should note: a host, and switches, are heard at a port that leads to it."""
    fabric = Fabric()
    seen = _through(_seen({("right", 3): H2, ("left", 2): H2}), ("left", 2), ("spine", 2))
    where = _take(fabric, seen)
    assert where.places == (("h2", ("right", 3)),)
    assert fabric.doubles == {}
    assert _ends(where) == ALL
    known = _take(fabric, _seen({}))
    assert _take(fabric, seen).links == known.links


@pytest.mark.parametrize("answers", [False, True])
def test_a_switch_that_starts_without_flows_keeps_its_links(answers: bool) -> None:
    """Its neighbours hear each other through it, and it has heard nobody: its cables are where they were."""
    fabric = Fabric()
    _take(fabric, _seen({}))
    mute = (("right", 1), ("right", 2), ("left", 2), ("spine", 2))
    seen = _through(_seen({}, unheard=mute), ("left", 2), ("spine", 2))
    if not answers:
        del seen["right"]
    for now in (100.6, 103.0, 107.0):
        where = _take(fabric, seen, now)
        assert _ends(where) == ALL
    assert where.ways("spine")["left"] == 1


def test_a_link_through_a_switch_without_flows_ends_when_that_switch_is_heard() -> None:
    """A controller that starts knows no other. What was heard through the switch is still noted for seconds."""
    fabric = Fabric()
    mute = (("right", 1), ("right", 2), ("left", 2), ("spine", 2))
    where = _take(fabric, _through(_seen({}, unheard=mute), ("left", 2), ("spine", 2)))
    assert (("left", 2), "spine") in _ends(where)
    where = _take(fabric, _through(_seen({}), ("left", 2), ("spine", 2)), 100.6)
    assert _ends(where) == ALL


def test_a_cable_that_was_moved_is_a_link_at_once() -> None:
    """From right's port 2 to spine's port 3: right's port is down, or another cable is in it."""
    moved = {"unheard": (("left", 2), ("right", 2))}
    for down in ((("right", 2),), ()):
        fabric = Fabric()
        _take(fabric, _seen({}))
        seen = _through(_seen({}, down=down, **moved), ("left", 2), ("spine", 3))
        if not down:
            seen = _through(seen, ("right", 2), ("spine", 4))
        ends = _ends(_take(fabric, seen, 100.6))
        assert {(("left", 2), "spine"), (("spine", 3), "left")} <= ends
        assert (("left", 2), "right") not in ends


def test_a_cable_that_was_moved_away_from_a_dead_switch_is_a_link_after_a_minute() -> None:
    """Until then the switch may be one that forwards what it should note."""
    fabric = Fabric()
    _take(fabric, _seen({}))
    seen = _through(_seen({}, unheard=(("left", 2), ("spine", 2))), ("left", 2), ("spine", 2))
    del seen["right"]
    ends = {now: _ends(_take(fabric, seen, now)) for now in (101.0, 130.0, 159.0, 162.0, 163.0)}
    assert (("left", 2), "right") in ends[159.0]
    assert (("left", 2), "spine") in ends[163.0]


def test_links_of_a_switch_that_does_not_answer_are_not_forgotten() -> None:
    """It cannot identify itself, but still forwards packets."""
    fabric = Fabric()
    _take(fabric, _seen({}))
    rest = {name: one for name, one in _seen({}, unheard=(("left", 2), ("spine", 2))).items() if name != "right"}
    for later in range(10, 200, 10):
        where = _take(fabric, rest, 100.0 + later)
    assert {(here, there) for here, there, _ in where.links} == {(a, b[0]) for a, b in BOTH.items()}
    assert {cost for here, there, cost in where.links if "right" in (here[0], there)} == {SILENT_COST}


def test_a_switch_that_does_not_answer_is_as_it_was() -> None:
    """Nothing changes for the others."""
    fabric = Fabric()
    whole = _seen({("left", 3): H1, ("right", 3): H2})
    before = _take(fabric, whole)
    assert _take(fabric, {name: one for name, one in whole.items() if name != "right"}) == before


def test_a_port_that_led_to_a_switch_and_has_a_host_now_is_no_link() -> None:
    """Nor one behind which nobody was heard for long: what comes in there is believed to have been checked."""
    fabric = Fabric()
    _take(fabric, _seen({}))
    changed = _seen({("left", 2): H1}, unheard=(("left", 2), ("right", 2)))
    assert ("left", 2) not in {link[0] for link in _take(fabric, changed).links}
    silent = _seen({}, unheard=(("left", 1), ("spine", 1)))
    assert ("left", 1) in {link[0] for link in _take(fabric, silent, 130.0).links}
    assert ("left", 1) not in {link[0] for link in _take(fabric, silent, 161.0).links}
