"""Labels of containers, from the database that the calling Podman has open. Here Podman is the test's own process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from linkspan.core.errors import Unavailable
from linkspan.core.event_log import EventLog
from linkspan.runtimes.podman import podman_labels
from linkspan.runtimes.podman.podman_service import Podman
from support.cni.cni_agent import FakeAgent
from support.polling import until

pytestmark = pytest.mark.root  # nobody else's database is trusted

TABLES = """
CREATE TABLE PodConfig(ID TEXT PRIMARY KEY NOT NULL, Name TEXT UNIQUE NOT NULL, JSON TEXT NOT NULL);
CREATE TABLE ContainerConfig(
    ID TEXT PRIMARY KEY NOT NULL, Name TEXT UNIQUE NOT NULL, PodID TEXT, JSON TEXT NOT NULL,
    FOREIGN KEY (PodID) REFERENCES PodConfig(ID)
);
"""
WEB = "90b91fb20427e0d7e570a891bdb804f8"


class Database:
    """Podman's database: it writes JSON as bytes, and keeps its connection."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "db.sql"
        self.connection = sqlite3.connect(self.path, isolation_level=None)
        self.connection.executescript(TABLES)

    def add(self, container: str, configuration: bytes, pod: str = "") -> None:
        """Add a container."""
        row = (container, f"name of {container}", pod or None, configuration)
        self.connection.execute("INSERT INTO ContainerConfig VALUES (?, ?, ?, ?)", row)

    def add_pod(self, pod: str, configuration: bytes) -> None:
        """Add a pod."""
        self.connection.execute("INSERT INTO PodConfig VALUES (?, ?, ?)", (pod, f"name of {pod}", configuration))


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """Give a database without containers."""
    made = Database(tmp_path)
    with contextlib.closing(made.connection):
        yield made


@pytest.fixture
def plugin() -> Iterator[int]:
    """Give a process as netavark starts a plugin: with a network namespace as descriptor 3."""
    command = ["sh", "-c", "exec 3</proc/self/ns/net; exec cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        until(lambda: Path(f"/proc/{process.pid}/fd/3").exists(), "the namespace is open")
        yield process.pid
        assert process.stdin is not None
        process.stdin.close()


def configuration(**labels: str) -> bytes:
    """Return a container's or a pod's configuration, of which labels are a small part."""
    return json.dumps({"spec": {"process": {"args": ["sleep"]}}, "labels": labels, "networks": None}).encode()


def test_a_container_has_its_labels_and_its_pod_s(database: Database, plugin: int) -> None:
    """Its own come before those of its pod; a container without any has none."""
    database.add_pod("shop", configuration(app="shop", tier="back"))
    database.add(WEB, configuration(tier="front"), "shop")
    database.add("alone", configuration(tier="alone"))
    database.add("plain", b'{"spec": {}}')
    database.add("null", b'{"labels": null}')
    assert podman_labels.labels(plugin, WEB) == {"app": "shop", "tier": "front"}
    assert podman_labels.labels(plugin, "alone") == {"tier": "alone"}
    assert podman_labels.labels(plugin, "plain") == podman_labels.labels(plugin, "null") == {}


def test_podman_may_be_behind_a_program_that_wraps_netavark(database: Database) -> None:
    """The nearest ancestor with a database is Podman."""
    database.add(WEB, configuration(app="web"))
    script = "sh -c 'sleep 60 & echo $!; wait' & wait"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True) as wrapper:
        assert wrapper.stdout is not None
        plugin = int(wrapper.stdout.readline())
        try:
            assert podman_labels.labels(plugin, WEB) == {"app": "web"}
        finally:
            os.kill(plugin, signal.SIGTERM)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (b"", "is not in"),
        (b"no JSON", "JSON is malformed"),
        (b"\xff\xfe", "JSON is malformed"),
        (b'{"labels": ["app"]}', "Expected `object | null`, got `array` - at `$.labels`"),
        (b'{"labels": {"app": 1}}', "Expected `str`, got `int`"),
        (b'{"labels": {"app": "\xff"}}', "can't decode byte 0xff"),
        (b'{"spec": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "recursion"),
        (b'{"labels": {"app": "' + b"x" * podman_labels.LARGEST + b'"}}', "too big"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_told(
    database: Database, plugin: int, found: bytes, words: str
) -> None:
    """Whatever is in the database, the error names the container and the file."""
    if found:
        database.add(WEB, found)
    with pytest.raises(Unavailable) as refused:
        podman_labels.labels(plugin, WEB)
    assert words in refused.value.message
    assert f"container {WEB[:12]} " in refused.value.message
    assert str(database.path) in refused.value.message


@pytest.mark.parametrize("table", ["ContainerConfig", "PodConfig"])
def test_another_schema_is_told(database: Database, plugin: int, table: str) -> None:
    """A later Podman may keep its containers in other tables."""
    database.add(WEB, configuration(app="web"))
    database.connection.execute(f"ALTER TABLE {table} RENAME TO Other")
    with pytest.raises(Unavailable, match=f"no such table: {table}"):
        podman_labels.labels(plugin, WEB)


def test_a_file_that_is_no_database_is_told(tmp_path: Path, plugin: int) -> None:
    """A file of that name alone is not Podman's."""
    with (tmp_path / "db.sql").open("wb") as file:
        file.write(b"something else" * 1000)
        file.flush()
        with pytest.raises(Unavailable, match="file is not a database"):
            podman_labels.labels(plugin, WEB)


def test_nobody_waits_long_for_a_podman_that_writes(
    database: Database, plugin: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its transactions exclude readers; a network is set up in between, but another Podman may write."""
    database.add(WEB, configuration(app="web"))
    monkeypatch.setattr(podman_labels, "PATIENCE", 0.05)
    database.connection.execute("BEGIN EXCLUSIVE")
    with pytest.raises(Unavailable, match="database is locked"):
        podman_labels.labels(plugin, WEB)
    database.connection.execute("COMMIT")
    assert podman_labels.labels(plugin, WEB) == {"app": "web"}


def test_a_database_that_others_may_write_is_not_trusted(database: Database, plugin: int) -> None:
    """Who may write it would decide which policies hold."""
    database.add(WEB, configuration(app="web"))
    database.path.chmod(0o666)
    with pytest.raises(Unavailable, match=r"is not trusted: .*db\.sql may be written by everybody"):
        podman_labels.labels(plugin, WEB)
    database.path.chmod(0o644)
    os.chown(database.path, 528287, 0)
    with pytest.raises(Unavailable, match=r"is not trusted: .*db\.sql is owned by user 528287"):
        podman_labels.labels(plugin, WEB)


def test_a_podman_that_sees_other_mounts_is_told(tmp_path: Path) -> None:
    """Its path leads elsewhere here: to nothing, or to somebody else's database."""
    script = 'mount -t tmpfs tmpfs "$1"; exec 3>"$1/db.sql"; sleep 60 & echo $!; wait'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        plugin = int(other.stdout.readline())
        try:
            with pytest.raises(Unavailable, match="which sees other mounts"):
                podman_labels.labels(plugin, WEB)
            (tmp_path / "db.sql").touch()
            with pytest.raises(Unavailable, match="which sees other mounts"):
                podman_labels.labels(plugin, WEB)
        finally:
            os.kill(plugin, signal.SIGTERM)


def test_a_podman_without_a_database_file_is_told(plugin: int) -> None:
    """A database of BoltDB is closed again after each access."""
    with pytest.raises(Unavailable, match=r"has no db\.sql open, as if its database were BoltDB"):
        podman_labels.labels(plugin, WEB)


def set_up(service: Podman, plugin: int, container: str, name: str) -> tuple[int, bytes]:
    """Call the service as the plugin does."""
    call = {
        "container_id": container,
        "container_name": name,
        "network": {"name": "demo", "ipam_options": {"driver": "none"}},
        "network_options": {"interface_name": "eth0", "aliases": ["www"]},
    }
    block = b"COMMAND=setup\0LINKSPAN_NETNS_FD=3\0NETNS=/run/netns/x\0\0"
    return asyncio.run(service.answer("/podman", block + json.dumps(call).encode(), plugin, 0))


def test_an_endpoint_begins_with_its_labels(tmp_path: Path, database: Database, plugin: int) -> None:
    """They come with the attach; those that linkspan sets itself are not a user's."""
    mine = {"aliases": "db", "linkspan.from": "0.0.0.0/0", "linkspan.runtime": "cni", "linkspan.io/identity": "db-0"}
    database.add(WEB, configuration(app="web", **mine))
    agent, event_log = FakeAgent(), EventLog(tmp_path / "events")
    status, answer = set_up(Podman(agent, event_log), plugin, WEB, "web")
    assert status == 200, answer
    assert agent.attached[WEB, "eth0"].labels == {"app": "web", "aliases": "www"}
    assert event_log.kept("network") == []


def test_an_endpoint_without_its_labels_is_attached_and_the_reason_told_once(tmp_path: Path, plugin: int) -> None:
    """A Podman that has them elsewhere starts containers all the time."""
    agent, event_log = FakeAgent(), EventLog(tmp_path / "events")
    service = Podman(agent, event_log)
    for container, name in ((WEB, "web"), ("second", "db")):
        assert set_up(service, plugin, container, name)[0] == 200
    assert [one.labels for one in agent.attached.values()] == [{"aliases": "www"}, {"aliases": "www"}]
    (told,) = event_log.kept("network")
    assert told.what.startswith("web has none of its labels here: the calling Podman has no db.sql open")
    assert told.what.endswith("; set them by linkspan endpoint label web KEY=VALUE")
    assert told.about == {"endpoint": WEB, "network": "demo"}
