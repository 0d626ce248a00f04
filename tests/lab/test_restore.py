"""The bad day: `cluster snapshot`, `restore` and `recover`, while containers run on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from linkspan.cluster.founding.etcd_tools import BUMP
from support.lab.bare_runs import BareRun
from support.lab.restores import BACK_WITHIN, endpoints, founded, lost, networks, restore, settled, snapshot
from support.polling import SHARED, until

SAID_WITHIN = 8.0 * SHARED
"""Seconds in which a command says that there is no quorum: it asks the voters for two seconds, and some may elect."""


@pytest.fixture
def bare() -> Iterator[BareRun]:
    """Give three bare hosts; the first is the voter of the second, with a network and a container on each."""
    with founded() as found:
        yield found


def test_a_restore_keeps_what_was_made_since_the_snapshot(bare: BareRun, tmp_path: Path) -> None:
    """Networks and containers of after it stay, and a network that was made again is not removed by its tombstone.

    A host that joined after it is named, joins again, and keeps its container.
    """
    bare.exec("h1", "linkspan network create again --pool 10.8.0.0/16 --backend vxlan")
    bare.exec("h1", "linkspan network delete again")
    file = snapshot(bare, tmp_path)
    bare.exec("h2", "linkspan network create again --pool 10.9.0.0/16 --backend vxlan")
    bare.exec("h1", "linkspan network create later --pool 10.10.0.0/16 --backend vxlan")
    token = bare.token()["token"]
    bare.join("h3", token)
    bare.run("attach", "h3", "c3")
    bare.run("attach", "h2", "c4 --network again")
    bare.run("attach", "h1", "c5 --network again")
    bare.run("attach", "h1", "c6")
    until(lambda: len(endpoints(bare, "h1")) == 6, "h1 knows all containers")
    before = endpoints(bare, "h1")
    with bare.no_loss("c1", bare.address("c2")), bare.no_loss("c5", bare.address("c4")), bare.no_loss(
        "c2", bare.address("c3")
    ):
        told = restore(bare, file)
        assert [one["name"] for one in told["join_again"]] == ["h3"]  # type: ignore[attr-defined]
        for host in ("h1", "h2"):  # the rest is put back, and h3 cannot yet
            until(lambda host=host: lost(bare, host) == {"hosts", "leases", "blocks"}, f"{host} misses h3", BACK_WITHIN)
        assert Path(str(told["before"])).is_dir()
        assert networks(bare, "h1") == networks(bare, "h2") == ["again", "demo", "later"]
        until(lambda: not bare.status("h3")["store"]["ok"], "h3 is refused")
        assert "is used up" not in bare.refused("h3", f"cluster join {token}")
        bare.join("h3", str(told["token"]))
        settled(bare, "h1", "h2", "h3")
    until(lambda: endpoints(bare, "h2") == before, "all containers are in the records", BACK_WITHIN)
    assert json.loads(bare.exec("h1", "linkspan address check -o json"))["ok"]
    pools = {one["name"]: one["pools"] for one in json.loads(bare.exec("h3", "linkspan network list -o json"))}
    assert pools["again"] == ["10.9.0.0/16"]
    assert not bare.own_etcdctl("get /linkspan/gone/networks/again").stdout
    bare.run("attach", "h3", "c7")
    until(lambda: bare.pings("c6", bare.address("c7")), "new containers reach each other")


def test_a_host_that_was_forgotten_since_the_snapshot_stays_outside(bare: BareRun, tmp_path: Path) -> None:
    """Its user, its certificate and its records are in the snapshot; so are tokens that were revoked since."""
    token = bare.token()
    bare.join("h3", token["token"])
    bare.run("attach", "h3", "c3")
    file = snapshot(bare, tmp_path)
    bare.exec("h1", "linkspan cluster forget h3")
    bare.run("break", "h3", "agent-kill")
    told = restore(bare, file)
    assert [one["name"] for one in told["departed"]] == ["h3"]  # type: ignore[attr-defined]
    assert told["join_again"] == []
    settled(bare, "h1", "h2")
    for host in ("h1", "h2"):
        assert bare.roles(host).keys() == {"h1", "h2"}
    h3 = bare.host_id("h3")
    assert h3 not in bare.own_etcdctl("get /linkspan/leases/ --prefix --keys-only").stdout
    assert h3 not in bare.own_etcdctl("get /linkspan/blocks/ --prefix").stdout
    refused = bare.own_etcdctl("get /linkspan/hosts/ --prefix", "h3", user="h3")
    assert refused.returncode != 0
    assert not refused.stdout
    id_ = (bare.files("h3").state_dir / "host-id").read_text().strip()
    assert id_ not in bare.own_etcdctl("user list").stdout
    shown = json.loads(bare.exec("h1", f"linkspan cluster token show {token['id']} -o json"))
    assert shown["state"] == "revoked"


def test_a_host_that_was_forgotten_is_not_asked_to_join_another_voter(bare: BareRun, tmp_path: Path) -> None:
    """The voter with the list of revoked certificates is lost: the new one knows by the tombstone."""
    bare.join("h3", bare.token()["token"])
    file = snapshot(bare, tmp_path)
    bare.exec("h1", "linkspan cluster forget h3")
    until(lambda: "h3" not in bare.roles("h2"), "h2 knows that h3 is gone")
    bare.run("break", "h3", "agent-kill")
    bare.run("break", "h1", "link-down")
    told = restore(bare, file, "h2")
    assert [one["name"] for one in told["departed"]] == ["h3"]  # type: ignore[attr-defined]
    assert [one["name"] for one in told["join_again"]] == ["h1"]  # type: ignore[attr-defined]
    settled(bare, "h2")
    until(lambda: bare.roles("h2").keys() == {"h1", "h2"}, "h2 has no h3 among the hosts")


def test_a_rotation_of_authorities_that_was_under_way_ends(bare: BareRun, tmp_path: Path) -> None:
    """The next one begins from the start, and ends."""
    bare.run("break", "h2", "link-down")
    bare.exec("h1", "linkspan cluster rotate-ca --no-wait")
    until(lambda: "trust" in bare.own_etcdctl("get /linkspan-trust/rotation").stdout, "the rotation waits for h2")
    file = snapshot(bare, tmp_path)
    bare.run("mend", "h2")
    restore(bare, file)
    settled(bare, "h1", "h2")
    assert not bare.own_etcdctl("get /linkspan-trust/rotation").stdout
    assert json.loads(bare.exec("h1", "linkspan cluster rotate-ca -o json"))["ended"]
    settled(bare, "h1", "h2")


def test_another_host_takes_over_when_the_voter_is_lost(bare: BareRun, tmp_path: Path) -> None:
    """It makes authorities of its own, the others join again, and all containers keep what they have.

    The lost one's user writes every record no longer.
    """
    bare.join("h3", bare.token()["token"])
    bare.run("attach", "h3", "c3")
    file = snapshot(bare, tmp_path)
    bare.run("attach", "h3", "c4")
    bare.run("break", "h1", "link-down")
    with bare.no_loss("c2", bare.address("c3")):
        until(lambda: not bare.status("h2")["store"]["ok"], "h2 misses its store")
        told = restore(bare, file, "h2")
        assert [one["name"] for one in told["join_again"]] == ["h1", "h3"]  # type: ignore[attr-defined]
        settled(bare, "h2")
        for host, is_voter in (("h1", False), ("h2", True)):  # h1 was one when the snapshot was taken
            user = bare.own_etcdctl(f"user get host-{bare.host_id(host)}", "h2").stdout
            assert ("voters" in user) is is_voter, user
        bare.join("h3", str(told["token"]))
        settled(bare, "h2", "h3")
    until(lambda: bare.members("h3") == {"h2": "voter", "h3": "client"}, "h3 has noticed that h1 does not live")
    assert {"c2", "c3", "c4"} <= set(endpoints(bare, "h2"))
    bare.run("attach", "h2", "c5")
    until(lambda: bare.pings("c4", bare.address("c5")), "c4 reaches c5")
    bare.exec("h2", "linkspan cluster forget h1")


def test_a_voter_that_lost_the_others_goes_on_alone(bare: BareRun) -> None:
    """Its etcd has a second member that never comes, so nothing can be changed; all records are kept."""
    assert "its quorum is not lost" in bare.refused("h1", "cluster recover")
    added = bare.own_etcdctl("member add lost --peer-urls=https://192.0.2.3:5380")
    assert "lost" in added.stdout + added.stderr
    with bare.no_loss("c1", bare.address("c2")):
        until(lambda: not bare.status("h2")["store"]["ok"], "the quorum is lost")
        told = json.loads(bare.exec("h1", "linkspan cluster recover -o json"))
        assert told["join_again"] == []
        assert Path(told["before"]).is_dir()
        settled(bare, "h1", "h2")
    assert bare.members() == {"h1": "voter", "h2": "client"}
    bare.run("attach", "h2", "c3")
    until(lambda: bare.pings("c1", bare.address("c3")), "c1 reaches c3")


@pytest.mark.parametrize("remembers", [True, False])
def test_a_voter_whose_etcd_lost_its_data_is_restored(bare: BareRun, tmp_path: Path, remembers: bool) -> None:
    """Its database cannot be read any more, so etcd does not start; the agent may have no records, and wait for it."""
    file = snapshot(bare, tmp_path)
    bare.run("attach", "h2", "c3")
    database = bare.folder / "h1/state/etcd/data/member/snap/db"
    (pid,) = bare.own_etcd()
    database.write_bytes(b"damaged" * 1000)
    os.kill(pid, signal.SIGKILL)
    until(lambda: not bare.status("h2")["store"]["ok"], "h2 misses its store")
    bare.run("break", "h1", "agent-kill")
    if not remembers:
        (bare.folder / "h1/state/replica.json").unlink()
    restore(bare, file)
    settled(bare, "h1", "h2")
    assert sorted(endpoints(bare, "h2")) == ["c1", "c2", "c3"]
    until(lambda: bare.pings("c1", bare.address("c3")), "c1 reaches c3")


def test_a_tool_that_cannot_raise_revisions_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian 12's restores without that: the hosts see another etcd, list it, and put back what they hold."""
    folder = tmp_path / "bin"
    folder.mkdir()
    real = shutil.which("etcdutl")
    helped = f'*--help*) {real} "$@" | grep -v bump-revision'
    (folder / "etcdutl").write_text(f'#!/bin/sh\ncase "$*" in {helped};; *) exec {real} "$@";; esac\n')
    (folder / "etcdutl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    found = BareRun()
    try:
        found.up(2)
        found.join("h2", found.init(options="--voters 1"))
        found.exec("h1", "linkspan network create again --pool 10.8.0.0/16 --backend vxlan")
        found.exec("h1", "linkspan network delete again")
        file = snapshot(found, tmp_path)
        found.exec("h1", "linkspan network create again --pool 10.244.0.0/16 --backend vxlan")
        found.run("attach", "h1", "c1 --network again")
        found.run("attach", "h2", "c2 --network again")
        until(lambda: found.pings("c1", found.address("c2")), "c1 reaches c2")
        with found.no_loss("c1", found.address("c2")):
            restore(found, file)
            settled(found, "h1", "h2")
        told = json.loads(found.own_etcdctl("get /linkspan/settings/restored -w json").stdout)
        assert told["header"]["revision"] < BUMP
        assert networks(found, "h2") == ["again"]
        both = ["c1", "c2"]
        until(lambda: sorted(endpoints(found, "h2")) == both, "h1 has put its container back", BACK_WITHIN)
    finally:
        found.run("down")


@pytest.fixture
def three() -> Iterator[BareRun]:
    """Give a cluster of three voters, with a network and a container on each."""
    found = BareRun()
    try:
        found.up(3)
        token = found.init()
        found.hurry()
        for host in ("h2", "h3"):
            found.join(host, token)
        found.voters("h1", "h2", "h3")
        found.exec("h1", "linkspan network create demo --pool 10.244.0.0/16 --backend vxlan")
        for number in (1, 2, 3):
            found.run("attach", f"h{number}", f"c{number}")
        yield found
    finally:
        found.run("down")


@pytest.mark.parametrize("agents_end", [True, False])
def test_one_of_three_voters_goes_on_alone_and_the_others_begin_again(
    three: BareRun, tmp_path: Path, agents_end: bool
) -> None:
    """It has its own records; those that return with their data find that the cluster goes on without these.

    If they return together, they are a quorum of the former cluster.
    """
    file = snapshot(three, tmp_path)
    said = three.refused("h1", f"cluster restore {file}")
    assert "it would go on beside the restored one" in said
    assert "demote the others first" in said
    for host in ("h2", "h3"):
        three.run("break", host, "link-down")
    until(lambda: not three.status("h1")["store"]["ok"], "the quorum is lost", BACK_WITHIN)
    for command in ("token create", "token list", "forget h2", "demote h2", "init"):
        begun = time.monotonic()
        said = three.refused("h1", f"cluster {command}")
        assert "etcd has no quorum: 1 of 3 voters answer (192.0.2.1), and 2 must" in said, command
        assert "linkspan cluster recover" in said
        assert time.monotonic() - begun < SAID_WITHIN, command
    begun = time.monotonic()
    shown = three.exec("h1", "linkspan cluster members")
    assert time.monotonic() - begun < SAID_WITHIN
    assert [line.split()[-1] for line in shown.splitlines()[1:4]] == ["no", "no", "no"]
    assert "linkspan cluster recover" in shown
    told = json.loads(three.exec("h1", "linkspan cluster recover -o json"))
    assert told["join_again"] == []
    settled(three, "h1")
    three.run("attach", "h1", "c4")
    for host in ("h2", "h3"):
        if agents_end:
            three.run("break", host, "agent-kill")
        three.run("mend", host)
    settled(three, "h1", "h2", "h3")
    three.voters("h1", "h2", "h3")  # chosen again, with new data
    assert all((three.folder / host / "state/etcd/data.before").is_dir() for host in ("h2", "h3"))
    until(lambda: sorted(endpoints(three, "h2")) == ["c1", "c2", "c3", "c4"], "all containers are known", BACK_WITHIN)
    until(lambda: three.pings("c2", three.address("c4")), "c2 reaches c4", BACK_WITHIN)
