"""An etcd whose quota is full, under real agents with containers: nothing that runs is lost, and all goes on after."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from linkspan.core.errors import LinkspanError
from linkspan.lab import processes, record
from support.lab.cluster_runs import ClusterRun
from support.polling import SHARED, until

pytestmark = pytest.mark.skipif(shutil.which("etcdctl") is None, reason="needs etcd and etcdctl")

HOSTS = ("h1", "h2", "h3")
QUOTA = 16 << 20
PART = "x" * 500_000
"""A value that another program puts again and again: history takes the quota."""


@pytest.fixture(scope="module")
def lab_() -> Iterator[ClusterRun]:
    """Give three hosts with VXLAN and an etcd that may have 16 MiB."""
    found = ClusterRun()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ETCD_QUOTA_BACKEND_BYTES", str(QUOTA))  # which etcd reads by itself
        try:
            found.run("up", "--backend vxlan --store etcd")
            yield found
        finally:
            found.run("down")


@pytest.fixture
def cluster(lab_: ClusterRun) -> Iterator[ClusterRun]:
    """Give the shared lab, with the wishes of this test's agents, and see that a test has left it well."""
    yield lab_
    until(lambda: all(lab_.status(host)["ok"] for host in HOSTS), "all is well", 60 * SHARED)
    for network in lab_.call("h1", "GET", "/v1/networks"):
        if network["name"] != "demo":
            lab_.delete(network["name"])


def _fill(cluster: ClusterRun) -> None:
    """Let another program write into etcd until it takes no more."""
    until(lambda: not _taken(cluster), "its quota is full")


def _taken(cluster: ClusterRun) -> bool:
    try:
        cluster.etcdctl("put", "/other/file", given=PART)
    except subprocess.CalledProcessError as error:
        assert "database space exceeded" in error.stderr  # noqa: PT017 (which is what is awaited)
        return False
    return True


def _allow(cluster: ClusterRun, upkeep: str) -> None:
    """Start every agent again with this setting."""
    for host in HOSTS:
        (cluster.folder / host / "agent.toml").write_text(f'store_upkeep = "{upkeep}"\n')
        cluster.run("break", host, "agent-kill")
        cluster.run("mend", host)


def _events(cluster: ClusterRun, host: str) -> list[str]:
    """Return what a host's agent has told of its store."""
    lines = cluster.exec(host, "linkspan events -o json").splitlines()
    return [one["what"] for one in map(json.loads, lines) if one["type"] == "store"]


def _states(cluster: ClusterRun) -> set[str]:
    """Return what each host says of each."""
    return {cluster.host(host, asked)["state"] for host in HOSTS for asked in HOSTS}


def test_agents_free_an_etcd_of_their_own(cluster: ClusterRun) -> None:
    """No ping is lost, no host is taken for dead, and a network is made again, without anybody's doing."""
    with cluster.no_loss("c1", cluster.address("c2")):
        _fill(cluster)

        def taken() -> bool:
            assert "silent" not in _states(cluster)
            words = cluster.run("exec", "h1", "--", "linkspan network create after --pool 10.91.0.0/16", code=-1)
            return words.returncode == 0

        until(taken, "the store takes writes again", 120 * SHARED)
        cluster.joined("after")
        until(lambda: _states(cluster) == {"alive"}, "all are alive", 30 * SHARED)
    told = [words for host in HOSTS for words in _events(cluster, host)]
    assert any("was defragmented" in words for words in told), told

    def well() -> bool:
        etcd = cluster.status("h1")["store"]["etcd"] or {}  # None until the agent has asked
        return (etcd.get("alarms"), etcd.get("upkeep")) == ([], "all")

    until(well, "h1 knows that the alarm is over", 60 * SHARED)


def test_somebody_else_s_etcd_is_full_until_its_operator_frees_it(cluster: ClusterRun) -> None:
    """Errors and states say so; a host that starts again is not dead; two commands, and all goes on by itself."""
    _allow(cluster, "compact")
    until(lambda: _states(cluster) == {"alive"}, "all are alive", 30 * SHARED)
    before = {host: cluster.blocks(host, "demo") for host in HOSTS}
    with cluster.no_loss("c1", cluster.address("c2")), cluster.no_loss("c3", cluster.address("c1")):
        _fill(cluster)
        until(lambda: all(cluster.status(h)["store"]["state"] == "full" for h in HOSTS), "all say so", 60 * SHARED)
        with pytest.raises(LinkspanError, match="its quota is full, so it takes no writes"):
            cluster.create("late", "10.92.0.0/16")
        said = cluster.exec("h1", "linkspan status", code=3)
        assert "its quota is full: it takes no writes, and containers continue" in said
        checks = {one["check"]: one for one in json.loads(cluster.exec("h1", "linkspan doctor -o json", code=3))}
        assert (checks["store"]["status"], checks["store alarms"]["status"]) == ("fail", "fail")
        assert "etcdctl alarm disarm" in checks["store alarms"]["fix"]
        assert "linkspan_store_full 1.0" in cluster.inside(
            "h1", f"curl -s --unix-socket {record.load(cluster.name).socket('h1')} http://localhost/metrics"
        )
        cluster.run("break", "h2", "agent-kill")
        cluster.run("mend", "h2")  # its lease ends, and no other one is granted
        until(lambda: "alive/h2" not in "".join(cluster.keys("/alive/")), "h2's word has ended", 30 * SHARED)

        def seen() -> set[str]:
            return {cluster.host("h2", asked)["state"] for asked in ("h1", "h3")}

        until(lambda: "alive" not in seen(), "both others see that", 30 * SHARED)
        assert seen() == {"unknown"}
        cluster.run("attach", "h2", "new", "--network demo")  # from its own block
        address = cluster.address("new")
        until(lambda: cluster.pings("c1", address), "it is reached", 10 * SHARED)
        cluster.etcdctl("defrag")
        cluster.etcdctl("alarm", "disarm")

        def well() -> bool:
            states = _states(cluster)
            assert "silent" not in states
            return states == {"alive"}

        until(well, "all are alive", 60 * SHARED)
        until(lambda: all(cluster.status(h)["store"]["ok"] for h in HOSTS), "all stores are well", 30 * SHARED)
        until(lambda: "new" in str(cluster.call("h1", "GET", "/v1/endpoints")), "h1 hears of it", 30 * SHARED)
        cluster.create("late", "10.92.0.0/16")
    assert {host: cluster.blocks(host, "demo") for host in HOSTS} == before
    cluster.run("detach", "new")
    assert processes.agents(cluster.folder, "h2")
