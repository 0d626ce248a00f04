"""Containers across real routers: FRR and BIRD carry the pools by BGP, with no tunnel and no static route for them."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from linkspan.core.addresses import prefix
from linkspan.core.errors import NotFound
from linkspan.lab import router_frr, routers, topology
from linkspan.lab.topology import CLUSTER_AS, HOLD
from support.lab.cluster_runs import ClusterRun
from support.lab.lab_runs import COMMAND, LabRun
from support.polling import SHARED, until
from support.routers.bgp_raw import RawPeer

BIRD = pytest.mark.skipif(
    shutil.which("bird", path="/usr/sbin:/usr/bin") is None, reason="needs bird: apt install bird2"
)
FRR = pytest.mark.skipif(not Path("/usr/lib/frr/bgpd").exists(), reason="needs FRR: apt install frr")
POOL = prefix("10.244.0.0/16")
TUNNELS = {"vxlan", "ipip", "sit", "gre", "ip6tnl", "tun", "wireguard", "geneve"}


def routes(lab: ClusterRun, place: str, family: str = "-4") -> list[dict[str, Any]]:
    """Return the routes of a host's or router's main table that are within the pools of lab networks."""
    found = json.loads(lab.ip(place, f"-j {family} route show") or "[]")
    inner = (POOL, prefix("fd00::/8"))
    return [
        route
        for route in found
        if route["dst"] != "default"
        and any(p.holds(prefix(route["dst"])) for p in inner if p.family == prefix(route["dst"]).family)
    ]


def destinations(lab: ClusterRun, place: str) -> set[str]:
    """Return where these routes lead."""
    return {route["dst"] for route in routes(lab, place)}


def block(lab: ClusterRun, host: str) -> str:
    """Return a host's first block in the lab's network."""
    return lab.blocks(host, "demo")[0]


def made(words: str) -> Iterator[ClusterRun]:
    """Make a lab of backend bgp, and take it down at the end."""
    lab = ClusterRun()
    try:
        lab.run("up", f"--backend bgp {words}")
        yield lab
    finally:
        lab.run("down")
    assert lab.left() == []


# Two racks


@pytest.fixture(scope="module", params=[pytest.param("frr", marks=FRR), pytest.param("bird", marks=BIRD)])
def racks(request: pytest.FixtureRequest) -> Iterator[ClusterRun]:
    """Give three hosts in two racks with a router each, two stacks: h1 and h3 with r1, h2 with r2."""
    yield from made(f"--segments 2 --routers {request.param} --underlay dual")


def test_all_reach_each_other_across_routers(racks: ClusterRun) -> None:
    """Ping, TCP and full-sized packets with DF, IPv4 and IPv6, in one rack and from rack to rack."""
    found = racks.json("test")
    assert found["failed"] == []
    assert found["pairs"] == 15
    shown = racks.json("show")["routers"]
    assert [(one["name"], one["as"], one["alive"]) for one in shown] == [
        ("r1", 65001, True),
        ("r2", 65002, True),
    ]


def test_routers_have_the_pools_by_bgp_alone(racks: ClusterRun) -> None:
    """Every block is in both routers' tables, each put there by their BGP, and nobody has a tunnel device."""
    everything = {text for host in ("h1", "h2", "h3") for text in racks.blocks(host, "demo")}
    for router in ("r1", "r2"):
        until(
            lambda router=router: (
                {r["dst"] for f in ("-4", "-6") for r in routes(racks, router, f)} == everything
            ),
            f"{router} has all blocks",
        )
        for family in ("-4", "-6"):
            assert {route["protocol"] for route in routes(racks, router, family)} <= {"bgp", "bird"}
    for place in ("h1", "h2", "h3", "r1", "r2"):
        kinds = {
            link.get("linkinfo", {}).get("info_kind", "")
            for link in json.loads(racks.ip(place, "-j -d link"))
        }
        assert not kinds & TUNNELS, place


def test_hosts_of_a_rack_reach_each_other_directly(racks: ClusterRun) -> None:
    """The router hands on the other host's next hop, so what stays in the rack does not cross the router."""
    (route,) = [one for one in routes(racks, "h1") if one["dst"] == block(racks, "h3")]
    assert (route["gateway"], route["dev"]) == ("192.0.2.3", "eth0")
    (far,) = [one for one in routes(racks, "h1") if one["dst"] == block(racks, "h2")]
    assert far["gateway"] == "192.0.2.254"
    assert far["prefsrc"] == racks.host("h1")["leases"][0]["host_address"][0].partition("/")[0]


def test_trace_goes_on_behind_the_routers(racks: ClusterRun) -> None:
    """From container to container both ways, of both families; who announced the way is reported, with its path."""
    (far,) = [c["addresses"] for c in racks.json("show")["containers"] if c["name"] == "c2"]
    for address in far:
        found = json.loads(racks.exec("h1", f"linkspan trace c1 {address.partition('/')[0]} -o json"))
        assert found["reachable"], found["reason"]
        assert {hop["host"] for hop in found["hops"]} == {"h1", "h2"}
        assert any("learnt by BGP from r1, AS path 65001 65002" in hop["detail"] for hop in found["hops"])


def test_a_partition_cuts_what_crosses_the_routers(racks: ClusterRun) -> None:
    """Containers of separated hosts do not reach each other, others do; routers have their own kinds of failures."""
    racks.run("break", "h1", "partition:h2")
    assert racks.silent("c1", racks.address("c2"))
    assert racks.pings("c3", racks.address("c2"))
    racks.run("mend", "h2")
    assert racks.pings("c1", racks.address("c2"))
    assert "router-kill, link-down" in racks.run("break", "r1", "fdb-flush", code=1).stderr


def test_a_router_that_dies_is_seen_and_comes_back(racks: ClusterRun) -> None:
    """Without its only router a rack is cut off, its hosts say so, and everything is ok when the router is back."""
    far = racks.address("c2")
    racks.run("break", "r1", "router-kill")
    (shown,) = [one for one in racks.json("show")["routers"] if one["name"] == "r1"]
    assert (shown["alive"], shown["broken"]) == (False, ["router-kill"])
    until(lambda: not established(racks, "h1", "r1"), "h1 says that its router is away")
    assert "does not run" in racks.run("break", "r1", "router-kill", code=1).stderr
    racks.run("mend", "r1")
    until(lambda: established(racks, "h1", "r1"), "the session is back")
    until(lambda: racks.pings("c1", far), "c1 reaches c2 again")


def test_a_host_that_is_cut_off_is_withdrawn_within_the_hold_time(racks: ClusterRun) -> None:
    """No message is needed: the router's hold time ends, and it withdraws the host's block from the others."""
    gone = block(racks, "h3")
    until(lambda: gone in destinations(racks, "r2"), "r2 knows h3's block")
    racks.run("break", "h3", "link-down")
    until(lambda: gone not in destinations(racks, "r2"), "r2 knows it no more", (HOLD + 6) * SHARED)
    until(lambda: gone not in destinations(racks, "h1"), "nor does h1")
    racks.run("mend", "h3")
    until(lambda: gone in destinations(racks, "r2") and gone in destinations(racks, "h1"), "it is back")
    until(lambda: racks.pings("c3", racks.address("c2")), "c3 reaches c2 again")


def established(lab: ClusterRun, host: str, peer: str) -> bool:
    """Return whether a host's session with a peer that was set is up."""
    (found,) = [one for one in lab.call(host, "GET", "/v1/bgp/peers") if one["peer"] == peer]
    return bool(found["state"] == "established")


# Up and down


@BIRD
def test_down_after_up_was_killed_among_its_routers(lab: LabRun) -> None:
    """Daemons that no record names are found by their mark, and nothing is left."""
    words = ["up", "--segments", "2", "--hosts", "2", "--routers", "bird", "--lab", lab.name]
    process = subprocess.Popen([*COMMAND, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: len(lab.processes()) >= 2, "routers run")
    process.kill()
    process.wait()
    assert lab.json("down") == {"down": True}
    assert lab.left() == []


def test_what_is_not_installed_is_said_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is named."""
    monkeypatch.setattr(router_frr, "FOLDERS", ("/nowhere",))
    with pytest.raises(NotFound) as error:
        routers.require(topology.planned(topology.Wishes(segments=2, routers="frr")))
    assert "apt install frr" in error.value.hint


# Two routers in each rack


@pytest.fixture(scope="module", params=[pytest.param("frr", marks=FRR), pytest.param("bird", marks=BIRD)])
def pairs(request: pytest.FixtureRequest) -> Iterator[ClusterRun]:
    """Give two hosts in two racks with two routers each."""
    yield from made(f"--hosts 2 --segments 2 --routers {request.param} --routers-per-segment 2")


def test_two_equal_routers_are_both_used_and_one_is_enough(pairs: ClusterRun) -> None:
    """A host has both next hops to a far block; one router dies, the other carries on, and both are used again."""
    far = block(pairs, "h2")

    def hops() -> set[str]:
        found = next((one for one in routes(pairs, "h1") if one["dst"] == far), {})
        several = found.get("nexthops") or [found]
        return {hop["gateway"] for hop in several if "gateway" in hop}

    both = {"192.0.2.254", "192.0.2.252"}
    until(lambda: hops() == both, "h1 uses both routers")
    assert pairs.json("test")["failed"] == []
    (taken,) = [
        hop["detail"]
        for hop in json.loads(pairs.exec("h1", "linkspan trace c1 c2 -o json"))["hops"]
        if hop["host"] == "h1" and "learnt" in hop["detail"]
    ]
    assert ("via 192.0.2.254" in taken) == ("from r1" in taken), taken
    pairs.run("break", "r1", "router-kill")
    until(lambda: hops() == {"192.0.2.252"}, "h1 uses the one that is left", (HOLD + 6) * SHARED)
    until(lambda: pairs.pings("c1", pairs.address("c2")), "c1 reaches c2 by it")
    pairs.run("mend", "r1")
    until(lambda: hops() == both, "h1 uses both again", 40 * SHARED)


# A route reflector


@pytest.fixture(scope="module")
def reflected() -> Iterator[ClusterRun]:
    """Give five hosts without a mesh, whose only peer is a reflector of BIRD."""
    yield from made("--hosts 5 --reflector")


@BIRD
def test_a_reflector_stands_for_the_mesh(reflected: ClusterRun) -> None:
    """Each host has one session, all containers reach each other, and the reflector forwards nothing."""
    assert reflected.json("test")["failed"] == []
    for host in ("h1", "h5"):
        assert [one["peer"] for one in reflected.call(host, "GET", "/v1/bgp/peers")] == ["rr"]
    assert routes(reflected, "rr") == []
    (route,) = [one for one in routes(reflected, "h1") if one["dst"] == block(reflected, "h4")]
    assert route["gateway"] == "192.0.2.4"


@BIRD
def test_hosts_go_from_the_mesh_to_a_reflector_without_loss(reflected: ClusterRun) -> None:
    """As docs/bgp.md says: first they have both, and then the mesh ends."""
    hosts = [f"h{number}" for number in range(1, 6)]

    def established(host: str) -> set[str]:
        found = reflected.call(host, "GET", "/v1/bgp/peers")
        return {one["peer"] for one in found if one["state"] == "established"}

    with reflected.no_loss("c1", reflected.address("c4")), reflected.no_loss("c5", reflected.address("c2")):
        for mesh, others in (("true", set(hosts)), ("false", set())):
            for host in hosts:
                reflected.call(host, "PATCH", f"/v1/hosts/{host}", {"bgp.mesh": mesh})
            for host in hosts:
                wanted = {"rr"} | others - {host}
                until(lambda h=host, w=wanted: established(h) == w, f"{host} has its sessions", 40 * SHARED)
    assert reflected.json("test")["failed"] == []


@BIRD
def test_a_next_hop_behind_a_router_is_refused_unless_asked_for(reflected: ClusterRun) -> None:
    """A prefix whose next hop is not on the link is not used; with bgp.next-hops=any it is."""
    told, hop = "10.244.99.0/24", "198.51.100.77"
    reflected.run("break", "rr", "router-kill")
    peer = RawPeer(f"{reflected.name}-rr", "192.0.2.254", CLUSTER_AS, only="192.0.2.1")
    try:
        assert peer.established()
        peer.announce([told], next_hop=hop, path=[])
        peer.announce(["10.244.98.0/24"], next_hop="192.0.2.254", path=[])
        until(lambda: "10.244.98.0/24" in destinations(reflected, "h1"), "the route on the link is used")
        assert told not in destinations(reflected, "h1")
        reflected.ip("h1", "route add 198.51.100.0/24 via 192.0.2.254")
        reflected.call("h1", "PATCH", "/v1/hosts/h1", {"bgp.next-hops": "any"})
        until(lambda: told in destinations(reflected, "h1"), "h1 uses it when it may")
    finally:
        peer.close()
        reflected.call("h1", "PATCH", "/v1/hosts/h1", {"bgp.next-hops": ""})
        reflected.run("mend", "rr")
    until(lambda: told not in destinations(reflected, "h1"), "it is gone with its peer")


@BIRD
def test_a_path_with_as_0_is_refused(reflected: ClusterRun) -> None:
    """Nobody has that number (RFC 7607): the route is filtered, with the rule, and the session stays."""
    reflected.run("break", "rr", "router-kill")
    peer = RawPeer(f"{reflected.name}-rr", "192.0.2.254", CLUSTER_AS, only="192.0.2.1")
    try:
        assert peer.established()
        peer.announce(["10.244.99.0/24"], path=[65001, 0])
        peer.announce(["10.244.97.0/24"], path=[0])
        peer.announce(["10.244.98.0/24"], path=[65001])
        until(lambda: "10.244.98.0/24" in destinations(reflected, "h1"), "the sound route is used")
        assert not {"10.244.99.0/24", "10.244.97.0/24"} & set(destinations(reflected, "h1"))
        told = {p["peer"]: p["filtered_by"] for p in reflected.call("h1", "GET", "/v1/bgp/peers")}
        assert told["rr"] == {"AS 0 in its path": 2}
    finally:
        peer.close()
        reflected.run("mend", "rr")
    until(lambda: "10.244.98.0/24" not in destinations(reflected, "h1"), "it is gone with its peer")


@BIRD
def test_a_peer_that_announces_too_much_is_cut_off_at_the_limit_and_named(reflected: ClusterRun) -> None:
    """Of 5,000 routes 1,024 are taken, and the session stays up; with a larger limit all are."""
    reflected.run("break", "rr", "router-kill")
    peer = RawPeer(f"{reflected.name}-rr", "192.0.2.254", CLUSTER_AS, only="192.0.2.1")
    many = [f"10.244.{200 + number // 256}.{number % 256}" for number in range(5000)]

    def seen() -> dict[str, Any]:
        found: dict[str, Any] = next(p for p in reflected.call("h1", "GET", "/v1/bgp/peers") if p["peer"] == "rr")
        return found

    try:
        assert peer.established()
        peer.announce(many, path=[])
        until(lambda: seen()["received"] == 5000, "all have come")
        assert (seen()["state"], seen()["accepted"]) == ("established", 1024)
        until(lambda: len(set(many) & set(destinations(reflected, "h1"))) == 1024, "these are in the kernel")
        until(lambda: reflected.status("h1")["bgp"]["limited"], "status names it")
        (told,) = reflected.status("h1")["bgp"]["limited"]
        assert told["peer"] == "rr"
        assert "it announces more than 1024 prefixes" in told["why"]
        assert "bgp.peer.rr.prefixes=N" in told["fix"]
        assert "announces more than 1024 prefixes" in reflected.exec("h1", "linkspan status", code=3)
        checks = reflected.call("h1", "GET", "/v1/doctor")
        assert any(c["check"] == "BGP session rr" and c["status"] == "warn" for c in checks)
        assert any("BGP peer rr: it announces" in line for line in reflected.exec("h1", "linkspan events").splitlines())
        opened = peer.opens
        reflected.call("h1", "PATCH", "/v1/hosts/h1", {"bgp.peer.rr.prefixes": "10000"})
        until(lambda: peer.opens > opened and peer.established(1), "the peer, which cannot repeat routes, begins again")
        peer.announce(many, path=[])
        until(lambda: seen()["accepted"] == 5000, "all are taken where they may")
        until(lambda: not reflected.status("h1")["bgp"]["limited"], "nothing is said of it any more")
    finally:
        peer.close()
        reflected.call("h1", "PATCH", "/v1/hosts/h1", {"bgp.peer.rr.prefixes": ""})
        reflected.run("mend", "rr")
    until(lambda: not set(many) & set(destinations(reflected, "h1")), "they are gone with their peer")
