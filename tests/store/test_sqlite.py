"""The SQLite store: kept, shared by the processes of one machine, and this machine's alone."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from linkspan import SCHEMA
from linkspan.core.database import open_database
from linkspan.core.errors import NotFound, Unavailable, of_errno
from linkspan.store import sqlite
from linkspan.store.sqlite import SqliteStore
from support.polling import eventually
from support.store.engines import SqliteEngine, Watched

CLAIMING = Path(__file__).parents[1] / "support/store/block_claimer.py"


@pytest.fixture
def engine(tmp_path: Path) -> SqliteEngine:
    """Give an empty folder."""
    return SqliteEngine(tmp_path / "store")


async def test_records_outlast_the_agent(engine: SqliteEngine) -> None:
    """Records are there after a restart, with revision and the cluster's id; deleted ones are not."""
    store = engine.open()
    await store.transaction({"networks/demo": b"\x00one", "networks/other": b"two"})
    await store.transaction({}, deletes=["networks/other"])
    before = await store.list("")
    await store.close()
    again = engine.connect()
    assert await again.list("") == before
    assert again.cluster == store.cluster


async def test_two_processes_share_the_folder(engine: SqliteEngine) -> None:
    """Of the claims of two processes each block goes to one, and this one watches both within its watch."""
    store = engine.connect()
    _, revision = await store.list("")
    watched = Watched(store, "by/", revision)
    url = f"sqlite://{engine.folder}"
    children = [
        await asyncio.create_subprocess_exec(sys.executable, CLAIMING, url, name, "100", stdout=subprocess.PIPE)
        for name in ("h1", "h2")
    ]
    told = [int((await child.communicate())[0]) for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert sum(told) == 100
    records, _ = await store.list("by/")
    await watched.has({record.key: record.value for record in records})
    assert len(records) == 100
    assert (await store.list("block/"))[0][0].value in {b"h1", b"h2"}
    await watched.stop()


async def test_another_agents_change_is_heard_at_once(engine: SqliteEngine) -> None:
    """The bell is heard long before the poll would find it."""
    one, other = engine.connect(), engine.connect()
    _, revision = await one.list("")
    watched = Watched(one, "", revision)
    await other.transaction({"first": b""})
    await watched.has({"first": b""})
    took = []
    for number in range(20):
        began = time.monotonic()
        await other.transaction({"first": b"%d" % number})
        await watched.has({"first": b"%d" % number})
        took.append(time.monotonic() - began)
    assert sorted(took)[10] < 0.2
    await watched.stop()


async def test_a_change_is_seen_without_inotify(engine: SqliteEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the user has no instance left, an agent sees each change of another's long before the poll would find it."""

    def none_left(folder: Path, told: object) -> None:
        raise of_errno(errno.EMFILE, "make an inotify instance")

    monkeypatch.setattr(sqlite, "FolderWatch", none_left)
    monkeypatch.setattr(sqlite, "POLL_SECONDS", 3600.0)
    one, other = engine.connect(), engine.connect()
    _, revision = await one.list("")
    watched = Watched(one, "", revision)
    for value in (b"1", b"2"):
        await other.transaction({"a": value})
        await watched.has({"a": value})
    await watched.stop()


async def test_a_failing_transaction_changes_nothing(engine: SqliteEngine) -> None:
    """A disk that fills up midway leaves the earlier records, and the store can be used on."""
    store = engine.open()
    await store.transaction({"a": b"1"})

    def fill(size: str) -> int:
        return int(store._table._database.execute(f"PRAGMA max_page_count={size}").fetchone()[0])

    size = await store._run(lambda table: table._database.execute("PRAGMA page_count").fetchone()[0])
    await store._run(lambda table: fill(size))
    with pytest.raises(Unavailable, match=r"store\.db: disk full"):
        await store.transaction({"b": b"2", "c": b"x" * 100_000}, deletes=["a"])
    records, _ = await store.list("")
    assert [record.key for record in records] == ["a"]
    assert await store.transaction({"b": b"2"})
    await store.close()


async def test_another_machines_store_is_refused(engine: SqliteEngine) -> None:
    """The error names both machines and says what to do; this machine's own id is accepted again."""
    await SqliteStore(engine.folder, machine="m1").close()
    with pytest.raises(Unavailable, match="belongs to machine m1, and this is m2") as caught:
        SqliteStore(engine.folder, machine="m2")
    assert "etcd" in caught.value.hint
    await SqliteStore(engine.folder, machine="m1").close()


async def test_a_machine_without_an_id_leaves_the_store_to_the_first_that_has_one(tmp_path: Path) -> None:
    """An image without /etc/machine-id can use a store, and claims none."""
    for machine in ("", "m1", ""):
        await SqliteStore(tmp_path, machine=machine).close()
    with pytest.raises(Unavailable, match="machine m1"):
        SqliteStore(tmp_path, machine="m2")


async def test_another_clusters_store_is_refused(tmp_path: Path) -> None:
    """A host that belongs to one cluster does not join another by a wrong path; a new store gets its id."""
    store = SqliteStore(tmp_path, cluster="c1")
    assert store.cluster == "c1"
    await store.close()
    with pytest.raises(Unavailable, match="cluster c1's, and this host belongs to c2"):
        SqliteStore(tmp_path, cluster="c2")


async def test_a_copy_is_refused_until_it_is_accepted(engine: SqliteEngine, tmp_path: Path) -> None:
    """Two stores from one would hand out the same addresses; the hint's command accepts a restored backup."""
    store = engine.open()
    await store.transaction({"a": b"1"})
    await store.close()
    shutil.copytree(engine.folder, tmp_path / "copy")
    with pytest.raises(Unavailable, match="is a copy") as caught:
        SqliteStore(tmp_path / "copy")
    statement = caught.value.hint.split('"')[1]
    with contextlib.closing(sqlite3.connect(tmp_path / "copy" / "store.db")) as database:
        database.execute(statement)
        database.commit()
    accepted = SqliteStore(tmp_path / "copy")
    assert await accepted.get("a")
    await accepted.close()


async def test_a_store_that_is_deleted_comes_back_empty(engine: SqliteEngine) -> None:
    """The watch says that the revision went back, the cluster is the same, and records can be put again."""
    store, other = engine.connect(), engine.connect()
    for number in range(5):
        await store.transaction({"a": b"%d" % number})
    _, revision = await store.list("")
    watched = Watched(store, "", revision)
    shutil.rmtree(engine.folder)
    assert await other.transaction({"b": b"1"})
    await eventually(lambda: watched.ended, "the watch's error", 60)
    assert isinstance(watched.error, NotFound)
    assert "went back" in str(watched.error)
    records, _ = await store.list("")
    assert [record.key for record in records] == ["b"]
    assert SqliteStore(engine.folder).cluster == store.cluster


async def test_what_expires_is_gone_after_a_reboot(engine: SqliteEngine) -> None:
    """A record with a time to live does not outlast the boot in which it was put."""
    store = engine.open()
    await store.transaction({"alive/h1": b"", "hosts/h1": b""}, ttl=3600)
    await store.transaction({"hosts/h1": b""})
    await store._run(lambda table: table._database.execute("UPDATE entries SET boot = 'old' WHERE boot <> ''"))
    assert await store.transaction({}, absent=["alive/h1"])
    assert await store.get("hosts/h1")
    await store.close()


async def test_old_deletes_are_pruned(tmp_path: Path) -> None:
    """The file does not grow with keys that are put and deleted again and again."""
    store = SqliteStore(tmp_path, keep=100)
    await store._run(lambda table: table._database.execute("UPDATE clock SET revision = 900"))
    for number in range(60):
        await store.transaction({f"ask/{number}": b""})
        await store.transaction({}, deletes=[f"ask/{number}"])
    count = await store._run(
        lambda table: table._database.execute("SELECT count(*) FROM entries WHERE revision <= 900").fetchone()[0]
    )
    assert count == 0
    with pytest.raises(NotFound, match="only those after 900"):
        await anext(aiter(store.watch("", 899)))
    await store.close()


async def test_records_of_the_time_before_revisions_are_taken_over(tmp_path: Path) -> None:
    """A store of the first version keeps its networks."""
    with contextlib.closing(sqlite3.connect(tmp_path / "store.db")) as database:
        database.execute("CREATE TABLE records(key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")
        database.execute("INSERT INTO records VALUES ('networks/demo', x'31')")
        database.commit()
    store = SqliteStore(tmp_path)
    record = await store.get("networks/demo")
    assert record
    assert (record.value, record.revision) == (b"1", 1)
    await store.close()
    await SqliteStore(tmp_path).close()


async def test_only_root_may_read_the_folder_and_the_file(engine: SqliteEngine) -> None:
    """A folder that we make is 0700, the files 0600."""
    store = engine.connect()
    await store.transaction({"a": b""})
    assert stat.S_IMODE(engine.folder.stat().st_mode) == 0o700
    for name in os.listdir(engine.folder):
        assert stat.S_IMODE((engine.folder / name).stat().st_mode) == 0o600


def test_a_corrupt_store_is_named_and_left_as_it_is(tmp_path: Path) -> None:
    """It is never replaced by an empty one."""
    path = tmp_path / "store.db"
    path.write_bytes(b"SQLite format 3\x00" + b"\xee" * 9000)
    before = path.read_bytes()
    with pytest.raises(Unavailable, match=r"store\.db is corrupt"):
        SqliteStore(tmp_path, machine="m1")
    assert path.read_bytes() == before


async def test_a_newer_store_is_refused(engine: SqliteEngine) -> None:
    """The error says to upgrade."""
    store = engine.open()
    newer = str(SCHEMA + 1)
    await store._run(
        lambda table: table._database.execute("UPDATE meta SET value = ? WHERE name = 'schema'", (newer,))
    )
    await store.close()
    with pytest.raises(Unavailable, match=f"schema {newer}") as caught:
        engine.open()
    assert "upgrade" in caught.value.hint


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """A file in its place is an error that says which."""
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match=f"store folder {tmp_path}/file"):
        SqliteStore(tmp_path / "file" / "store", machine="m1")


def test_a_file_that_another_process_is_making_is_waited_for(tmp_path: Path) -> None:
    """Agents that start at once on one new folder: none is refused because another is writing first."""
    file = tmp_path / "new.db"
    other = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    other.execute("CREATE TABLE other(x)")
    done = threading.Timer(0.2, lambda: other.execute("COMMIT"))
    done.start()
    open_database(file, "FULL", "CREATE TABLE IF NOT EXISTS mine(x)").close()
    done.join()
    other.close()


async def test_a_watch_of_a_file_that_cannot_be_read_proves_nothing(
    engine: SqliteEngine, prompt: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It proves again that it lives when the disk is well again."""
    store = engine.open()
    watched = Watched(store, "", (await store.list(""))[1])
    await eventually(lambda: watched.proofs > 2, "the watch proves that it lives")

    async def failing(*_arguments: object) -> None:
        raise Unavailable("the disk fails", "mend it")

    with monkeypatch.context() as patched:
        patched.setattr(store, "_run", failing)
        begun = time.monotonic()
        await eventually(lambda: time.monotonic() > begun + 2, "the last look is old")
        before = watched.proofs
        await eventually(lambda: time.monotonic() > begun + 4, "two more seconds have passed")
        assert watched.proofs == before
    await eventually(lambda: watched.proofs > before, "it proves it again")
    await store.close()
