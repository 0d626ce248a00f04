"""Full disks, damaged records, reboots and lost containers: nothing is lost, and all of it is reported."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from linkspan.core.errors import Unavailable
from support.agent.agent_host import Host, World, clean, first_ip, ids, pings, refused, run
from support.polling import until


class SmallDisk(Host):
    """A host whose state folder is a small disk; ``command`` starts what sees that disk."""

    command: tuple[str, ...]


Disk = tuple[SmallDisk, Path]
"""The host, and the path at which its disk is seen from here."""


@pytest.fixture
def small_disk(world: World) -> Iterator[Disk]:
    """Return a host whose state folder is a disk of 1 MiB."""
    host = SmallDisk(world)
    folder = host.state_dir
    script = f"mkdir -p {folder} && mount -t tmpfs -o size=1m none {folder} && echo up && exec sleep 600"
    command = ("unshare", "--mount", "--propagation", "slave", "sh", "-c", script)
    holder = world.spawn(host.netns, *command, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"up\n"
    host.command = (
        "nsenter", f"--mount=/proc/{holder.pid}/ns/mnt", f"--wd={Path.cwd()}", sys.executable, "-m", "linkspan.cli.main"
    )  # fmt: skip
    host.start(*host.command)
    try:
        yield host, Path(f"/proc/{holder.pid}/root{host.state_dir}")
    finally:
        host.close()


def fill(folder: Path) -> Path:
    """Fill the disk to its last byte, and return the file that does."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(512))
        except OSError:
            return filler


def attaches(host: Host, name: str) -> bool:
    """Return whether a container can be attached; it is detached again."""
    try:
        host.attach(name)
    except Unavailable:
        return False
    return bool(host.detach(name))


def test_a_full_disk(small_disk: Disk, container: Callable[[], str]) -> None:
    """Attach fails and says so; detach works and is logged; once there is space the journal is right by itself."""
    host, disk = small_disk
    host.network("demo", "10.201.0.0/24")
    stays, goes, comes = container(), container(), container()
    host.attach(stays)
    gone = host.attach(goes)
    filler = fill(disk)
    until(lambda: not attaches(host, comes), "the last page of the log")
    with pytest.raises(Unavailable, match=r"attach .* to demo: .*journal\.db: disk full"):
        host.attach(comes)
    assert "eth0" not in run("ip", "link", netns=comes)
    with pytest.raises(Unavailable, match="disk full"):
        host.network("second", "10.202.0.0/24")
    assert host.client.call("GET", "/v1/status")["store"]["state"] == "away"
    assert host.detach(goes) == 1
    assert gone["host_ifname"] not in host.links()
    assert "disk full" in host.log.read_text()
    clean(host)
    filler.unlink()
    until(lambda: host.client.call("GET", "/v1/status")["store"]["ok"], "the store is tried again by itself")

    def recorded() -> set[str]:
        reading = "import sqlite3, sys; print(*(r[0] for r in sqlite3.connect(sys.argv[1]).execute(sys.argv[2])))"
        words = (str(host.state_dir / "journal.db"), "SELECT id FROM endpoints")
        return set(run(*host.command[:2], sys.executable, "-c", reading, *words).split())

    until(lambda: recorded() == {stays}, "the rows of what is attached")
    host.stop(signal.SIGKILL)
    host.start(*host.command)
    clean(host)
    assert ids(host) == {stays}
    assert pings(stays, "10.201.0.1")
    assert host.attach(comes)["addresses"] != host.client.call("GET", f"/v1/endpoints/{stays}")[0]["addresses"]
    assert pings(comes, "10.201.0.1")


def test_an_agent_starts_on_a_full_disk(small_disk: Disk, container: Callable[[], str]) -> None:
    """It repairs, reports the problem, and attaches again once there is space: packets do not wait for a disk."""
    host, disk = small_disk
    host.network("demo", "10.201.0.0/24")
    one, two = container(), container()
    made = host.attach(one)
    until(lambda: (disk / "replica.json").exists(), "the snapshot")
    filler = fill(disk)
    until(lambda: not attaches(host, two), "the last page of the log")
    host.stop(signal.SIGKILL)
    run("ip", "link", "set", made["host_ifname"], "down", netns=host.netns)
    host.start(*host.command)
    assert pings(one, "10.201.0.1")
    assert ids(host) == {one}
    clean(host)
    with pytest.raises(Unavailable, match="disk full"):
        host.attach(two)
    filler.unlink()
    until(lambda: attaches(host, two), "it attaches again")
    host.restart(signal.SIGKILL, *host.command)
    assert ids(host) == {one}
    clean(host)


def test_an_agent_ends_in_order_on_a_full_disk(small_disk: Disk, container: Callable[[], str]) -> None:
    """SIGTERM ends it with code 0; what was detached with the full disk is gone after the next start."""
    host, disk = small_disk
    host.network("demo", "10.201.0.0/24")
    name = container()
    host.attach(name)
    filler = fill(disk)
    host.detach(name)
    host.stop()
    assert host.process is not None
    assert host.process.returncode == 0
    filler.unlink()
    host.start(*host.command)
    clean(host)


@pytest.mark.parametrize("file", ["journal.db", "store/store.db", "sysctls.json"])
def test_a_corrupt_record_is_refused_and_left(host: Host, container: Callable[[], str], file: str) -> None:
    """The agent does not start on a damaged file: it names it, says what to do, and leaves data path and file."""
    host.network()
    name = container()
    host.attach(name)
    host.stop()
    path = host.state_dir / file
    for beside in path.parent.glob(f"{path.name}-*"):
        beside.unlink()
    good = path.read_bytes()
    for damage in (b"soup" * 1000, good[: len(good) // 2] + bytes(100) + b"\xff" * 100):
        path.write_bytes(damage)
        said = refused(host)
        assert str(path) in said
        assert "move " in said
        assert "away" in said
        assert path.read_bytes() == damage
        assert pings(name, "10.201.0.1")
    path.write_bytes(good)
    host.start()
    clean(host)


@pytest.mark.parametrize("file", ["journal.db", "store/store.db"])
def test_a_newer_record_is_refused_and_left(host: Host, file: str) -> None:
    """A file that a newer linkspan wrote is not touched, and the message says to upgrade."""
    host.network()
    host.stop()
    path = host.state_dir / file
    with sqlite3.connect(path) as database:
        database.execute("UPDATE meta SET value = '999' WHERE name = 'schema'")
    database.close()
    said = refused(host)
    assert str(path) in said
    assert "999" in said
    assert "upgrade" in said


def test_a_row_that_cannot_be_read_is_refused(host: Host, container: Callable[[], str]) -> None:
    """An intact file with a broken record is also refused, and the error names the record."""
    host.network()
    host.attach(container())
    host.stop()
    path = host.state_dir / "journal.db"
    with sqlite3.connect(path) as database:
        database.execute("UPDATE endpoints SET record = '{\"id\": 7'")
    database.close()
    assert str(path) in refused(host)


def test_a_second_agent_names_the_first(host: Host) -> None:
    """A state folder has one agent; the second one's error has the pid of the first, which continues."""
    assert host.process is not None
    said = refused(host)
    assert f"in use by the agent with pid {host.process.pid}" in said
    assert str(host.state_dir) in said
    assert host.client.call("GET", "/v1/status")["agent"]["pid"] == host.process.pid


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--state-dir", "/proc/nowhere"), "/proc/nowhere"),
        (("--socket", "/proc/nowhere/a.sock"), "/proc/nowhere"),
        (("--store", "mysql://x"), "mysql://x"),
        (("--config", "/dev/null/x"), "/dev/null/x"),
    ],
)
def test_settings_that_cannot_be(world: World, words: tuple[str, ...], named: str) -> None:
    """A folder, socket, store or file that cannot be is named in one line."""
    host = Host(world)
    try:
        assert named in refused(host, *words)
    finally:
        host.close()


def test_a_container_that_went_without_a_word(host: Host, world: World) -> None:
    """A namespace that ended without DEL is leaked (exit code 3), and --fix frees its address."""
    host.network("demo", "10.201.0.0/24")
    name, stays = world.namespace(), world.namespace()
    address = first_ip(host.attach(name))
    host.attach(stays)
    world.delete(name)
    until(lambda: not host.check()["ok"], "the loss is seen")
    found = host.json("address", "check", code=3)
    assert [(f["address"], f["holder"]) for f in found["leaked"]] == [(address, name)]
    assert "gone" in found["leaked"][0]["why"]
    assert address in host.cli("address", "check", code=3)
    assert host.json("address", "check", "--fix")["ok"]
    clean(host)
    assert ids(host) == {stays}


def test_a_container_that_went_is_reaped(world: World) -> None:
    """If no DEL comes within the grace period, the agent detaches the container by itself, and reports it."""
    host = Host(world)
    host.config.write_text("reap_after = 0.5\n")
    host.start()
    try:
        for mode in ("bridged", "routed"):
            host.network(mode, "10.201.0.0/24" if mode == "routed" else "10.202.0.0/24", options={"mode": mode})
            name, stays = world.namespace(), world.namespace()
            host.attach(name, mode)
            host.attach(stays, mode)
            world.delete(name)
            until(lambda name=name: name not in ids(host), "it is reaped")
            clean(host)
            assert pings(stays, host.client.call("GET", f"/v1/networks/{mode}")["gateways"][0].partition("/")[0])
            told = [json.loads(line) for line in host.client.lines("/v1/events")]
            assert [e["about"]["endpoint"] for e in told if e["type"] == "reap"][-1] == name
            assert host.client.call("GET", "/v1/status")["drift"] == []
    finally:
        host.close()


def test_a_container_that_went_is_no_drift(host: Host, world: World) -> None:
    """While its runtime has time to detach it, status says that it is gone, and nothing is to be repaired."""
    host.network("demo", "10.201.0.0/24")
    name, stays = world.namespace(), world.namespace()
    host.attach(name)
    host.attach(stays)
    world.delete(name)

    def gone() -> list[dict[str, Any]]:
        return list(host.client.call("GET", "/v1/status")["gone"])

    until(gone, "the agent sees that the container is gone")
    assert [(one["endpoint"], one["network"]) for one in gone()] == [(name, "demo")]
    assert 0 < gone()[0]["detached_in"] <= 30
    assert host.client.call("GET", "/v1/status")["drift"] == []
    assert "its namespace is gone" in host.cli("status")
    assert host.differences() == []
    assert "linkspan_drift 0.0" in host.client.call("GET", "/metrics")
    host.client.call("POST", "/v1/detach", {"id": name})
    assert gone() == []


def test_events_outlive_the_agent(host: Host, world: World) -> None:
    """The next agent shows what the last one saw, also after a kill, and that it started."""
    host.network("demo", "10.201.0.0/24")
    host.attach(world.namespace())
    before = host.cli("events").splitlines()
    host.stop(signal.SIGKILL)
    with (host.state_dir / "events.jsonl").open("a", encoding="ascii") as file:
        file.write('{"at": 1, "type": "cut o')
    host.start()
    after = host.cli("events").splitlines()
    assert after[: len(before)] == before
    assert "the agent started" in after[len(before)]
    assert "cut o" not in (host.state_dir / "events.jsonl").read_text()


def test_a_container_that_went_while_no_agent_ran(host: Host, world: World) -> None:
    """The next agent releases its address at its start, and reports it."""
    host.network("demo", "10.201.0.0/24")
    name = world.namespace()
    host.attach(name)
    host.stop()
    world.delete(name)
    host.start()
    clean(host)
    assert ids(host) == set()
    told = [json.loads(line) for line in host.client.lines("/v1/events")]
    assert [e["about"]["endpoint"] for e in told if e["type"] == "recover"] == [name]


def test_doubles_and_orphans_are_found_and_mended(host: Host, world: World) -> None:
    """A second container with a used address is reported; `--fix` removes it, and links of ours without an endpoint."""
    host.network("demo", "10.201.0.0/24")
    one, two = world.namespace(), world.namespace()
    held = host.attach(one)
    other = host.attach(two)
    run("ip", "addr", "add", held["addresses"][0], "dev", "eth0", netns=two)
    found = host.json("address", "check", code=3)
    assert [f["address"] for f in found["duplicate"]] == [first_ip(held)]
    assert "eth0" in found["duplicate"][0]["why"]
    assert host.json("address", "check", "--fix")["ok"]
    assert f"inet {first_ip(held)}/" not in run("ip", "addr", netns=two)
    assert f"inet {first_ip(held)}/" in run("ip", "addr", netns=one)
    host.stop(signal.SIGKILL)
    with sqlite3.connect(host.state_dir / "journal.db") as database:
        database.execute("DELETE FROM endpoints WHERE id = ?", (two,))
    database.close()
    with sqlite3.connect(host.state_dir / "store" / "store.db") as database:
        database.execute("DELETE FROM entries WHERE key LIKE 'endpoints/%'")
    database.close()
    run("nft", "delete", "table", "bridge", "linkspan", netns=host.netns)  # which knows its address
    host.start()
    assert [f["holder"] for f in host.json("address", "check", code=3)["orphaned"]] == [other["host_ifname"]]
    assert host.json("address", "check", "--fix")["ok"]
    clean(host)
    assert "eth0" not in run("ip", "link", netns=two)


def test_after_a_reboot_addresses_are_free(host: Host, world: World) -> None:
    """Rows of another boot hold nothing: their containers ended with it."""
    host.network("demo", "10.201.0.0/29")
    names = [world.namespace() for _ in range(5)]
    given = {first_ip(host.attach(name)) for name in names}
    host.stop()
    with sqlite3.connect(host.state_dir / "journal.db") as database:
        database.execute("UPDATE endpoints SET boot_id = 'another'")
    database.close()
    for name in names:
        world.delete(name)
    host.start()
    clean(host)
    assert ids(host) == set()
    assert {first_ip(host.attach(world.namespace())) for _ in range(5)} == given


def test_cool_down_outlives_the_agent(world: World) -> None:
    """An address released just before a restart is given again last."""
    host = Host(world, cooldown=3600)
    host.start()
    try:
        host.network("demo", "10.201.0.0/28")
        keep, gone = world.namespace(), world.namespace()
        host.attach(keep)
        released = first_ip(host.attach(gone))
        host.detach(gone)
        for number in (signal.SIGTERM, signal.SIGKILL):
            host.restart(number)
        rest = [first_ip(host.attach(gone, id=f"c{n}", ifname=f"n{n}")) for n in range(12)]
        assert rest.index(released) == 11
        assert len(set(rest)) == 12
    finally:
        host.close()


def test_a_namespace_number_that_is_used_again(host: Host, world: World) -> None:
    """The agent holds no namespace open: a container that ends takes its links with it at once."""
    host.network("demo", "10.201.0.0/24")
    name = world.namespace()
    endpoint = host.attach(name)
    inode = os.stat(f"/run/netns/{name}").st_ino
    assert endpoint["netns"] == inode
    world.delete(name)
    until(lambda: endpoint["host_ifname"] not in host.links(), "the pair went with its namespace")
