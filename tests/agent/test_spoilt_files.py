"""One spoilt file of the state folder: containers keep their network, and the error says what helps."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.agent.agent_host import Host, World, clean, pings, refused, run
from support.agent.damage import begin_with_two, endpoints, follow_move, inside, published, rewritten
from support.polling import until

GARBAGE = bytes(range(256)) * 4
TRIES = 3
"""Errors of one start that are followed, one after the other."""


@pytest.fixture
def used(world: World) -> Iterator[Host]:
    """Give a host with a bridged and a routed container and a names' server, whose agent runs."""
    host = Host(world, names=True)
    begin_with_two(host)
    until(lambda: host.differences() == [], "the names' servers run")
    try:
        yield host
    finally:
        host.close()


def follow(said: str) -> None:
    """Do what an error says."""
    if statement := re.search(r'echo "([^"]+)" \| sqlite3 (\S+)', said):
        rewritten(Path(statement[2]), statement[1])
    else:
        follow_move(said)


def started(host: Host, what: str) -> None:
    """Start the agent, and do what it says where it does not come up; each error names a file of the state folder."""
    for _ in range(TRIES):
        try:
            host.start()
        except AssertionError:
            said = refused(host)
            assert str(host.state_dir) in said, (what, said)
            follow(said)
        else:
            return
    pytest.fail(f"{what}: still not after {TRIES} errors were followed: {refused(host)}")


def files(host: Host) -> list[Path]:
    """Return the files of the state folder, but for those of tests before."""
    found = (path for path in sorted(host.state_dir.rglob("*")) if path.is_file() and path.suffix != ".bad")
    return [path.relative_to(host.state_dir) for path in found]


CONTENTS = pytest.mark.parametrize("content", [b"", GARBAGE, b"{}\n"], ids=["emptied", "garbage", "object"])


@CONTENTS
def test_a_file_that_is_spoilt_costs_no_container_anything(used: Host, content: bytes) -> None:
    """Each one in turn, while no agent runs: containers, addresses and the host's id are what they were."""
    before = {name: inside(name) for name in used.containers}
    known = {identity: (e["addresses"], e["ports"]) for identity, e in endpoints(used).items()}
    (own,) = (one["id"] for one in used.client.call("GET", "/v1/hosts"))
    names, snapshot = files(used), used.state_dir / "replica.json"
    assert {"host-id", "journal.db", "replica.json", "sysctls.json", "store/store.db"} <= {str(name) for name in names}
    for name in names:
        used.stop(signal.SIGKILL)
        if (used.state_dir / name).exists():  # a log of SQLite's may have gone with its last user
            (used.state_dir / name).write_bytes(content)
        started(used, str(name))
        assert {one: inside(one) for one in used.containers} == before, name
        assert {i: (e["addresses"], e["ports"]) for i, e in endpoints(used).items()} == known, name
        assert [one["id"] for one in used.client.call("GET", "/v1/hosts")] == [own], name
        assert pings(used.containers[0], "10.201.0.1"), name
        assert pings(used.containers[1], "10.202.0.1"), name
        until(lambda: used.differences() == [], f"nothing differs after {name}")
        clean(used)
        published(used, 2)
        until(lambda: b"networks/far" in snapshot.read_bytes(), "the snapshot has the networks again")


@CONTENTS
def test_uninstall_takes_all_away_whatever_is_spoilt(used: Host, content: bytes) -> None:
    """All files at once: linkspan's marks in the kernel show what is its own, and each error's hint helps."""
    used.stop(signal.SIGKILL)
    for name in files(used):
        (used.state_dir / name).write_bytes(content)
    words = (sys.executable, "-m", "linkspan.cli.main", "uninstall", "--yes", "--force")
    given = ("--config", str(used.config), "--state-dir", str(used.state_dir), "--socket", str(used.socket))
    for _ in range(TRIES):
        done = subprocess.run(
            ["nsenter", f"--net=/run/netns/{used.netns}", *words, *given], capture_output=True, text=True, check=False
        )
        if not done.returncode:
            break
        assert str(used.state_dir) in done.stderr, done
        follow(done.stderr)
    assert "nothing of linkspan is left on this machine" in done.stdout, done
    assert used.links() == {"uplink"}
    assert "linkspan" not in run("nft", "list", "ruleset", netns=used.netns)
    assert "proto 76" not in run("ip", "route", "show", "table", "all", netns=used.netns)
    assert run("sysctl", "-n", "net.ipv4.ip_forward", netns=used.netns) == "0\n"
    assert not run("ip", "netns", "pids", used.netns).split()
    assert not used.state_dir.exists()
