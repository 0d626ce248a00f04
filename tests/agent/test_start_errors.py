"""Settings, files, disks and sockets that keep an agent from its start: what each error says to do lets it start."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.agent.agent_host import Host, World, clean, pings, refused, run
from support.agent.damage import inside, published, rewritten
from support.certificates import Authority
from support.polling import until

Agent = tuple[str, ...]


class Killed(Host):
    """A host with one container, whose agent was killed; ``before`` is what the container has."""

    one: str
    before: dict[str, Any]


@pytest.fixture
def host(world: World) -> Iterator[Killed]:
    """Give a host with one container, whose agent has just been killed."""
    found = Killed(world)
    found.start()
    found.network("demo", "10.201.0.0/24")
    found.one = world.namespace()
    found.attach(found.one)
    published(found, 1)
    found.before = inside(found.one)
    found.stop(signal.SIGKILL)
    try:
        yield found
    finally:
        found.close()


def goes_on(host: Killed) -> None:
    """Expect that the agent starts, and that the container has not noticed anything."""
    host.start()
    assert inside(host.one) == host.before
    assert pings(host.one, "10.201.0.1")
    clean(host)


def commanded(said: str) -> list[str]:
    """Return the command that the hint has in brackets."""
    found = re.search(r"\(((?:mv|mount) [^)]+)\)", said)
    assert found is not None, said
    return found[1].split()


def holding(world: World, host: Killed, script: str) -> subprocess.Popen[bytes]:
    """Start a Python process on the host that has taken something, and holds it."""
    words = (sys.executable, "-c", f"{script}; print('up', flush=True); import time; time.sleep(60)")
    process = world.spawn(host.netns, *words, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    return process


# Settings

WRONG = [
    (
        "metrics = '9642'",
        "setting metrics: '9642' is not ADDRESS:PORT; write it like (127.0.0.1:9642)",
        "metrics = '{}'",
    ),
    ("metrics = '127.0.0.1:70000'", "is not ADDRESS:PORT; write it like (127.0.0.1:9642)", "metrics = '{}'"),
    ("metrics = '192.0.2.9:9642'", "metrics 192.0.2.9:9642: .*; give metrics an address of this host", ""),
    (
        "orphans_after = -1",
        "setting orphans_after: expected a number >= 0.0; `linkspan agent --print-config`",
        "",
    ),
    ("reap_after = inf", "setting reap_after: expected a number <= 1", ""),
    ("podman_networks = 5", "setting podman_networks: expected text, got a whole number", ""),
    (
        "log_level = 'loud'",
        "setting log_level: 'loud' is unknown; give one of debug, (info),",
        "log_level = '{}'",
    ),
    ("host_id = 'a b'", "host_id: 'a b' is not a name; use letters, digits", ""),
    (
        "advertise = ['gate']",
        "'gate' is not an IP address; write it like (203.0.113.7)",
        "advertise = ['{}']",
    ),
    (
        "underlay = 'can-reach=gate'",
        "setting underlay: .*gate.*; write it like (can-reach=192.0.2.1)",
        "underlay = '{}'",
    ),
    (
        "store = 'consul://h1'",
        "store 'consul://h1' is not understood; write sqlite:///abs/folder or etcd://",
        "",
    ),
    (
        "store = 'sqlite://shared'",
        "store 'sqlite://shared' is not understood; write sqlite:///abs/folder",
        "",
    ),
    ("store = 'etcd://h1?ca=rel'", "store 'etcd://h1[?]ca=rel': ca is 'rel'; give an absolute path", ""),
    ("names no", "agent.toml: expected '=' after a key.*; correct the file: it is TOML", ""),
]


def test_a_wrong_setting_is_named_and_can_be_put_right(host: Killed) -> None:
    """The error names the setting and what it takes; with that, or without the line, the agent starts."""
    text = host.config.read_text()
    for line, told, right in WRONG:
        host.config.write_text(f"{text}{line}\n")
        said = refused(host)
        found = re.search(told, said)
        assert found is not None, said
        host.config.write_text(f"{text}{right.format(*found.groups())}\n")
        host.start()
        assert pings(host.one, "10.201.0.1")
        host.stop(signal.SIGKILL)
    goes_on(host)


def test_a_config_file_that_is_not_there_is_named(host: Killed) -> None:
    """By the path given, which is to be corrected."""
    said = refused(host, "--config", "/nowhere/agent.toml")
    assert "config file /nowhere/agent.toml cannot be read: no such file or directory" in said
    assert "correct the path given by --config" in said
    goes_on(host)


def test_a_port_for_metrics_that_is_taken_is_named(host: Killed, world: World) -> None:
    """The hint's command shows who has it; when that has ended the agent starts."""
    other = holding(world, host, "import socket; s = socket.create_server(('127.0.0.1', 9642))")
    host.config.write_text(host.config.read_text() + "metrics = '127.0.0.1:9642'\n")
    said = refused(host)
    assert "metrics 127.0.0.1:9642: another program listens there; `ss -ltnp` shows it: stop it" in said
    assert f"pid={other.pid}" in run("ss", "-ltnp", netns=host.netns)
    other.kill()
    other.wait()
    goes_on(host)


# Sockets


def a_file_for_a_folder(host: Killed) -> str:
    """Put a file where the socket's folder should be."""
    host.socket = host.folder / "taken" / "agent.sock"
    host.socket.parent.write_text("somebody's")
    return "taken/queue: not a directory"


def a_folder_for_a_socket(host: Killed) -> str:
    """Put a folder where the socket should be."""
    host.socket.unlink(missing_ok=True)
    host.socket.mkdir()
    return "agent.sock: something else than a socket is there"


def a_file_for_a_socket(host: Killed) -> str:
    """Put somebody else's file there, which linkspan must not remove."""
    host.socket.unlink(missing_ok=True)
    host.socket.write_text("somebody's")
    return "agent.sock: something else than a socket is there"


def a_file_for_the_queue(host: Killed) -> str:
    """Put a file where the queue of removals should be."""
    (host.socket.parent / "queue").rmdir()
    (host.socket.parent / "queue").write_text("somebody's")
    return "queue: file exists"


def a_file_for_docker_s_socket(host: Killed) -> str:
    """Put a file where the settings have the socket for Docker's engine."""
    path = host.folder / "docker.sock"
    path.write_text("somebody's")
    host.config.write_text(f"{host.config.read_text()}docker_socket = '{path}'\n")
    return f"docker_socket {path}: something else than a socket is there"


IN_PLACE = [
    a_file_for_a_folder, a_folder_for_a_socket, a_file_for_a_socket, a_file_for_the_queue, a_file_for_docker_s_socket
]  # fmt: skip


@pytest.mark.parametrize("put", IN_PLACE)
def test_what_is_in_the_socket_s_place_is_moved_away(host: Killed, put: Callable[[Host], str]) -> None:
    """The hint has the command; no file of another program is lost."""
    told = put(host)
    host.client.path = str(host.socket)
    said = refused(host)
    assert told in said
    command = commanded(said)
    run(*command)
    assert Path(command[2]).is_dir() or Path(command[2]).read_text() == "somebody's"
    goes_on(host)


def test_a_path_that_is_too_long_for_a_socket_is_named(host: Killed) -> None:
    """Another path will do."""
    said = refused(host, "--socket", str(host.folder / ("x" * 120)))
    assert "give --socket another path" in said
    goes_on(host)


def test_a_socket_that_another_agent_serves_is_not_taken(host: Killed, world: World) -> None:
    """Two agents in two namespaces with one path: the second one says who has it, and starts by another path."""
    host.start()
    other = Host(world)
    try:
        assert host.process is not None
        said = refused(other, "--socket", str(host.socket))
        assert f"socket {host.socket} is served by another process, with pid {host.process.pid}" in said
        assert "stop that one first, or give --socket another path" in said
        assert host.client.call("GET", "/v1/status")["agent"]["pid"] == host.process.pid
        other.start()
    finally:
        other.close()


# The state folder and its disk


@pytest.fixture
def disk(host: Killed, world: World) -> Agent:
    """Return what leads into a mount namespace in which the state folder is a disk of its own, with what was in it."""
    folder, copy = host.state_dir, host.folder / "copy"
    rewritten(folder / "store" / "store.db", "DELETE FROM meta WHERE name = 'inode'")  # a copy that is accepted
    moved = f"cp -a {folder} {copy} && mount -t tmpfs none {folder} && cp -a {copy}/. {folder}"
    script = f"{moved} && echo up && exec sleep 600"
    command = ("unshare", "--mount", "--propagation", "slave", "sh", "-c", script)
    holder = world.spawn(host.netns, *command, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"up\n"
    return ("nsenter", f"--mount=/proc/{holder.pid}/ns/mnt", f"--wd={Path.cwd()}")


def test_a_read_only_disk_is_mounted_for_writing_as_the_hint_says(host: Killed, disk: Agent) -> None:
    """The error names the folder, the cause, and the mount."""
    run(*disk, "mount", "-o", "remount,ro", str(host.state_dir))
    said = refused(host, inside=disk)
    assert f"state folder {host.state_dir}" in said
    assert "read-only file system; mount its disk for writing" in said
    run(*disk, *commanded(said))
    host.start(*disk, sys.executable, "-m", "linkspan.cli.main")
    assert inside(host.one) == host.before
    assert {e["id"] for e in host.client.call("GET", "/v1/endpoints")} == {host.one}


@pytest.mark.parametrize("name", ["lock", "host-id", "journal.db", "store/store.db", "sysctls.json", "."])
def test_a_folder_or_file_in_the_place_of_another_is_moved_away(host: Killed, name: str) -> None:
    """Each file of the state folder, and the folder itself: the hint has the command, and containers continue."""
    path = host.state_dir / name
    aside = host.folder / "aside"
    path.rename(aside)
    if name == ".":
        host.state_dir.write_text("somebody's")
    else:
        path.mkdir()
    said = refused(host)
    assert str(path) in said
    if "(mv" in said:
        run(*commanded(said))
    else:
        found = re.search(r"move (/\S+) away", said)
        assert found is not None, said
        path.rename(path.with_name("bad"))
    if name == ".":
        aside.rename(host.state_dir)
    goes_on(host)


def test_a_journal_that_another_process_holds_is_named(host: Killed, world: World) -> None:
    """The hint's command shows the process; when that has ended the agent starts."""
    held = f"d = sqlite3.connect('{host.state_dir}/journal.db', isolation_level=None)"
    locked = "d.execute('PRAGMA locking_mode=EXCLUSIVE'); d.execute('BEGIN EXCLUSIVE')"
    other = holding(world, host, f"import sqlite3; {held}; {locked}")
    said = refused(host)
    assert f"{host.state_dir}/journal.db is locked by another process; see which one, and end it" in said
    assert f"fuser -v {host.state_dir}/journal.db" in said
    other.kill()
    other.wait()
    goes_on(host)


def test_a_schema_that_is_no_number_is_named(host: Killed) -> None:
    """As any other damage of the journal."""
    rewritten(host.state_dir / "journal.db", "UPDATE meta SET value = 'x' WHERE name = 'schema'")
    said = refused(host)
    assert "journal.db has schema 'x', which is no number" in said
    run(*commanded(said))
    goes_on(host)


# The store


def test_a_store_s_folder_that_cannot_be_made_is_named(world: World, tmp_path: Path) -> None:
    """The hint moves away the file in its place, and the agent then starts with that store."""
    host = Host(world)
    (tmp_path / "taken").write_text("somebody's")
    host.config.write_text(f"{host.config.read_text()}store = 'sqlite://{tmp_path}/taken/store'\n")
    try:
        said = refused(host)
        assert f"store folder {tmp_path}/taken/store cannot be made: not a directory" in said
        run(*commanded(said))
        host.start()
        assert (tmp_path / "taken" / "store" / "store.db").exists()
    finally:
        host.close()


def test_an_id_that_another_agent_has_is_given_up_or_waited_for(world: World, tmp_path: Path) -> None:
    """The error names the id and its host; with another id the agent starts, and so it does after the other's end."""
    first, second = Host(world), Host(world)
    try:
        for one in (first, second):
            one.config.write_text(one.config.read_text() + f"store = 'sqlite://{tmp_path}/shared'\nhost_id = 'h1'\n")
        first.start()
        said = refused(second)
        assert "host id h1 is in use by another agent that lives, on h1" in said
        assert "give each host an id of its own (--host-id), or stop the other one" in said
        assert not [path for path in second.state_dir.iterdir() if path.name in ("replica.json", "host-id")]
        text = second.config.read_text()
        second.config.write_text(text.replace("'h1'", "'h2'"))
        second.start()
        assert "this host's id was" not in second.log.read_text() + second.cli("events")
        second.stop()
        kept = (second.state_dir / "replica.json").read_bytes()
        second.config.write_text(text)
        assert "or stop the other one" in refused(second)
        assert (second.state_dir / "replica.json").read_bytes() == kept
        first.stop(signal.SIGKILL)
        second.start()
    finally:
        first.close()
        second.close()


def test_files_of_the_store_s_url_that_are_missing_are_named_one_by_one(world: World, tmp_path: Path) -> None:
    """A new agent waits, says so by `status`, and continues by itself when each file is there."""
    host = Host(world)
    authority = Authority(tmp_path / "authority")
    server = authority.certificate("server")
    ca, password = tmp_path / "ca.pem", tmp_path / "password"
    client = "https://127.0.0.1:2379"
    urls = ("--listen-client-urls", client, "--advertise-client-urls", client)
    etcd = ("etcd", "--data-dir", str(tmp_path / "etcd"), *urls)
    files = ("--cert-file", server.cert, "--key-file", server.key, "--listen-peer-urls", "http://127.0.0.1:2380")
    try:
        with (tmp_path / "etcd.log").open("wb") as log:
            world.spawn(host.netns, *etcd, *files, stdout=log, stderr=log)
        url = f"etcd://127.0.0.1:2379/ls?ca={ca}&user=me&password-file={password}"
        host.config.write_text(host.config.read_text() + f"store = '{url}'\n")
        words = ("agent", "--config", host.config, "--state-dir", host.state_dir, "--socket", host.socket)
        command = [sys.executable, "-m", "linkspan.cli.main", *map(str, words)]
        with host.log.open("ab") as log:
            host.process = world.spawn(host.netns, *command, stdout=subprocess.PIPE, stderr=log)
        until(host.socket.exists, "the agent waits")

        def waits_for(file: Path, fix: str) -> None:
            until(lambda: str(file) in host.cli("status", code=3), f"it names {file}")
            store = host.json("status", code=3)["store"]
            assert "no such file" in store["problem"]
            assert store["fix"] == fix

        first, second = (password, ca)
        waits_for(first, "write the password into it (and chmod 600), or correct password-file in the store's URL")
        first.write_text("secret\n")
        until(lambda: "chmod 600" in host.json("status", code=3)["store"]["fix"], "it is not root's alone")
        first.chmod(0o600)
        waits_for(second, "put it there, or correct ca in the store's URL")
        second.write_bytes(Path(authority.cert).read_bytes())
        assert host.process.stdout is not None
        assert host.process.stdout.readline() == b"ready\n"
        assert host.cli("status")
    finally:
        host.close()
