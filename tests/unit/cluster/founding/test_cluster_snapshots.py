"""Snapshots: whole or not there, seven are kept, and one voter at a time takes them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import hashlib
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from linkspan.cluster.founding import snapshots
from linkspan.cluster.founding.snapshots import EVERY, KEPT, TURN, Keeper, Taken, Turn, age, check, kept, take
from linkspan.cluster.founding.trust_files import Voter as Part
from linkspan.core.errors import Invalid, LinkspanError, Unavailable
from linkspan.core.store_url import etcd_parts
from linkspan.store.etcd_gateway import Gateway
from linkspan.store.memory import Memory, MemoryStore
from linkspan.store.vault import Vault

DATABASE = os.urandom(512 * 200)
WHOLE = DATABASE + hashlib.sha256(DATABASE).digest()
OTHER = b'{"error":{"grpc_code":14,"message":"etcdserver: no leader"}}\n'


def lines(content: bytes, parts: int = 4) -> bytes:
    """Return a snapshot as etcd's gateway sends it."""
    database, checksum = content[:-32], content[-32:]
    size = -(-len(database) // parts)
    blobs = [database[at : at + size] for at in range(0, len(database), size)]
    left, told = len(database), []
    for blob in blobs:
        left -= len(blob)
        told.append({"remaining_bytes": str(left), "blob": base64.b64encode(blob).decode()})
    told.append({"blob": base64.b64encode(checksum).decode()})  # the gateway leaves a zero out
    return b"".join(msgspec.json.encode({"result": one}) + b"\n" for one in told)


@contextlib.asynccontextmanager
async def etcd(answer: bytes) -> AsyncIterator[Gateway]:
    """Give a gateway at which a snapshot is answered so."""

    async def respond(_request: web.Request) -> web.Response:
        return web.Response(body=answer)

    app = web.Application()
    app.router.add_post("/v3/maintenance/snapshot", respond)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    gateway = Gateway(etcd_parts(f"etcd://127.0.0.1:{port}/a"))
    try:
        yield gateway
    finally:
        await gateway.close()
        await runner.cleanup()


def taken(answer: bytes, file: Path) -> Taken:
    """Take a snapshot that etcd answers so."""

    async def work() -> Taken:
        async with etcd(answer) as gateway:
            return await take(gateway, file)

    return asyncio.run(work())


def test_a_snapshot_is_what_etcd_sent_and_roots_alone(tmp_path: Path) -> None:
    """It replaces an earlier one."""
    file = tmp_path / "snapshot.db"
    file.write_text("earlier")
    file.chmod(0o644)
    assert taken(lines(WHOLE), file) == Taken(str(file), len(WHOLE))
    assert file.read_bytes() == WHOLE
    assert file.stat().st_mode & 0o777 == 0o600
    assert [*tmp_path.iterdir()] == [file]
    assert check(file) == len(WHOLE)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"".join(lines(WHOLE).splitlines(keepends=True)[:-1]), "it ended"),
        (b"".join(lines(WHOLE).splitlines(keepends=True)[:2]) + OTHER, "no leader"),
        (lines(DATABASE + bytes(32)), "damaged"),
        (lines(WHOLE[512:]), "damaged"),
        (lines(WHOLE[7:]), "cut short"),
        (b"<html>\n", "not understood"),
        (b"{}\n", "something else"),
    ],
)
def test_a_snapshot_that_does_not_come_whole_leaves_the_earlier_one(tmp_path: Path, answer: bytes, why: str) -> None:
    """Cut short, damaged, ended by etcd, or from something that is no etcd."""
    file = tmp_path / "snapshot.db"
    file.write_text("earlier")
    with pytest.raises(LinkspanError, match=why):
        taken(answer, file)
    assert [one.read_text() for one in tmp_path.iterdir()] == ["earlier"]


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the file and the disk; a folder in its place, or a missing one, too."""

    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = tmp_path / "snapshot.db"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(Unavailable, match=r"snapshot\.db cannot be written: no space left on device") as error:
            taken(lines(WHOLE), file)
        assert "free some space on the disk" in error.value.hint
    assert not [*tmp_path.iterdir()]
    with pytest.raises(Unavailable, match="no such file"):
        taken(lines(WHOLE), tmp_path / "none" / "snapshot.db")
    file.mkdir()
    with pytest.raises(Unavailable, match="it is a folder"):
        taken(lines(WHOLE), file)
    assert [*tmp_path.iterdir()] == [file]


@pytest.mark.parametrize("cut", [1, 31, 32, 33, 512, 4096, len(WHOLE) - 32, len(WHOLE)])
def test_a_snapshot_that_was_cut_short_is_refused(tmp_path: Path, cut: int) -> None:
    """Wherever it was cut."""
    file = tmp_path / "snapshot.db"
    file.write_bytes(WHOLE[: len(WHOLE) - cut])
    with pytest.raises(Invalid, match=r"cut short|damaged"):
        check(file)


class Voter:
    """A voter whose snapshots need no etcd: ``take`` writes a file, at the time that the test says."""

    def __init__(self, memory: Memory, folder: Path, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("linkspan.store.vault.EtcdStore", lambda _url: GatedStore(memory))
        self.taking: Callable[[], None] = lambda: None

        @contextlib.asynccontextmanager
        async def vault(_voter: object) -> AsyncIterator[Vault]:
            yield Vault("", "/linkspan/")

        async def written(_gateway: object, file: Path) -> Taken:
            self.taking()
            file.write_bytes(WHOLE)
            return Taken(str(file), len(WHOLE))

        monkeypatch.setattr(snapshots, "take", written)
        folder.mkdir()
        self.keeper = Keeper(folder, host, lambda: Part("192.0.2.1"), vault)

    def look(self) -> list[Path]:
        """Look once; return the snapshots."""
        asyncio.run(self.keeper.look())
        return kept(self.keeper.folder)


class GatedStore(MemoryStore):
    """A store in memory with a gateway that nobody uses."""

    gateway = None


def aged(file: Path, number: int) -> None:
    """Make a snapshot older, and its name as well."""
    old = file.with_name(f"linkspan-2026-01-{number:02}T00-00-00Z.db")
    file.rename(old)
    os.utime(old, (time.time() - EVERY - 1,) * 2)


def test_seven_automatic_snapshots_are_kept_and_none_is_taken_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest goes first; what another agent began to write is removed."""
    voter = Voter(Memory(), tmp_path / "h1", "h1", monkeypatch)
    assert age(voter.keeper.folder, time.time()) is None
    for number in range(1, 11):
        (only,) = [one for one in voter.look() if "2026-01" not in one.name]
        assert voter.look()[-1] == only
        aged(only, number)
    left = voter.keeper.folder / f"{snapshots.UNFINISHED}abc"
    left.write_text("half")
    found = voter.look()
    assert len(found) == KEPT
    assert [one.name[:19] for one in found[:-1]] == [f"linkspan-2026-01-{number:02}" for number in range(5, 11)]
    assert not left.exists()
    assert voter.keeper.folder.stat().st_mode & 0o777 == 0o700
    assert (age(voter.keeper.folder, time.time()) or 0) < EVERY


def test_one_voter_at_a_time_takes_a_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one waits for its end; if it was killed meanwhile, until its turn is over."""
    memory = Memory()
    one = Voter(memory, tmp_path / "h1", "h1", monkeypatch)
    one.taking = lambda: turns.append(msgspec.json.decode(memory.entries[TURN][0] or b"", type=Turn).host)
    turns: list[str] = []
    assert len(one.look()) == 1
    assert turns == ["h1"]
    assert memory.entries[TURN][0] is None
    two = Voter(memory, tmp_path / "h2", "h2", monkeypatch)
    for until, count in ((time.time() + 100, 0), (time.time() + 1e6, 1)):  # the latter no clock of ours has written
        memory.entries[TURN] = (msgspec.json.encode(Turn("h1", until)), memory.revision)
        assert len(two.look()) == count
    aged(two.look()[0], 1)
    memory.entries[TURN] = (msgspec.json.encode(Turn("h1", time.time() - 1)), memory.revision)
    assert len(two.look()) == 2


def test_a_failure_is_kept_until_the_next_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The turn is given back; a disk with little space is left to the agent's own files."""
    memory = Memory()
    voter = Voter(memory, tmp_path / "h1", "h1", monkeypatch)

    def fails() -> None:
        raise Unavailable("store etcd: it ended", "try again")

    voter.taking = fails
    assert voter.look() == []
    assert voter.keeper.problem == "store etcd: it ended; try again"
    assert memory.entries[TURN][0] is None
    voter.taking = lambda: None
    with monkeypatch.context() as patch:
        patch.setattr(snapshots, "SPARE", 1 << 60)
        assert voter.look() == []
        assert "MiB left" in voter.keeper.problem
    assert len(voter.look()) == 1
    assert voter.keeper.problem == ""


def test_a_snapshot_of_the_future_holds_up_no_other_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock was a year ahead for some days, and is right again; a file that is a little ahead counts."""
    voter = Voter(Memory(), tmp_path / "h1", "h1", monkeypatch)
    for number in range(1, KEPT + 1):
        file = voter.keeper.folder / f"linkspan-2099-01-{number:02}T00-00-00Z.db"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(WHOLE)
        os.utime(file, (time.time() + 365 * 86400,) * 2)
    (taken_now,) = [one for one in voter.look() if "2099" not in one.name]
    os.utime(taken_now, (time.time() + 60,) * 2)
    assert age(voter.keeper.folder, time.time()) == 0.0
    assert len(voter.look()) == KEPT + 1


def test_a_clock_that_begins_in_1970_costs_no_good_snapshot() -> None:
    """A machine without a clock of its own takes some before it learns the time."""
    good = [Path(f"linkspan-2026-01-{number:02}T00-00-00Z.db") for number in range(1, KEPT + 1)]
    wrong = [Path(f"linkspan-1970-01-{number:02}T00-00-00Z.db") for number in range(1, KEPT + 2)]
    assert snapshots.spent([*wrong, *good], wrong[-1]) == wrong[:1]
    assert snapshots.spent([*wrong[1:], *good], good[-1]) == [*wrong[1:]]


def test_a_pipe_is_no_snapshot(tmp_path: Path) -> None:
    """Nobody waits for what somebody may write into it: meanwhile no other host could join."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Invalid, match="no snapshot of etcd"):
        check(tmp_path / "pipe")
