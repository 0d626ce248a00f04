"""A store that is away, restored from a backup or silent to one host, under real agents with containers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from linkspan.core.errors import LinkspanError
from linkspan.lab import agents, commands, record
from support.lab.cluster_runs import ClusterRun
from support.polling import SHARED, until

pytestmark = pytest.mark.skipif(shutil.which("etcdctl") is None, reason="needs etcd and etcdctl")

HOSTS = ("h1", "h2", "h3")


@pytest.fixture(scope="module")
def lab_() -> Iterator[ClusterRun]:
    """Give three hosts with VXLAN on one segment and an etcd."""
    found = ClusterRun()
    try:
        found.run("up", "--backend vxlan --store etcd")
        yield found
    finally:
        found.run("down")


@pytest.fixture
def cluster(lab_: ClusterRun) -> Iterator[ClusterRun]:
    """Give the shared lab, and see that a test has left it well."""
    yield lab_
    for host in lab_.json("show")["hosts"]:
        if host["broken"]:
            lab_.run("mend", host["name"])
    for host in HOSTS:
        lab_.call("h1", "PATCH", f"/v1/hosts/{host}", {"drained": ""})
    for network in lab_.call("h1", "GET", "/v1/networks"):
        if network["name"] != "demo":
            lab_.delete(network["name"])


def _container(cluster: ClusterRun, name: str) -> str:
    """Return the path of a container's namespace that the lab does not know of."""
    commands.run("ip", "netns", "add", f"{cluster.name}-{name}")
    return f"netns:{cluster.name}-{name}"


def _gone(cluster: ClusterRun, name: str) -> None:
    commands.delete(f"{cluster.name}-{name}")


def test_an_identity_s_address_moves_over_hosts(cluster: ClusterRun) -> None:
    """A container with the label has its address on h1, then on h3, and c2 reaches it at both places."""
    target = _container(cluster, "db")
    words = f"linkspan attach {target} --network demo --id db --label linkspan.io/identity=db -o json"
    try:
        first = json.loads(cluster.exec("h1", words))["addresses"]
        address = first[0].partition("/")[0]
        until(lambda: cluster.pings("c2", address), "c2 reaches it on h1", 5 * SHARED)
        cluster.exec("h1", "linkspan detach --id db")
        assert json.loads(cluster.exec("h3", words))["addresses"] == first
        until(lambda: cluster.pings("c2", address), "c2 reaches it on h3", 5 * SHARED)
    finally:
        cluster.exec("h3", "linkspan detach --id db")
        _gone(cluster, "db")


def test_a_store_that_is_away_past_every_timeout_costs_no_ping(cluster: ClusterRun) -> None:
    """Etcd hangs for longer than liveness lasts: no route goes; addresses detached meanwhile are released after it."""
    cluster.create("exact", "10.90.0.0/16", ipam="exact")
    cluster.run("attach", "h1", "e1", "--network exact --ip 10.90.7.7")
    until(lambda: cluster.pings("h3", "10.90.7.7"), "h3 reaches it", 5 * SHARED)
    routes = cluster.ip("h1", "route show")
    etcd = cluster.etcd()
    with cluster.no_loss("c1", cluster.address("c2")):
        os.kill(etcd, signal.SIGSTOP)
        try:
            until(lambda: not cluster.status("h1")["store"]["ok"], "h1 says that the store is away", 30 * SHARED)
            cluster.run("detach", "e1")
            away = time.monotonic() + 10  # liveness lasts 7 s, and its lease in etcd too
            until(lambda: time.monotonic() > away, "time has passed")
            assert cluster.ip("h2", "route show").count("lsx") >= 2
        finally:
            os.kill(etcd, signal.SIGCONT)
        until(lambda: all(cluster.status(h)["store"]["ok"] for h in HOSTS), "all is settled", 30 * SHARED)
    assert {line for line in routes.splitlines() if "10.244." in line} <= {
        *cluster.ip("h1", "route show").splitlines()
    }
    until(lambda: {cluster.host(h)["state"] for h in HOSTS} == {"alive"}, "all are alive")
    until(
        lambda: cluster.run("attach", "h2", "e2", "--network exact --ip 10.90.7.7", code=-1).returncode == 0,
        "the address is free for h2",
    )
    cluster.run("detach", "e2")


def test_a_host_that_is_cut_off_from_the_store_says_so_everywhere(cluster: ClusterRun) -> None:
    """Status and doctor end with 3 and name etcd, the other hosts are unknown with the time they were last seen."""
    until(lambda: cluster.host("h2")["state"] == "alive", "h2 is alive")
    cluster.exec("h1", "linkspan status")
    cut = time.time()
    cluster.run("break", "h1", "store-cut")
    checks = json.loads(cluster.exec("h1", "linkspan doctor -o json", code=3))  # before anything has failed
    (store,) = [one for one in checks if one["check"] == "store"]
    assert (store["status"], "etcd" in store["detail"], bool(store["fix"])) == ("fail", True, True), store
    until(lambda: cluster.status("h1")["store"]["state"] == "away", "h1 says that the store is away", 15 * SHARED)
    said = cluster.exec("h1", "linkspan status", code=3)
    assert ", away, last answer " in said
    assert "no answer within 1 s" in said
    assert "`linkspan status`" not in said
    changes = {
        "host drain h2": "drain host h2",
        "host set --host h2 bgp.as=64513": "change settings of host h2",
        "network update demo --add-pool 10.99.0.0/16": "change network demo",
        "network delete demo --force": "delete network demo",
        "cluster set --reclaim-after 600": "change reclaim_after",
    }
    with ThreadPoolExecutor(len(changes)) as pool:  # each waits for the store
        failed = pool.map(lambda words: cluster.run("exec", "h1", "--", f"linkspan {words}", code=1).stderr, changes)
        for said, what in zip(failed, changes.values(), strict=True):
            assert said.startswith(f"linkspan: {what}: ")
    until(lambda: cluster.host("h2")["state"] == "unknown", "h1 cannot tell whether h2 lives", 15 * SHARED)
    hosts = {one["name"]: one for one in json.loads(cluster.exec("h1", "linkspan host list -o json"))}
    assert [hosts[h]["alive"] for h in HOSTS] == [True, None, None]
    assert cut - 10 < hosts["h2"]["last_seen"] < cut + 10
    assert "unknown, last seen" in cluster.exec("h1", "linkspan host list")
    told = json.loads(cluster.exec("h1", "linkspan doctor -o json", code=3))
    assert any(one["check"] == "hosts" and "liveness of h2, h3 is unknown" in one["detail"] for one in told)
    until(lambda: cluster.host("h1", "h2")["state"] == "silent", "the others miss h1")
    seen = cluster.host("h1", "h2")["last_seen"]
    assert cut - 10 < seen < cut + 10
    assert cluster.pings("c1", cluster.address("c2"))
    cluster.run("mend", "h1")
    until(lambda: cluster.host("h2")["state"] == "alive", "h1 hears of h2 again", 30 * SHARED)
    until(lambda: cluster.status("h1")["ok"], "all is well", 30 * SHARED)
    assert "store" not in [c["check"] for c in cluster.call("h1", "GET", "/v1/doctor") if c["status"] == "fail"]


def test_an_agent_that_knows_nothing_waits_for_its_store_and_says_so(cluster: ClusterRun) -> None:
    """Without a snapshot: log and status name etcd, all else is refused, SIGTERM ends it; then it joins with c2."""
    lab = record.load(cluster.name)
    host = lab.host("h2")
    cluster.run("break", "h2", "agent-kill")
    cluster.run("break", "h2", "store-cut")
    (lab.folder / "h2" / "state" / "replica.json").unlink()
    with cluster.no_loss("c1", cluster.address("c2")):
        _, log, process = agents._started(lab, host)
        until(lambda: _waits(cluster), "it says in its status that the store is away", 30 * SHARED)
        said = cluster.exec("h2", "linkspan status", code=3)
        assert "the agent waits: it has no records yet, and attaches nothing until its store answers" in said
        assert "no network is known yet" in said
        assert "not known" in said
        with pytest.raises(LinkspanError, match="the agent waits for the store"):
            cluster.call("h2", "GET", "/v1/networks")
        until(lambda: "waiting for the store" in log.with_suffix(".log").read_text(), "its log says so", 5 * SHARED)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        cluster.run("mend", "h2")
        until(lambda: cluster.status("h2")["store"]["ok"], "it has joined", 30 * SHARED)
    assert [e["id"] for e in cluster.call("h2", "GET", "/v1/endpoints?local")] == ["c2"]


def _waits(cluster: ClusterRun) -> bool:
    try:
        store = cluster.status("h2")["store"]
    except LinkspanError:
        return False
    return not store["ok"] and "etcd" in store["problem"]


def test_a_restore_that_gives_a_block_two_owners_is_settled(cluster: ClusterRun, tmp_path: Path) -> None:
    """h1 claimed it, a backup from before came back, h2 claimed it too: h1 has it, containers continue, all say so."""
    lab, backup = record.load(cluster.name), tmp_path / "backup"
    for host in HOSTS:
        cluster.call("h1", "PATCH", f"/v1/hosts/{host}", {"drained": "1"})
    wish = {"name": "one", "pools": ["10.90.0.0/28"], "subnet_len": [28], "backend": "vxlan"}
    cluster.call("h1", "POST", "/v1/networks", wish)
    until(lambda: all("is drained" in cluster.not_well(h) for h in HOSTS), "nobody claims")
    cluster.etcdctl("snapshot", "save", str(backup))
    cluster.call("h1", "PATCH", "/v1/hosts/h1", {"drained": ""})
    until(lambda: cluster.blocks("h1", "one", "h2"), "h1 has the block")
    cluster.run("attach", "h1", "d1", "--network one")
    for host in HOSTS:
        cluster.run("break", host, "agent-kill")
    for host in ("h2", "h3"):  # which never heard of h1's claim
        (lab.folder / host / "state" / "replica.json").unlink()
    cluster.restore(backup)
    for host in ("h2", "h3"):
        cluster.run("mend", host)
    cluster.call("h2", "PATCH", "/v1/hosts/h2", {"drained": ""})
    until(lambda: cluster.blocks("h2", "one", "h2"), "h2 has the block")
    cluster.run("attach", "h2", "d2", "--network one --ip 10.90.0.9")
    cluster.run("mend", "h1")
    cluster.call("h2", "PATCH", "/v1/hosts/h1", {"drained": ""})
    until(lambda: all(cluster.status(h)["disputes"] for h in HOSTS), "all hosts tell of it", 40 * SHARED)
    for host in HOSTS:
        (told,) = cluster.status(host)["disputes"]
        assert (told["winner"], told["loser"], told["containers"]) == ("h1", "h2", ["d2"])
    assert "is host h1's, by the earlier claim" in cluster.exec("h3", "linkspan status", code=3)
    assert any(
        c["check"] == "owners" and c["status"] == "fail" for c in cluster.call("h3", "GET", "/v1/doctor")
    )
    said = cluster.run("attach", "h2", "d3", "--network one", code=1).stderr
    assert "no /28 block is left" in said
    assert cluster.run("attach", "h1", "d3", "--network one --ip 10.90.0.9", code=1).stderr.count(
        "in use by d2"
    )
    until(lambda: cluster.pings("d1", "10.90.0.9"), "d1 reaches d2: both go on", 5 * SHARED)
    cluster.run("detach", "d2")
    until(lambda: not any(cluster.status(h)["disputes"] for h in HOSTS), "it is settled")
    cluster.run("attach", "h1", "d3", "--network one --ip 10.90.0.9")
    for name in ("d1", "d3"):
        cluster.run("detach", name)


def test_a_silent_host_withdraws_and_its_block_is_reclaimed(cluster: ClusterRun) -> None:
    """With reclaim_after h2, cut off, stops at half of it and leaves at its end; h1 has its block then; h2 is back."""
    prefix = cluster.keys("hosts/h2")[0].removesuffix("hosts/h2")
    for host in ("h1", "h3"):
        cluster.call("h1", "PATCH", f"/v1/hosts/{host}", {"drained": "1"})
    wish = {"name": "one", "pools": ["10.90.0.0/28"], "subnet_len": [28], "backend": "vxlan"}
    cluster.call("h1", "POST", "/v1/networks", wish)
    until(lambda: cluster.blocks("h2", "one"), "h2 has the only block")
    with pytest.raises(LinkspanError, match="too short"):
        cluster.call("h1", "PATCH", "/v1/cluster", {"reclaim_after": 5})
    cluster.etcdctl("put", f"{prefix}settings/cluster", '{"reclaim_after": 12}')
    try:

        def promised() -> set[float]:
            return {host["withdraws"] for host in cluster.call("h1", "GET", "/v1/cluster")["hosts"]}

        until(lambda: promised() == {12.0}, "all promise it")
        cluster.run("break", "h2", "store-cut")
        until(lambda: "it gives no address" in cluster.not_well("h2"), "h2 stops at half of it", 30 * SHARED)
        said = cluster.run("attach", "h2", "late", code=1).stderr
        assert "gives no address now" in said
        until(lambda: "it has withdrawn" in cluster.not_well("h2"), "h2 withdraws at its end", 30 * SHARED)
        until(lambda: "lsx" not in cluster.ip("h2", "route show"), "h2 has no way to its peers")
        cluster.call("h1", "PATCH", "/v1/hosts/h1", {"drained": ""})
        until(lambda: cluster.blocks("h1", "one"), "h1 has its block", 40 * SHARED)
        cluster.run("mend", "h2")
        until(lambda: cluster.pings("c1", cluster.address("c2")), "h2 is back", 15 * SHARED)
        until(lambda: not cluster.blocks("h2", "one"), "h2 has let the block go", 15 * SHARED)
        assert cluster.blocks("h1", "one") == ["10.90.0.0/28"]
    finally:
        cluster.etcdctl("put", f"{prefix}settings/cluster", "{}")


def test_a_restore_that_forgets_a_pool_takes_no_container_of_it(cluster: ClusterRun, tmp_path: Path) -> None:
    """The network is as in the backup; a container with an address of the later pool continues, and is reported."""
    backup, more = tmp_path / "backup", {"add_pools": ["10.91.0.0/26"]}

    def pools(at: str) -> list[str]:
        found: list[str] = cluster.call(at, "GET", "/v1/networks/grown")["pools"]
        return found

    wish = {"name": "grown", "pools": ["10.90.0.0/29"], "subnet_len": [29], "backend": "vxlan"}
    cluster.call("h1", "POST", "/v1/networks", wish)
    until(lambda: any(cluster.blocks(h, "grown") for h in HOSTS), "a host has the only block")
    cluster.etcdctl("snapshot", "save", str(backup))
    cluster.call("h1", "PATCH", "/v1/networks/grown", more)
    until(lambda: all(cluster.blocks(h, "grown") for h in HOSTS), "all have one")
    host = next(h for h in HOSTS if cluster.blocks(h, "grown")[0].startswith("10.91."))
    cluster.run("attach", host, "g1", "--network grown")
    cluster.restore(backup)
    until(lambda: cluster.status(host)["store"]["ok"], f"{host} has the restored store")
    until(lambda: {tuple(pools(h)) for h in HOSTS} == {tuple(wish["pools"])}, "all have the backup's")
    assert any(e["id"] == "g1" for e in cluster.call(host, "GET", "/v1/endpoints"))
    assert cluster.pings(host, cluster.address("g1"))
    cluster.call("h1", "PATCH", "/v1/networks/grown", more)
    until(lambda: "grown" not in cluster.not_well(host), "all is well with the pool")
    cluster.run("detach", "g1")
