"""Tombstones that a restore brought back: they remove nothing that was made again after the snapshot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from linkspan.core.errors import Unavailable
from linkspan.store.memory import Memory, MemoryStore
from linkspan.store.records import RESTORED
from support.polling import eventually
from support.records.replicas import Member, network, together

KEY, GRAVE = "networks/a", "gone/networks/a"
Backup = tuple[int, Mapping[str, tuple[bytes | None, int]]]


def value(octet: int) -> bytes:
    """Return the record of a network."""
    return msgspec.json.encode(network("a", f"10.{octet}.0.0/16"))


async def made_again(one: Member) -> None:
    """Make the network again, with so many changes that the restored store is not as far."""
    for octet in (3, 4, 2):
        await one.replica.write({KEY: value(octet)})


async def removed(one: Member) -> Backup:
    """Make a network and remove it; return a backup of the store."""
    await one.replica.start()
    await one.replica.write({KEY: value(1)})
    await one.replica.write({}, deletes=[KEY])
    return one.memory.revision, dict(one.memory.entries)


def restore(memory: Memory, backup: Backup, bump: int, mark: bytes | None = None) -> None:
    """Restore a backup, as `cluster restore` does, with what it writes first (``mark``: something else)."""
    last, entries = backup
    content = mark or msgspec.json.encode({"revision": last, "at": 1e9})
    memory.restore(last + bump + 1, {**entries, RESTORED: (content, last + bump + 1)})
    memory.pruned = last + bump


class Shut(MemoryStore):
    """A connection that takes no writes while it is ``shut``."""

    shut = False

    async def transaction(self, puts: Mapping[str, bytes], *args: Any, **more: Any) -> int:
        """Carry it out, unless it is shut."""
        if self.shut:
            raise Unavailable("store in memory: no answer")
        return await super().transaction(puts, *args, **more)


async def missed(memory: Memory, folder: Path) -> tuple[Member, Shut]:
    """Return a host that misses its network since a restore, because its store, the second value, is shut."""
    store = Shut(memory)
    one = Member(memory, folder, "h1", store)
    backup = await removed(one)
    await made_again(one)
    store.shut = True
    restore(memory, backup, 0)
    await eventually(lambda: one.replica.lost == {KEY}, "the network is missed")
    return one, store


@pytest.mark.parametrize("bump", [0, 1_000_000_000])
def test_a_record_that_was_made_again_survives_its_old_tombstone(tmp_path: Path, bump: int) -> None:
    """The replica removes the tombstone from the store, and it does not matter if the restore raised the revisions."""

    async def work() -> None:
        memory = Memory()
        one, two = Member(memory, tmp_path, "h1"), Member(memory, tmp_path, "h2")
        backup = await removed(one)
        await made_again(one)
        await two.replica.start()
        await eventually(lambda: KEY in two.replica.records, "h2 knows the network")
        restore(memory, backup, bump)
        for host in (one, two):
            await eventually(lambda host=host: RESTORED in host.replica.records, f"{host.name} has listed")
            await eventually(lambda host=host: not host.replica.lost, "the network is put back")
            assert host.replica.records[KEY].value == value(2)
            assert GRAVE not in host.replica.records
        assert memory.entries[KEY][0] == value(2)
        assert memory.entries[GRAVE][0] is None
        await one.replica.write({}, deletes=[KEY])
        await eventually(lambda: KEY not in two.replica.records, "it can be removed again")
        await one.replica.stop()
        await two.replica.stop()

    together(work)


@pytest.mark.parametrize("bump", [0, 1_000_000_000])
def test_what_was_removed_after_the_restore_stays_removed(tmp_path: Path, bump: int) -> None:
    """A host that was away meanwhile believes the tombstone, though it had known the record at a later revision."""

    async def work() -> None:
        memory = Memory()
        one = Member(memory, tmp_path, "h1")
        backup = await removed(one)
        for octet in range(9):
            await one.replica.write({KEY: value(octet)})
        two = Member(memory, tmp_path, "h2")
        await two.replica.start()
        await two.replica.stop()
        restore(memory, backup, bump)
        await eventually(lambda: RESTORED in one.replica.records and not one.replica.lost, "it is put back")
        await one.replica.write({}, deletes=[KEY])
        two = Member(memory, tmp_path, "h2")
        await two.replica.start()
        await eventually(lambda: two.replica.listed, "h2 has listed")
        assert KEY not in two.replica.records
        await one.replica.stop()
        await two.replica.stop()

    together(work)


def test_a_host_that_starts_again_before_it_has_put_back_still_knows(tmp_path: Path) -> None:
    """Its snapshot has the revision of before the loss."""

    async def work() -> None:
        memory = Memory()
        one, _ = await missed(memory, tmp_path)
        await one.replica.stop()
        again = Member(memory, tmp_path, "h1")
        await again.replica.start()
        await eventually(lambda: memory.entries[KEY][0] == value(2), "it is put back")
        assert memory.entries[GRAVE][0] is None
        await again.replica.stop()

    together(work)


def test_a_write_over_an_old_tombstone_removes_it(tmp_path: Path) -> None:
    """The first host that writes the record again removes it."""

    async def work() -> None:
        memory = Memory()
        one, store = await missed(memory, tmp_path)
        store.shut = False
        await one.replica.write({KEY: value(3)})
        assert (memory.entries[KEY][0], memory.entries[GRAVE][0]) == (value(3), None)
        await one.replica.stop()

    together(work)


@pytest.mark.parametrize("mark", [b'{"revision": -1, "at": 0}', b"?", b'{"revision": "x", "at": 0}'])
def test_without_a_sound_mark_every_tombstone_counts(tmp_path: Path, mark: bytes) -> None:
    """Revisions of two stores that have nothing in common must not be compared."""

    async def work() -> None:
        memory = Memory()
        one = Member(memory, tmp_path, "h1")
        backup = await removed(one)
        await made_again(one)
        restore(memory, backup, 0, mark)
        await eventually(lambda: KEY not in one.replica.records, "the tombstone is believed")
        await one.replica.stop()

    together(work)
