"""When the snapshot is written: after changes of records that it has; and how: record by record."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from linkspan.core.model import Host
from linkspan.core.store_contract import Record
from linkspan.store import replica, snapshot
from linkspan.store.lost_records import LostRecords
from linkspan.store.memory import Memory
from linkspan.store.records import BlockRecord
from linkspan.store.snapshot import LATEST, SHARE, SNAPSHOT_AFTER, Kept, Snapshot, pause_after
from support.polling import eventually
from support.records.replicas import Member, together


def test_liveness_and_containers_cause_no_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They change all the time in a large cluster, and no snapshot has them."""

    async def work() -> None:
        one = Member(Memory(), tmp_path, "h1")
        await one.replica.start()
        await one.replica.accepted()
        noted: list[str] = []
        monkeypatch.setattr(Snapshot, "note", lambda _self: noted.append("due"))
        await one.replica.write({"alive/h2": b"h2", "endpoints/h1/c1/eth0": b"{}"})
        await one.replica.write({}, deletes=["endpoints/h1/c1/eth0"])
        assert noted == []
        await one.replica.write({"hosts/h2": Host(id="h2", name="h2")})
        assert noted == ["due"]
        await one.replica.stop()

    together(work)


def test_a_start_writes_no_snapshot_that_is_there_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large cluster it has megabytes, and a start waits for it; a change of a revision alone is one, too."""

    async def begun(memory: Memory) -> Member:
        one = Member(memory, tmp_path, "h1")
        await one.replica.start()
        await one.replica.accepted()
        return one

    async def work() -> None:
        memory, written = Memory(), list[str]()
        write = Snapshot.write

        def noted(self: Snapshot) -> None:
            written.append("written")
            write(self)

        monkeypatch.setattr(Snapshot, "write", noted)
        one = await begun(memory)
        await one.replica.write({"hosts/h1": one.hosts.here, "hosts/h2": Host(id="h2", name="h2")})
        await one.replica.stop()
        written.clear()
        two = await begun(memory)
        assert written == []
        assert two.replica.known_revision("hosts/h2")
        await two.replica.stop()
        other = Member(memory, tmp_path, "h2")
        await other.replica.start()
        await other.replica.write({"hosts/h2": Host(id="h2", name="h2")})
        await other.replica.stop()
        written.clear()
        three = await begun(memory)
        assert written == ["written"]
        await three.replica.stop()

    together(work)


def test_a_listing_compares_only_claims_that_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster of 1,000 hosts with 20 networks has 20,000 blocks, and an agent that starts lists all of them."""

    async def work() -> None:
        memory, compared = Memory(), list[str]()
        one = Member(memory, tmp_path, "h1")
        await one.replica.start()
        await one.replica.write({f"blocks/demo/10.244.{n}.0/24": BlockRecord("h2", 1.0) for n in range(20)})
        await one.replica.accepted()
        await one.replica.stop()
        other = Member(memory, tmp_path, "h2")
        await other.replica.start()
        await other.replica.write({"blocks/demo/10.244.7.0/24": BlockRecord("h3", 2.0)})
        await other.replica.stop()
        monkeypatch.setattr(LostRecords, "compare", lambda _self, old, _new: compared.append(old.key))
        two = Member(memory, tmp_path, "h1")
        await two.replica.start()
        assert compared == ["blocks/demo/10.244.7.0/24"]
        await two.replica.stop()

    together(work)


def test_a_listing_keeps_no_value_that_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are compared while others are on their way; another value is adopted, and revisions are those of now."""

    async def work() -> None:
        memory, listed = Memory(), list[Record]()
        one = Member(memory, tmp_path, "h1")
        await one.replica.start()
        await one.replica.write({f"hosts/h{n}": Host(id=f"h{n}", name=f"h{n}") for n in range(9)})
        await one.replica.accepted()
        await one.replica.stop()
        other = Member(memory, tmp_path, "h2")
        await other.replica.start()
        await other.replica.write({"hosts/h7": Host(id="h7", name="other"), "hosts/h8": Host(id="h8", name="h8")})
        revision = other.replica.known_revision("hosts/h7")
        await other.replica.stop()
        two = Member(memory, tmp_path, "h1")
        shortened = two.replica._shortened

        def noted(record: Record) -> Record:
            listed.append(shortened(record))
            return listed[-1]

        monkeypatch.setattr(two.replica, "_shortened", noted)
        await two.replica.start()
        kept = {record.key for record in listed if record.key.startswith("hosts/") and record.value is not replica.SAME}
        assert kept == {"hosts/h7"}
        assert two.hosts.names()["h7"] == "other"
        revisions = [two.replica.known_revision(f"hosts/h{n}") for n in range(9)]
        assert revisions[7:] == [revision, revision]
        assert 0 < min(revisions) < revision
        await two.replica.stop()

    together(work)


def test_a_stop_waits_for_the_snapshot_that_is_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread writes it, which no cancellation ends: both would write into the same file before it gets its name."""
    begun, overlap, running, lock = threading.Event(), threading.Event(), list[str](), threading.Lock()
    written = list[int]()

    def slow(_path: Path, parts: Iterator[bytes], _mode: int) -> None:
        with lock:
            running.append("write")
            if len(running) > 1:
                overlap.set()
        begun.set()
        overlap.wait(0.3)  # what is to be shown is that nothing happens meanwhile
        written.append(sum(map(len, parts)))
        running.pop()

    monkeypatch.setattr(snapshot, "write_parts", slow)
    monkeypatch.setattr(snapshot, "SNAPSHOT_AFTER", 0.0)

    async def work() -> None:
        one = Member(Memory(), tmp_path, "h1")
        await one.replica.start()
        await eventually(begun.is_set, "a thread writes the snapshot")
        await one.replica.stop()
        assert not overlap.is_set()
        assert len(written) == 2

    together(work)


def test_a_large_snapshot_is_written_less_often() -> None:
    """All records are written for one change, so what that costs bounds how often."""
    assert pause_after(0.0) == SNAPSHOT_AFTER
    assert pause_after(0.1) == SHARE * 0.1
    assert pause_after(60.0) == LATEST


def test_records_are_read_while_the_file_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before: all of them as values take several times the memory that the replica has for them."""
    read, written = 0, list[tuple[int, bytes]]()

    def records() -> Iterator[Record]:
        nonlocal read
        for number in range(1000):
            read += 1
            yield Record(f"hosts/h{number}", bytes(1000), number)

    def noted(_path: Path, parts: Iterator[bytes], _mode: int) -> None:
        written.extend((read, part) for part in parts)

    monkeypatch.setattr(snapshot, "write_parts", noted)
    kept = Snapshot(tmp_path / "replica.json", lambda: Kept("c1", records(), "h1"))
    kept.write()
    assert written[0][0] < 100
    assert max(later - before for (before, _), (later, _) in itertools.pairwise(written)) < 100
    (tmp_path / "replica.json").write_bytes(b"".join(part for _, part in written))
    found = kept.read()
    assert (found.cluster, found.host) == ("c1", "h1")
    assert found.records == [Record(f"hosts/h{number}", bytes(1000), number) for number in range(1000)]
