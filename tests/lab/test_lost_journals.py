"""A host of a cluster that loses its journal, while the store answers and while it is away."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import pytest

from linkspan.lab import agents, record
from support.lab.cluster_runs import ClusterRun
from support.polling import until

pytestmark = pytest.mark.skipif(shutil.which("etcdctl") is None, reason="needs etcd and etcdctl")


@pytest.fixture
def cluster() -> Iterator[ClusterRun]:
    """Give two hosts with VXLAN, an etcd, and two containers on each."""
    found = ClusterRun()
    try:
        found.run("up", "--backend vxlan --store etcd --hosts 2 --containers-per-host 2")
        yield found
    finally:
        found.run("down")


def lose(cluster: ClusterRun, host: str) -> None:
    """Kill a host's agent and take its journal away."""
    cluster.run("break", host, "agent-kill")
    state = cluster.folder / host / "state"
    assert (state / "journal.db").exists()
    for file in state.glob("journal.db*"):
        file.unlink()


def start(cluster: ClusterRun, host: str) -> None:
    """Start a host's agent, whatever else is broken."""
    lab = record.load(cluster.name)
    agents.start(lab, [lab.host(host)])


def local(cluster: ClusterRun, host: str) -> dict[str, list[str]]:
    """Return a host's own endpoints: addresses by id."""
    return {e["id"]: e["addresses"] for e in cluster.call(host, "GET", "/v1/endpoints?local=1")}


def records(cluster: ClusterRun, host: str) -> set[str]:
    """Return the ids of the endpoints that the store has of a host."""
    return {key.split("/")[-2] for key in cluster.keys(f"endpoints/{host}/")}


def test_exact_addresses_and_blocks_go_on_by_the_store(cluster: ClusterRun) -> None:
    """Nothing is released, and the other host reaches the containers all the while."""
    cluster.call("h1", "POST", "/v1/networks", {"name": "exact", "pools": ["10.90.0.0/16"], "ipam": "exact"})
    cluster.joined("exact", ("h1", "h2"))
    cluster.run("attach", "h1", "e1", "--network exact --ip 10.90.7.7")
    before = local(cluster, "h1")
    until(lambda: records(cluster, "h1") == before.keys(), "h1's endpoints are in the store")
    until(lambda: cluster.pings("h2", "10.90.7.7"), "h2 reaches the exact address")
    with cluster.no_loss("c2", cluster.address("c1")):
        lose(cluster, "h1")
        start(cluster, "h1")
    assert local(cluster, "h1") == before
    assert cluster.status("h1")["rebuilt"]["endpoints"] == len(before)
    assert cluster.pings("h2", "10.90.7.7")
    cluster.run("attach", "h1", "c9")
    assert local(cluster, "h1")["c9"][0] not in {a for addresses in before.values() for a in addresses}
    assert json.loads(cluster.etcdctl("get", cluster.keys("addresses/exact/10.90.7.7")[0], "--print-value-only"))[
        "container"
    ] == "e1"


def test_the_store_is_away_when_the_journal_is_lost(cluster: ClusterRun) -> None:
    """The kernel shows what the store never had; ids come with the store, and no address is given twice."""
    until(lambda: records(cluster, "h1") == {"c1", "c3"}, "h1's endpoints are in the store")
    cluster.run("break", "h1", "store-cut")
    cluster.run("attach", "h1", "late")
    before = local(cluster, "h1")
    assert before.keys() == {"c1", "c3", "late"}
    lose(cluster, "h1")
    start(cluster, "h1")
    told = cluster.status("h1")["rebuilt"]
    assert (told["endpoints"], len(told["unnamed"])) == (3, 3)
    assert sorted(local(cluster, "h1").values()) == sorted(before.values())
    assert cluster.pings("c1", cluster.address("c3"))
    assert cluster.pings("c1", cluster.address("late"))
    cluster.run("attach", "h1", "next")
    assert local(cluster, "h1")["next"] not in before.values()
    cluster.run("mend", "h1")
    until(lambda: {"c1", "c3"} <= local(cluster, "h1").keys(), "the store tells the ids of two")
    after = local(cluster, "h1")
    assert {name: after[name] for name in ("c1", "c3")} == {name: before[name] for name in ("c1", "c3")}
    (late,) = after.keys() - {"c1", "c3", "next"}  # its id, where the killed agent's last write still came through
    assert after[late] == before["late"]
    until(lambda: records(cluster, "h1") == local(cluster, "h1").keys(), "the store has all their records")
    cluster.run("detach", "late")
    until(lambda: records(cluster, "h1") == {"c1", "c3", "next"}, "the store has forgotten what was detached")
    assert cluster.pings("c2", cluster.address("c1"))
