"""The replica: what a host writes it sees at once and keeps, whatever the watch reports late."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from linkspan.agent.health import doubled
from linkspan.core.errors import Conflict, Unavailable
from linkspan.core.model import Host, Underlay
from linkspan.core.store_contract import Batch, Record
from linkspan.store.memory import Memory, MemoryStore
from linkspan.store.snapshot import remembered
from support.polling import eventually
from support.records.replicas import Member, Raced, together
from support.virtual_time import clock, in_virtual_time, soon


def test_a_late_batch_undoes_no_newer_write(tmp_path: Path) -> None:
    """Puts and deletes older than this host's own write are skipped, and no change is reported."""

    async def work() -> None:
        one = Member(Memory(), tmp_path, "h1")
        await one.replica.start()
        await one.replica.write({"settings/a": b"old", "settings/b": b"old"})
        old = one.replica.records["settings/a"].revision
        await one.replica.write({"settings/a": b"new"})
        await one.replica.write({}, deletes=["settings/b"])
        await eventually(lambda: "gone/settings/b" in one.replica.records, "the removal is known")
        one.seen.clear()
        late = (Record("settings/a", b"old", old), Record("settings/b", b"old", old))
        await one.replica._apply(Batch(old, late, ()))
        await one.replica._apply(Batch(old, (), ("settings/a",)))
        assert one.replica.records["settings/a"].value == b"new"
        assert "settings/b" not in one.replica.records
        assert one.seen == []
        await one.replica.stop()

    together(work)


class Slow(MemoryStore):
    """A connection on which a transaction is given up before it gets there; ``deliver`` brings it, late."""

    slow = False
    """Whether the next one is."""

    async def transaction(self, puts: Mapping[str, bytes], *args: Any, **more: Any) -> int:
        """Carry it out, or keep it."""
        if self.slow:
            self.slow, self._late = False, (puts, args, more)
            raise Unavailable("store in memory: no answer")
        return await super().transaction(puts, *args, **more)

    async def deliver(self) -> None:
        """Carry out what was given up."""
        puts, args, more = self._late
        await super().transaction(puts, *args, **more)


@pytest.mark.parametrize("then", [b"new", None])
def test_a_write_that_comes_late_undoes_no_newer_one(tmp_path: Path, then: bytes | None) -> None:
    """Given up, and followed by another write or a removal, it changes nothing when it gets there after all."""

    async def work() -> None:
        memory = Memory()
        slow = Slow(memory)
        one = Member(memory, tmp_path, "h1", slow)
        await one.replica.start()
        await one.replica.write({"settings/a": b"old"})
        slow.slow = True
        with pytest.raises(Unavailable):
            await one.replica.write({"settings/a": b"late"})
        await one.replica.write({"settings/a": then} if then else {}, deletes=[] if then else ["settings/a"])
        await slow.deliver()
        assert memory.entries["settings/a"][0] == then
        await one.replica.stop()

    together(work)


def test_a_removal_that_comes_late_takes_nothing_newer(tmp_path: Path) -> None:
    """A record removed in a second try, and made again, stays when the first try arrives."""

    async def work() -> None:
        memory = Memory()
        slow = Slow(memory)
        one = Member(memory, tmp_path, "h1", slow)
        await one.replica.start()
        await one.replica.write({"settings/a": b"old"})
        slow.slow = True
        with pytest.raises(Unavailable):
            await one.replica.write({}, deletes=["settings/a"])
        await one.replica.write({}, deletes=["settings/a"])
        await one.replica.write({"settings/a": b"new"})
        await slow.deliver()
        assert memory.entries["settings/a"][0] == b"new"
        await one.replica.stop()

    together(work)


def test_of_two_writers_the_last_one_has_its_way(tmp_path: Path) -> None:
    """A writer that does not know the other's write yet wins too, but its own condition still applies."""

    async def work() -> None:
        memory = Memory()
        one, two = Member(memory, tmp_path, "h1"), Member(memory, tmp_path, "h2")
        await one.replica.start()
        await one.replica.write({"settings/a": b"1"})
        known = one.replica.records["settings/a"].revision
        await two.store.transaction({"settings/a": b"2", "settings/b": b"2"})
        assert await one.replica.write({"settings/a": b"3", "settings/b": b"3"})
        assert memory.entries["settings/a"][0] == memory.entries["settings/b"][0] == b"3"
        assert not await one.replica.write({"settings/b": b"4"}, unchanged={"settings/a": known})
        assert not await one.replica.write({"settings/b": b"4"}, absent=["settings/a"])
        assert memory.entries["settings/b"][0] == b"3"
        await one.replica.stop()

    together(work)


def test_a_record_that_others_change_all_the_while_is_named(tmp_path: Path) -> None:
    """A write gives up, rather than to wait for ever."""

    async def work() -> None:
        memory = Memory()
        one = Member(memory, tmp_path, "h1", Raced(memory, {"settings/a": b"theirs"}))
        await one.replica.start()
        with pytest.raises(Conflict, match=r"others change settings/a and 1 more all the while"):
            await one.replica.write({"settings/a": b"ours", "settings/b": b"ours"})
        assert memory.entries["settings/a"][0] == b"theirs"
        assert "settings/b" not in memory.entries
        await one.replica.stop()

    together(work)


def test_what_was_removed_and_made_again_stays(tmp_path: Path) -> None:
    """A late tombstone of the watch does not exist beside the new record."""

    async def work() -> None:
        one = Member(Memory(), tmp_path, "h1")
        await one.replica.start()
        await one.replica.write({"settings/a": b"1"})
        await one.replica.write({}, deletes=["settings/a"])
        grave = one.replica.records["gone/settings/a"]
        await one.replica.write({"settings/a": b"2"})
        await one.replica._apply(Batch(grave.revision, (grave,), ("settings/a",)))
        assert one.replica.records["settings/a"].value == b"2"
        assert "gone/settings/a" not in one.replica.records
        await one.replica.stop()

    together(work)


def test_a_restored_store_is_believed_though_its_revisions_are_older(tmp_path: Path) -> None:
    """After a restore from a backup the records that it lacks are missed, and those that it has are taken."""

    async def work() -> None:
        memory = Memory()
        one = Member(memory, tmp_path, "h1")
        await one.replica.start()
        await one.replica.write({"hosts/h2": b"99"})
        revision, backup = memory.revision, dict(memory.entries)
        for number in range(5):
            await one.replica.write({"hosts/h2": b"%d" % number})
        await one.replica.write({"hosts/h3": Host(id="h3", name="h3")})
        await eventually(lambda: one.replica.records["hosts/h2"].value == b"4", "the last write")
        memory.restore(revision, backup)
        await eventually(lambda: one.replica.lost == {"hosts/h3"}, "h3 is missed")
        assert one.replica.records["hosts/h2"].value == b"99"
        await one.replica.stop()

    together(work)


class Listed(MemoryStore):
    """A connection that notes when its host lists everything."""

    def __init__(self, memory: Memory, times: list[float]) -> None:
        super().__init__(memory)
        self._times = times

    async def list(
        self, prefix: str, beside: str = "", each: Callable[[Record], Record] | None = None
    ) -> tuple[list[Record], int]:
        """List, and note it if it is everything."""
        if not prefix:
            self._times.append(clock())
        return await super().list(prefix, beside, each)


@pytest.mark.parametrize(("hosts", "within", "at_once"), [(100, 2.1, 50), (3, 0.1, 3)])
def test_not_all_hosts_of_a_large_cluster_list_at_once(
    tmp_path: Path, hosts: int, within: float, at_once: int
) -> None:
    """A restored store ends all their watches at one moment: each takes a part of the time that all need together."""
    times: list[float] = []

    async def work() -> None:
        memory = Memory()
        first = MemoryStore(memory)
        await first.transaction({f"hosts/h{number}": b"{}" for number in range(hosts)})
        for number in range(22):
            await first.transaction({f"allowances/{number}/{each}/tcp/80": b"{}" for each in range(90)})
        members = [Member(memory, tmp_path, f"h{number}", Listed(memory, times)) for number in range(hosts)]
        await asyncio.gather(*(one.replica.start() for one in members))
        revision, backup = memory.revision, dict(memory.entries)
        await first.transaction({"settings/a": b"1"})
        await soon(lambda: all("settings/a" in one.replica.records for one in members), "all have seen it", 5)
        times.clear()
        begun = clock()
        memory.restore(revision, backup)
        await soon(lambda: len(times) == hosts, "all have listed", within)
        assert len([at for at in times if at < begun + 0.5]) <= at_once
        await asyncio.gather(*(one.replica.stop() for one in members))

    in_virtual_time(work)


def test_a_write_that_fails_is_told_until_one_succeeds(tmp_path: Path) -> None:
    """A watch waits in silence while the store is away; the failed write is the problem, and new claims name it."""

    async def work() -> None:
        one = Member(Memory(), tmp_path, "h1")
        await one.replica.start()
        one.store.cut()
        with pytest.raises(Unavailable):
            await one.replica.write({"hosts/h1": b"{}"})
        assert not one.replica.settled
        with pytest.raises(Unavailable, match="claim: store in memory: the connection is cut"):
            one.replica.require_settled("claim")
        one.store.mend()
        await one.replica.write({"hosts/h1": b"{}"})
        assert one.replica.settled
        await one.replica.stop()

    together(work)


def test_the_snapshot_remembers_the_cluster(tmp_path: Path) -> None:
    """The replica's snapshot has the store's id at the next start; without a snapshot it is empty."""

    async def work() -> None:
        memory = Memory()
        one = Member(memory, tmp_path, "h1")
        await one.replica.start()
        await one.replica.stop()
        assert remembered(tmp_path / "h1.json").cluster == memory.cluster

    together(work)
    (tmp_path / "odd.json").write_bytes(b'{"cluster":"c","host":"h","records":[{"key":1}]}')
    assert remembered(tmp_path / "odd.json").host == "h"
    assert remembered(tmp_path / "odd.json").records == {}
    assert remembered(tmp_path / "none.json").cluster == ""
    (tmp_path / "none.json").write_bytes(b"\xff")
    assert remembered(tmp_path / "none.json").cluster == ""


def test_hosts_with_one_underlay_address_are_named_together() -> None:
    """Both names and the address; hosts with addresses of their own are not mentioned."""

    def host(name: str, address: str) -> Host:
        return msgspec.structs.replace(Host(id=name, name=name), underlay=Underlay("eth0", (address,)))

    found = doubled([host("a", "192.0.2.1/24"), host("b", "192.0.2.2/24"), host("c", "192.0.2.1/24")])
    assert found == [("a, c", "hosts a and c have the same underlay address, 192.0.2.1")]
