"""Factory: the store that a URL opens, and the fake one's switches."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from linkspan.core.errors import Invalid, Unavailable
from linkspan.core.store_url import etcd_parts
from linkspan.store.etcd import EtcdStore
from linkspan.store.factory import open_store, own_cluster
from linkspan.store.memory import Memory, MemoryStore
from linkspan.store.sqlite import SqliteStore
from support.polling import eventually
from support.store.engines import EtcdEngine, Watched
from support.store.etcd_members import Members


async def test_a_url_opens_its_store(tmp_path: Path) -> None:
    """None is SQLite in the state folder; sqlite:// is a folder; etcd:// asks nothing yet."""
    for url, folder in (("", tmp_path / "store"), (f"sqlite://{tmp_path}/shared", tmp_path / "shared")):
        store = open_store(url, tmp_path)
        assert isinstance(store, SqliteStore)
        assert store.path == folder / "store.db"
        await store.close()
    etcd = open_store("etcd://h1,[2001:db8::1]:1/x/y", tmp_path, cluster="c1")
    assert isinstance(etcd, EtcdStore)
    assert etcd.cluster == "c1"
    await etcd.close()


async def test_hosts_with_one_url_are_at_different_members(tmp_path: Path) -> None:
    """Each asks one of them first, and the next ones in order."""
    first = set()
    for _ in range(100):
        store = open_store("etcd://h1,h2,h3", tmp_path)
        assert isinstance(store, EtcdStore)
        order = store.gateway.order()
        assert sorted(order) == ["h1:2379", "h2:2379", "h3:2379"]
        first.add(order[0])
        await store.close()
    assert first == {"h1:2379", "h2:2379", "h3:2379"}


def test_an_etcd_url_has_its_parts() -> None:
    """Several endpoints, etcd's port and our prefix as defaults, files, and the user."""
    url = etcd_parts("etcd://h1,h2:1234,[2001:db8::1],[2001:db8::2]:1?ca=/a&cert=/b&key=/c&user=me&password-file=/d%20e")
    assert url.endpoints == ("h1:2379", "h2:1234", "[2001:db8::1]:2379", "[2001:db8::2]:1")
    assert (url.prefix, url.tls) == ("/linkspan/", True)
    assert (url.ca, url.cert, url.key, url.user, url.password_file) == ("/a", "/b", "/c", "me", "/d e")
    assert etcd_parts("etcd://h1/a/b/").prefix == "/a/b/"
    assert not etcd_parts("etcd://h1/a").tls


@pytest.mark.parametrize(
    "url",
    [
        "consul://h1",
        "/var/lib/x",
        "sqlite://relative",
        "sqlite:///x?y=z",
        "etcd://",
        "etcd://h1,,h2",
        "etcd://h1:port",
        "etcd://h1:99999",
        "etcd://[::1",
        "etcd://h1/x#y",
        "etcd://h1?ca=relative",
        "etcd://h1?ca=",
        "etcd://h1?ca",
        "etcd://h1?cert=/c",
        "etcd://h1?user=me",
        "etcd://h1?password-file=/p",
        "etcd://h1?colour=red",
        "etcd://h1?ca=/a&ca=/b",
    ],
)
def test_a_url_that_is_wrong_is_refused(url: str, tmp_path: Path) -> None:
    """Invalid names the URL and says how one is written."""
    with pytest.raises(Invalid, match="store") as caught:
        open_store(url, tmp_path)
    assert url in str(caught.value)
    assert caught.value.hint


def test_a_password_in_a_url_is_not_repeated(tmp_path: Path) -> None:
    """It is refused, because logs and process lists show URLs, and the error does not show it."""
    with pytest.raises(Invalid) as caught:
        open_store("etcd://me:hidden@h1", tmp_path)
    assert "hidden" not in str(caught.value)
    assert "password-file" in caught.value.hint


@pytest.mark.root
async def test_processes_share_an_etcd(members: Members) -> None:
    """Of the claims of two processes each block goes to one."""
    with members.inside():
        engine = EtcdEngine(members, "test_processes_share_an_etcd")
        claiming = Path(__file__).parents[1] / "support/store/block_claimer.py"
        children = [
            await asyncio.create_subprocess_exec(
                sys.executable, claiming, engine.url, name, "50", stdout=subprocess.PIPE
            )
            for name in ("h1", "h2")
        ]
        told = [int((await child.communicate())[0]) for child in children]
        store = engine.open()
        records, _ = await store.list("by/")
        await store.close()
    assert sum(told) == len(records) == 50


async def test_a_fake_that_is_cut_fails_and_is_mended() -> None:
    """Only the host that is cut has errors; its watch yields what it missed when it is repaired."""
    memory = Memory()
    near, far = MemoryStore(memory), MemoryStore(memory)
    watched = Watched(near, "", 0)
    await far.transaction({"a": b"1"})
    await watched.has({"a": b"1"})
    near.cut()
    await far.transaction({"a": b"2"})
    await far.transaction({"b": b"1"})
    for call in (near.get("a"), near.list(""), near.transaction({"c": b""})):
        with pytest.raises(Unavailable, match="cut"):
            await call
    assert watched.records == {"a": b"1"}
    near.mend()
    await watched.has({"a": b"2", "b": b"1"})
    await near.close()
    await eventually(lambda: watched.ended, "the watch's end", 60)


async def test_a_fake_that_is_restored_says_so() -> None:
    """A watch over a restore gets NotFound, as with the real ones."""
    memory = Memory()
    store = MemoryStore(memory)
    watched = Watched(store, "", 0)
    await store.transaction({"a": b"1"})
    await watched.has({"a": b"1"})
    memory.restore(0, {})
    await eventually(lambda: watched.ended, "the watch's error", 60)
    assert "went back" in str(watched.error)


async def test_the_cluster_of_a_host_that_is_alone_is_read_beside_its_agent(tmp_path: Path) -> None:
    """While the store is open, as a kill leaves it, and after it was closed."""
    store = open_store("", tmp_path)
    await store.transaction({"hosts/h1": b"{}"})
    assert own_cluster(tmp_path) == store.cluster
    shutil.copytree(tmp_path / "store", tmp_path / "killed" / "store")
    await store.close()
    assert own_cluster(tmp_path) == store.cluster
    assert own_cluster(tmp_path / "killed") == store.cluster


def test_what_is_no_store_is_nobody_s_cluster(tmp_path: Path) -> None:
    """A folder without one, an empty file, and garbage."""
    assert own_cluster(tmp_path) == ""
    file = tmp_path / "store" / "store.db"
    file.parent.mkdir()
    for content in (b"", b"garbage" * 1000):
        file.write_bytes(content)
        assert own_cluster(tmp_path) == ""
