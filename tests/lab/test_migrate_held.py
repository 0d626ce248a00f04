"""A migration that one host keeps from its end: its agent is stopped, and all else continues.

The tests of the first part look at one migration from its begin to its end, in their order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from linkspan.lab import processes
from support.lab.migration_runs import Flows, MigratingRun
from support.polling import until

LIVING = ("h1", "h2")


@pytest.fixture(scope="module")
def cluster() -> Iterator[MigratingRun]:
    """Give three hosts on one segment."""
    found = MigratingRun()
    try:
        found.run("up", "--backend vxlan")
        yield found
    finally:
        found.go_on("h3")
        found.run("down")


@pytest.fixture(scope="module")
def flows(cluster: MigratingRun) -> Iterator[Flows]:
    """Stop h3's agent, begin to migrate from VXLAN to IPIP, and give what all containers send meanwhile."""
    with Flows(cluster) as found:
        cluster.stop("h3")
        cluster.migrate("ipip")
        cluster.waits_for("h3")
        yield found


def traced(cluster: MigratingRun, source: str, target: str, host: str = "h1") -> Any:
    """Trace."""
    return cluster.call(host, "GET", f"/v1/trace?source={source}&target={target}")


def wires(found: Any, way: str = "hops") -> list[list[str]]:
    """Return the headers of what leaves hosts in a trace."""
    return [hop["headers"] for hop in found[way] if hop["action"] == "left"]


def test_the_stopped_host_alone_is_listed_and_is_met_by_the_old_way(cluster: MigratingRun, flows: Flows) -> None:
    """A silent host alone is listed as not switched, and the others send to it by the old backend."""
    until(lambda: cluster.host("h3")["state"] == "silent", "h3 counts as silent")
    for host, other in (("h1", "h2"), ("h2", "h1")):
        cluster.waits_for("h3", by=host)
        cluster.sends(host, other, "ipip")
        cluster.sends(host, "h3", "vxlan")
        told = cluster.progress("h3", host)
        assert (told["alive"], told["receives"], told["switched"]) == (False, ["vxlan"], False)
        assert cluster.progress(other, host)["receives"] == ["ipip", "vxlan"]
        (status,) = [n for n in cluster.status(host)["networks"] if n["name"] == "demo"]
        assert status["not_switched"] == ["h3"]
    shown = cluster.exec("h1", "linkspan network show demo")
    assert "not switched" in shown
    assert "1450, then 1480; meanwhile containers send 1450" in shown
    assert "receives by vxlan; this host sends to it by vxlan; not switched; its agent is silent" in shown
    assert cluster.link("c1") == cluster.link("c2") == (1480, 1450)
    assert cluster.link("c3") == (1450, 0)


def test_trace_shows_for_each_pair_the_way_that_packets_go_now(cluster: MigratingRun, flows: Flows) -> None:
    """IPIP if both hosts have switched; VXLAN to the stopped one, which does not report its part."""
    found = traced(cluster, "c1", "c2")
    assert (found["reachable"], found["path_mtu"]) == (True, 1450)
    for way in ("hops", "reply_hops"):
        assert [header.partition(" ")[0] for header in wires(found, way)[0]] == ["eth", "ip", "ip", "icmp"]
    found = traced(cluster, "c1", "c3")
    assert "udp 4789" in wires(found)[0]
    assert "h3 did not report" in found["reason"]


def test_plan_tells_what_is_kept_and_what_is_new_and_nothing_differs(cluster: MigratingRun, flows: Flows) -> None:
    """Both devices exist, each with its reason, and so do the entries for peers."""
    lines = cluster.call("h1", "GET", "/v1/plan?network=demo")
    assert all(line["present"] for line in lines)
    kept = {line["kind"] for line in lines if "kept until all hosts have left vxlan" in line["why"]}
    new = {line["kind"] for line in lines if "prepared for ipip" in line["why"]}
    assert {"Vxlan", "FdbEntry", "Neighbour", "NftElement"} <= kept
    assert {"Ipip", "NftElement"} <= new
    assert "Route" not in kept | new
    cluster.clean(LIVING)


def test_a_third_way_is_refused_meanwhile(cluster: MigratingRun, flows: Flows) -> None:
    """The error says how to go back, and nothing changes; nor does the same migration begin again."""
    before = cluster.network()
    for way in ("host-gw", "ipip"):
        said = cluster.refused(way)
        assert "migrates from vxlan to ipip already" in said
        assert "--backend vxlan" in said
    assert "vni=" in cluster.refused("vxlan", direct="true")
    assert cluster.network() == before


def test_a_container_that_comes_meanwhile_reaches_all(cluster: MigratingRun, flows: Flows) -> None:
    """It has the links and the limit of the others, and meets each host by the way that serves."""
    cluster.run("attach", "h1", "c4")
    assert cluster.link("c4") == (1480, 1450)
    for other in ("c1", "c2", "c3"):
        assert cluster.pings("c4", cluster.address(other))
        assert cluster.pings(other, cluster.address("c4"))


def test_a_network_that_is_made_meanwhile_is_whole(cluster: MigratingRun, flows: Flows) -> None:
    """It does not wait for the stopped host, and goes without a trace: its names' server too, a moment later."""

    def helpers() -> list[int]:
        return [len(processes.helpers(cluster.folder, host)) for host in LIVING]

    before = helpers()
    cluster.call("h1", "POST", "/v1/networks", {"name": "late", "pools": ["10.245.0.0/16"], "backend": "vxlan"})
    cluster.joined("late", LIVING)
    cluster.run("attach", "h1", "d1", "--network late")
    cluster.run("attach", "h2", "d2", "--network late")
    assert cluster.pings("d1", cluster.address("d2"))
    for name in ("d1", "d2"):
        cluster.run("detach", name)
    cluster.delete("late")
    until(lambda: helpers() == before, "the servers of its names have ended")
    cluster.clean(LIVING)


def test_agents_that_are_killed_meanwhile_go_on_where_they_were(cluster: MigratingRun, flows: Flows) -> None:
    """The routes of both ways stay, and the list is the same."""
    before = {host: cluster.everything(host) for host in LIVING}
    for host in LIVING:
        cluster.run("break", host, "agent-kill")
    for host in LIVING:
        cluster.run("mend", host)
    for host, other in (("h1", "h2"), ("h2", "h1")):
        cluster.waits_for("h3", by=host)
        cluster.sends(host, other, "ipip")
        cluster.sends(host, "h3", "vxlan")
    cluster.clean(LIVING)
    assert {host: cluster.everything(host) for host in LIVING} == before


def test_it_ends_when_the_agent_goes_on_and_no_pair_lost_more_than_a_second(
    cluster: MigratingRun, flows: Flows
) -> None:
    """The old way is removed on all hosts, and containers send what the new one carries."""
    cluster.go_on("h3")
    cluster.ended("ipip")
    cluster.clean()
    flows.stop()
    flows.check(1480)
    for container in ("c1", "c2", "c3", "c4"):
        assert cluster.link(container) == (1480, 0)
    assert cluster.json("test")["failed"] == []
    for host in ("h1", "h2", "h3"):
        assert "lsx" not in " ".join(link["ifname"] for link in cluster.links(host))
        assert "cannot heal" not in cluster.log(host)


def test_turned_round_it_ends_without_a_host_that_never_took_part(cluster: MigratingRun) -> None:
    """It had not offered the new way, so nobody needs its word; all others leave the new way behind."""
    cluster.at("ipip")
    before = {host: cluster.everything(host) for host in LIVING}
    with Flows(cluster) as flows:
        cluster.stop("h3")
        cluster.migrate("vxlan")
        cluster.waits_for("h3")
        cluster.sends("h1", "h2", "vxlan")
        until(lambda: cluster.network("h2")["migration"], "h2 knows of it")
        cluster.migrate("ipip", "h2")
        cluster.ended("ipip", LIVING)
        cluster.clean(LIVING)
        assert {host: cluster.everything(host) for host in LIVING} == before
        cluster.go_on("h3")
        cluster.ended("ipip")
        cluster.clean()
    flows.check(1480)
    assert cluster.json("test")["failed"] == []


def test_turned_round_it_waits_for_a_host_that_may_send_by_the_new_way(cluster: MigratingRun) -> None:
    """That host's packets are accepted until it says that it is back on the old way."""
    cluster.at("ipip")
    with Flows(cluster) as flows:
        cluster.stop("h2")
        cluster.migrate("vxlan")
        cluster.sends("h3", "h1", "vxlan")
        cluster.stop("h3")
        cluster.go_on("h2")
        cluster.sends("h2", "h3", "vxlan")
        cluster.waits_for("h3")
        cluster.migrate("ipip")
        cluster.sends("h2", "h3", "ipip")
        cluster.waits_for("h3")
        assert cluster.network()["migration"]["backend"] == "ipip"
        cluster.go_on("h3")
        cluster.ended("ipip")
        cluster.clean()
    flows.check(1480)


def test_a_host_that_joins_meanwhile_takes_part(cluster: MigratingRun) -> None:
    """It begins with the old way, and the migration ends with it."""
    cluster.run("break", "h3", "agent-kill")
    cluster.call("h1", "POST", "/v1/networks", {"name": "late", "pools": ["10.245.0.0/16"], "backend": "vxlan"})
    cluster.run("attach", "h1", "d1", "--network late")
    cluster.joined("late", LIVING)
    cluster.stop("h2")
    cluster.migrate("host-gw", name="late")
    cluster.waits_for("h2", name="late")
    cluster.run("mend", "h3")
    until(lambda: cluster.network(name="late")["progress"][-1]["receives"] == ["host-gw", "vxlan"], "h3 takes part")
    cluster.waits_for("h2", name="late")
    cluster.run("attach", "h3", "d3", "--network late")
    assert cluster.pings("d1", cluster.address("d3"))
    cluster.go_on("h2")
    cluster.ended("host-gw", ("h1", "h2", "h3"), "late")
    assert cluster.pings("d3", cluster.address("d1"))
    cluster.clean()
    for name in ("d1", "d3"):
        cluster.run("detach", name)
    cluster.delete("late")


def test_a_host_that_is_removed_meanwhile_is_not_waited_for(cluster: MigratingRun) -> None:
    """Killed, it is listed, and the command line says so; its tombstone ends the migration."""
    cluster.at("ipip")
    with Flows(cluster, "c1", "c2") as flows:
        cluster.run("break", "h3", "agent-kill")
        cluster.migrate("host-gw")
        cluster.waits_for("h3")
        assert "not switched: h3" in cluster.exec("h1", "linkspan status", code=-1)
        cluster.call("h1", "DELETE", "/v1/hosts/h3?force")
        cluster.ended("host-gw", LIVING)
        cluster.clean(LIVING)
    flows.check(1500)
    assert json.loads(cluster.exec("h1", "linkspan network show demo -o json"))["progress"] == []
