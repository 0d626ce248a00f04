"""Authorities of linkspan's own etcd are replaced while pings flow, also killed at each step, or with hosts away."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from linkspan.cluster.founding.validity import fingerprints
from linkspan.core.errors import LinkspanError
from support.lab.bare_runs import BareRun
from support.polling import SHARED, until


@pytest.fixture(scope="module")
def cluster() -> Iterator[BareRun]:
    """Give three bare hosts in a cluster of one voter, with a container each."""
    found = BareRun()
    try:
        found.up()
        token = json.loads(found.exec("h1", "linkspan cluster init --voters 1 -o json"))["token"]
        for host in ("h2", "h3"):
            found.join(host, token)
        found.exec("h1", "linkspan network create demo --pool 10.244.0.0/16 --backend vxlan")
        for number in (1, 2, 3):
            found.run("attach", f"h{number}", f"c{number}")
        until(lambda: found.pings("c2", found.address("c3")), "c2 reaches c3")
        yield found
    finally:
        found.run("down")


def authorities(cluster: BareRun, host: str) -> tuple[str, ...]:
    """Return what a host trusts for hosts and servers, the one that signs first."""
    return fingerprints(cluster.files(host).authority.read_bytes())


def progress(cluster: BareRun) -> dict[str, Any]:
    """Return how far the rotation is; nothing while etcd or the agent restarts."""
    found: dict[str, Any] = {}
    with contextlib.suppress(LinkspanError):
        found = cluster.call("h1", "GET", "/v1/cluster/rotation")
    return found


def ended(cluster: BareRun) -> bool:
    """Return whether no rotation is under way."""
    return progress(cluster).get("step") == ""


def all_is_well(cluster: BareRun, old: tuple[str, ...]) -> None:
    """Wait until all hosts trust one new authority, and see that they read and write."""
    (new,) = authorities(cluster, "h1")
    assert new not in old
    for host in ("h2", "h3"):
        until(partial(_trusts, cluster, host, new), f"{host} trusts the new authority alone", 30 * SHARED)
        until(partial(_has_store, cluster, host), f"{host} has its store", 30 * SHARED)
    cluster.run("attach", "h2", "more")
    until(lambda: cluster.pings("c1", cluster.address("more")), "c1 reaches a new container")
    cluster.run("detach", "more")


def _trusts(cluster: BareRun, host: str, new: str) -> bool:
    return authorities(cluster, host) == (new,)


def _has_store(cluster: BareRun, host: str) -> bool:
    return bool(cluster.status(host)["store"]["ok"])


def test_all_is_replaced_while_pings_flow(cluster: BareRun, tmp_path: Path) -> None:
    """Both authorities and all certificates; old tokens and old certificates are worth nothing."""
    old, token = authorities(cluster, "h1"), cluster.token("--ttl 1h")
    root = cluster.files("h1").root_password.read_text()
    shutil.copytree(cluster.files("h2").folder, tmp_path / "old")
    peers = cluster.files("h1").peer_authority.read_bytes()
    with cluster.no_loss("c2", cluster.address("c3")), cluster.no_loss("c1", cluster.address("c2")):
        told = json.loads(cluster.exec("h1", "linkspan cluster rotate-ca -o json"))
    assert told["kinds"] == ["clients", "peers"]
    assert told["ended"]
    assert cluster.files("h1").root_password.read_text() != root
    assert cluster.files("h1").peer_authority.read_bytes() != peers
    all_is_well(cluster, old)
    refused = cluster.refused("h2", f"cluster join {token['token']}")
    assert "its authority has another hash" in refused
    assert "older than the last `linkspan cluster rotate-ca`" in refused
    assert json.loads(cluster.exec("h1", f"linkspan cluster token show {token['id']} -o json"))["state"] == "revoked"
    assert cluster.join("h2", cluster.token()["token"])["host"] == "h2"
    until(partial(_has_store, cluster, "h2"), "h2 has its store")
    assert "/linkspan/hosts" in cluster.own_etcdctl("get /linkspan/hosts/ --prefix", "h2", user="h2").stdout
    now = cluster.files("h2").folder
    cluster.run("break", "h2", "agent-kill")  # it would ask a signer after its start, and put the new one back
    (tmp_path / "new").mkdir()
    for name in ("host.pem", "host.key"):
        shutil.copy(now / name, tmp_path / "new" / name)
        shutil.copy(tmp_path / "old" / name, now / name)
    try:
        done = cluster.own_etcdctl("get /linkspan/hosts/ --prefix", "h2", user="h2")
        assert done.returncode != 0
        assert not done.stdout
    finally:
        for name in ("host.pem", "host.key"):
            shutil.copy(tmp_path / "new" / name, now / name)
        cluster.run("mend", "h2")


def test_it_goes_on_by_itself_after_the_voters_agent_was_killed_at_each_step(cluster: BareRun) -> None:
    """In the middle of what the voter writes, and before the hosts have followed."""
    old, files = authorities(cluster, "h1"), cluster.files("h1")
    key, root = files.authority_key.read_bytes(), files.root_password.read_bytes()
    etcd = cluster.folder / "h1" / "state" / "etcd" / "client-ca.pem"
    copy = etcd.read_bytes()
    reached: tuple[Callable[[], bool], ...] = (
        lambda: len(authorities(cluster, "h1")) == 2,
        lambda: etcd.read_bytes() != copy,
        lambda: files.authority_key.read_bytes() != key,
        lambda: authorities(cluster, "h1")[0] not in old,
        lambda: len(authorities(cluster, "h1")) == 1 and authorities(cluster, "h1") != old,
        lambda: files.root_password.read_bytes() != root,
    )
    with cluster.no_loss("c2", cluster.address("c3")):
        assert not json.loads(cluster.exec("h1", "linkspan cluster rotate-ca --clients --no-wait -o json"))["ended"]
        for there in reached:
            end = time.monotonic() + 60 * SHARED
            while not there():
                assert time.monotonic() < end
                time.sleep(0.001)
            cluster.run("break", "h1", "agent-kill", code=-1)
            cluster.run("mend", "h1")
        until(lambda: ended(cluster), "it has ended")
    all_is_well(cluster, old)


def test_a_host_that_is_away_is_waited_for_or_left_out(cluster: BareRun) -> None:
    """By name. Back, it follows; left out, it is refused, and joins again with what it had."""
    old = authorities(cluster, "h1")
    cluster.run("break", "h3", "agent-kill")
    cluster.exec("h1", "linkspan cluster rotate-ca --no-wait")
    until(lambda: progress(cluster).get("hosts") == ["h3"], "it waits for h3")
    assert progress(cluster)["step"] == "trust"
    assert "being rotated" in cluster.refused("h1", "cluster rotate-ca --peers")
    assert "only a voter" in cluster.refused("h2", "cluster rotate-ca")
    assert "no host nobody" in cluster.refused("h1", "cluster rotate-ca --without nobody")
    cluster.run("mend", "h3")
    cluster.exec("h1", "linkspan cluster rotate-ca")  # shows the rest
    all_is_well(cluster, old)
    old = authorities(cluster, "h1")
    cluster.run("break", "h3", "agent-kill")
    told = json.loads(cluster.exec("h1", "linkspan cluster rotate-ca --without h3 -o json"))
    assert told["without"] == ["h3"]
    cluster.run("mend", "h3", code=-1)
    until(lambda: not cluster.status("h3")["store"]["ok"], "h3 is left out")
    until(lambda: "linkspan cluster join TOKEN" in cluster.exec("h3", "linkspan status", code=-1), "h3 says what to do")
    assert cluster.pings("c2", cluster.address("c3"))
    assert cluster.join("h3", cluster.token()["token"])["host"] == "h3"
    all_is_well(cluster, old)


def test_the_voters_authority_alone(cluster: BareRun) -> None:
    """Nobody else is concerned, and tokens stay good."""
    old, token = authorities(cluster, "h1"), cluster.token()["token"]
    peers = cluster.files("h1").peer_authority.read_bytes()
    said = cluster.exec("h1", "linkspan cluster rotate-ca --peers")
    assert said == "replaced: the peer authority\n"
    assert cluster.files("h1").peer_authority.read_bytes() != peers
    assert authorities(cluster, "h1") == old
    assert cluster.join("h2", token)["host"] == "h2"


def test_three_voters_restart_one_after_the_other(cluster: BareRun) -> None:
    """Each carries out each step by itself; one whose agent is away is waited for, and the command may be anywhere."""
    old = authorities(cluster, "h1")
    peers = {cluster.files("h1").peer_authority.read_bytes()}
    cluster.exec("h1", "linkspan cluster init --voters 3")
    cluster.hurry()
    cluster.voters("h1", "h2", "h3")
    cluster.run("break", "h3", "agent-kill")
    with cluster.no_loss("c2", cluster.address("c3")):
        cluster.exec("h2", "linkspan cluster rotate-ca --no-wait")
        until(lambda: len(left := progress(cluster).get("voters", ())) in (1, 2) and "h3" in left, "it waits for h3")
        cluster.run("mend", "h3")
        until(lambda: ended(cluster), "it has ended")
    all_is_well(cluster, old)
    voters = [cluster.files(host) for host in ("h1", "h2", "h3")]
    until(lambda: not any(one.other_root_password.exists() for one in voters), "all have root's password")
    assert len({one.root_password.read_text() for one in voters}) == 1
    assert cluster.own_etcdctl("user list").returncode == 0
    trusted = {cluster.files(host).peer_authority.read_bytes() for host in ("h1", "h2", "h3")}
    assert len(trusted) == 1
    assert not trusted & peers
    keys = {cluster.files(host).authority_key.read_bytes().strip() for host in ("h1", "h2", "h3")}
    assert len(keys) == 1
    cluster.voters("h1", "h2", "h3")
