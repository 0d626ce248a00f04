"""Records that the store lost: the host puts them back, and nothing else depends on its success."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import pytest

from linkspan.core.errors import Unavailable
from linkspan.core.store_contract import Batch, Record
from linkspan.store.memory import Memory, MemoryStore
from linkspan.store.request import MOST_BYTES
from support.polling import eventually
from support.records.replicas import Member, together
from support.virtual_time import in_virtual_time, soon


class _Failing(MemoryStore):
    """A connection on which nothing that was lost can be put back; ``before`` is called with each try."""

    def __init__(self, memory: Memory) -> None:
        super().__init__(memory)
        self.before: Callable[[str], Awaitable[None]] | None = None

    async def transaction(
        self,
        puts: Mapping[str, bytes],
        deletes: Sequence[str] = (),
        absent: Sequence[str] = (),
        unchanged: Mapping[str, int] | None = None,
        ttl: float = 0,
        standing: bool = False,
    ) -> int:
        """Refuse what requires a record and its tombstone to be absent, as who puts back does."""
        if self.before is not None and len(absent) == 2:
            await self.before(absent[0])
            raise Unavailable("store in memory: away", "mend it")
        return await super().transaction(puts, deletes, absent, unchanged, ttl, standing)


def test_a_record_that_no_agent_can_put_back_is_not_missed(tmp_path: Path) -> None:
    """With its key it is larger than an agent's request; what the store lost beside it is put back."""

    async def work() -> None:
        memory, key = Memory(), f"addresses/{'n' * 63}/10.244.0.9"
        large = b'{"host":"","container":"","ifname":"","at":1,"identity":"%s"}' % (b"x" * (MOST_BYTES - 100))
        memory.entries |= {key: (large, 1), "settings/b": (b"{}", 1)}
        memory.revision = 1
        one = Member(memory, tmp_path, "h1")
        await one.replica.start()
        assert one.replica.records.keys() == {key, "settings/b"}
        memory.restore(0, {})
        await eventually(lambda: "settings/b" in memory.entries, "the other one is put back")
        assert key not in one.replica.records
        assert not one.replica.problem
        one.replica.require_settled("claim")
        await one.replica.stop()

    together(work)


def test_a_write_is_taken_whatever_becomes_of_what_the_store_lost(tmp_path: Path) -> None:
    """It was committed; that a lost record cannot be put back is not its failure."""

    async def work() -> None:
        memory = Memory()
        store = _Failing(memory)
        one = Member(memory, tmp_path, "h1", store)
        await store.transaction({"settings/a": b"{}"})
        await one.replica.start()
        tries: list[str] = []

        async def tried(key: str) -> None:
            tries.append(key)

        store.before = tried
        one.replica.lost.add("settings/a")
        assert await one.replica.write({"settings/b": b"{}"})
        assert tries[0] == "settings/a"
        assert one.replica.records["settings/b"].value == b"{}"
        store.before = None
        await one.replica.stop()

    together(work)


class _Counting(MemoryStore):
    """A connection that counts the listings of all records, and the watches."""

    def __init__(self, memory: Memory) -> None:
        super().__init__(memory)
        self.listings = self.watches = 0

    async def list(
        self, prefix: str, beside: str = "", each: Callable[[Record], Record] | None = None
    ) -> tuple[list[Record], int]:
        """Count it."""
        self.listings += not prefix
        return await super().list(prefix, beside, each)

    def watch(self, prefix: str, revision: int) -> AsyncIterator[Batch]:
        """Count it."""
        self.watches += 1
        return super().watch(prefix, revision)


def test_a_full_store_that_lost_records_is_listed_once_and_watched(tmp_path: Path) -> None:
    """It was restored from a backup in which it is full: what is lost waits for room, and nothing else does."""

    async def work() -> None:
        memory = Memory()
        store = _Counting(memory)
        one, two = Member(memory, tmp_path, "h1", store), MemoryStore(memory)
        await one.replica.start()
        await two.transaction({"settings/old": b"{}"})
        backup = memory.revision, dict(memory.entries)
        await two.transaction({"settings/new": b"{}"})
        await asyncio.sleep(1)
        memory.restore(*backup)
        memory.full, store.listings, store.watches = True, 0, 0
        await asyncio.sleep(60)
        assert (store.listings, store.watches) == (1, 1)
        assert one.replica.lost == {"settings/new"}
        assert one.replica.contact.full
        assert not one.replica.problem
        await two.transaction({}, deletes=["settings/old"])  # which a full store takes
        await soon(lambda: "settings/old" in one.replica.lost, "the watch tells of it", 1)
        memory.full = False
        await one.replica.write({"settings/b": b"{}"})
        assert not one.replica.lost
        assert memory.entries["settings/new"][0] == b"{}"
        await one.replica.stop()

    in_virtual_time(work)


def test_a_record_that_is_removed_while_others_are_put_back_is_not_put_back(tmp_path: Path) -> None:
    """Its tombstone comes while the store takes the first of what it lost."""

    async def work() -> None:
        memory = Memory()
        store = _Failing(memory)
        one = Member(memory, tmp_path, "h1", store)
        await store.transaction({"settings/a": b"{}", "settings/b": b"{}"})
        await one.replica.start()
        tries: list[str] = []

        async def removed(key: str) -> None:
            tries.append(key)
            for other in {"settings/a", "settings/b"} - {key}:
                grave = Record(f"gone/{other}", b"{}", memory.revision + 1)
                await one.replica._take(Batch(memory.revision + 1, (grave,), (other,)))

        store.before = removed
        one.replica.lost |= {"settings/a", "settings/b"}
        with pytest.raises(Unavailable):
            await one.replica._put_back()
        assert one.replica.lost == set(tries)
        store.before = None
        await one.replica.stop()

    together(work)
