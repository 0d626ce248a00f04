"""Hosts that leave a cluster and come back, and a host that was alone and joins one."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator

import pytest

from linkspan.lab import agents, processes, record
from support.lab.cluster_runs import ClusterRun
from support.polling import SHARED, until

pytestmark = pytest.mark.skipif(shutil.which("etcdctl") is None, reason="needs etcd and etcdctl")


@pytest.fixture(scope="module")
def cluster() -> Iterator[ClusterRun]:
    """Give three hosts with VXLAN on one segment and an etcd."""
    found = ClusterRun()
    try:
        found.run("up", "--backend vxlan --store etcd")
        yield found
    finally:
        found.run("down")


def words(cluster: ClusterRun, host: str) -> str:
    """Return the options by which the command line finds a lab host's files."""
    folder = cluster.folder / host
    return f"--config {folder / 'agent.toml'} --state-dir {folder / 'state'}"


def names(cluster: ClusterRun) -> list[str]:
    """Return the names of the cluster's hosts, as h1 knows them."""
    return [one["name"] for one in json.loads(cluster.exec("h1", "linkspan host list -o json"))]


def start(cluster: ClusterRun, host: str) -> None:
    """Start a host's agent."""
    lab = record.load(cluster.name)
    agents.start(lab, [lab.host(host)])


def attaches(cluster: ClusterRun, host: str, name: str) -> None:
    """Attach a container on a host, and see that c1 on h1 reaches it."""
    cluster.run("attach", host, name)
    until(lambda: cluster.pings("c1", cluster.address(name)), f"c1 reaches {name} on {host}", 10 * SHARED)
    cluster.run("detach", name)


def test_a_host_that_was_uninstalled_comes_back_by_its_name(cluster: ClusterRun) -> None:
    """Removed by another host or not: after a new start it has a lease, and its containers are reached."""
    for removed in (False, True):
        said = json.loads(cluster.exec("h3", f"linkspan uninstall --yes --force -o json {words(cluster, 'h3')}"))
        assert said["left"] == []
        assert any("host h3 is still in the cluster" in one for one in said["stays"])
        assert any("linkspan host remove h3" in one for one in said["stays"])
        if removed:
            cluster.call("h1", "DELETE", "/v1/hosts/h3?force")
            until(lambda: "h3" not in names(cluster), "h3 is removed")
        start(cluster, "h3")
        until(lambda: cluster.host("h3")["state"] == "alive", "h3 is back")
        cluster.joined("demo")
        attaches(cluster, "h3", f"back{int(removed)}")


def test_a_host_that_was_removed_while_it_ran_is_told_what_to_do(cluster: ClusterRun) -> None:
    """It does not come back by itself, a restart changes nothing, and what the error says brings it back."""
    cluster.call("h1", "DELETE", "/v1/hosts/h2?force")
    until(lambda: "was removed from the cluster" in cluster.not_well("h2"), "h2 knows")
    for _ in range(2):
        said = cluster.run("attach", "h2", "none", code=1).stderr
        assert "host h2 was removed from the cluster" in said
        assert "linkspan uninstall" in said
        cluster.run("break", "h2", "agent-kill")
        start(cluster, "h2")
    cluster.exec("h2", f"linkspan uninstall --yes --force {words(cluster, 'h2')}")
    start(cluster, "h2")
    cluster.joined("demo")
    attaches(cluster, "h2", "again")


def _alone(cluster: ClusterRun, host: str, network: bool) -> None:
    """Make a host new, and let it run without a store, with a network of its own or without."""
    lab = record.load(cluster.name)
    cluster.exec(host, f"linkspan uninstall --yes --force {words(cluster, host)}")
    argv = ["--state-dir", str(cluster.folder / host / "state"), "--socket", lab.socket(host), "--host-id", host]
    folder = cluster.folder / host
    command = [sys.executable, "-m", "linkspan.cli.main", "agent", "--config", str(folder / "agent.toml")]
    log, environment = folder / "alone", processes.environment(lab.folder, f"agent/{host}")
    process = processes.start(lab.host(host).namespace, host, [*command, *argv], environment, log)
    processes.await_word(process, log, "ready", f"{host} alone")
    if network:
        cluster.call(host, "POST", "/v1/networks", {"name": "own", "pools": ["10.77.0.0/16"]})
    until(lambda: (folder / "state" / "replica.json").exists(), "it remembers whose records it has")
    cluster.run("break", host, "agent-kill")


def test_a_host_that_was_alone_joins_where_it_has_no_network(cluster: ClusterRun) -> None:
    """The store that it had for itself holds nobody back; what it did is an event."""
    _alone(cluster, "h3", network=False)
    start(cluster, "h3")
    cluster.joined("demo")
    attaches(cluster, "h3", "joined")
    assert "it joins the cluster of its store" in cluster.exec("h3", "linkspan events")


def test_a_host_with_a_network_of_its_own_is_told_what_to_do(cluster: ClusterRun) -> None:
    """It reads and writes nothing of the other cluster, until it is made new."""
    _alone(cluster, "h3", network=True)
    start(cluster, "h3")
    until(lambda: "this host belongs to" in cluster.not_well("h3"), "h3 says why it does not join")
    hint = "to join another cluster: `linkspan uninstall` here, then start its agent again"
    assert hint in cluster.not_well("h3")
    cluster.exec("h3", f"linkspan uninstall --yes --force {words(cluster, 'h3')}")
    start(cluster, "h3")
    cluster.joined("demo")
    attaches(cluster, "h3", "made-new")
