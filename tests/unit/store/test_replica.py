"""The replica: what a host writes it sees at once and keeps, whatever the watch tells late; garbage is named."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from linkspan.agent.health import doubled
from linkspan.core.contracts import Batch, Record
from linkspan.core.errors import Conflict, Unavailable
from linkspan.core.model import Host, Lease, Network, Reservation, Underlay
from linkspan.store.memory import Memory, MemoryStore
from linkspan.store.records import AddressRecord, BlockRecord, block_key
from linkspan.store.replica import Tombstone
from linkspan.store.snapshot import remembered
from support.polling import eventually
from support.records.replicas import Member, Raced, network, together
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

    async def list(self, prefix: str, beside: str = "") -> tuple[list[Record], int]:
        """List, and note it if it is everything."""
        if not prefix:
            self._times.append(clock())
        return await super().list(prefix, beside)


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


def test_garbage_is_skipped_named_and_not_missed(tmp_path: Path) -> None:
    """Unreadable records of every kind stop no host; a block with such a record cannot be claimed."""

    async def work() -> None:
        memory, net = Memory(), network(pool="10.244.0.0/23")
        one = Member(memory, tmp_path, "h1")
        keys = ["hosts/x", "leases/demo/x", "blocks/demo/10.244.0.0/24", "blocks/demo/x", "addresses/demo/x"]
        await one.store.transaction(dict.fromkeys(keys, b"\xff{"))
        await one.replica.start()
        assert (await one.leases.claim(net, {})).prefixes == ("10.244.1.0/24",)
        one.hosts.all(), one.leases.all(), one.leases.exact("demo")
        assert one.replica.unreadable == set(keys)
        await one.store.transaction({}, deletes=keys)
        await eventually(lambda: not one.replica.unreadable, "they are gone")
        assert one.replica.settled
        await one.replica.stop()

    together(work)


def test_a_spoilt_record_is_what_it_was_also_after_a_restart(tmp_path: Path) -> None:
    """The last readable version stays in force and the record is reported, until it is written or removed."""

    async def work() -> None:
        memory = Memory()
        one = Member(memory, tmp_path, "h1")
        await one.start()
        await one.replica.write({"networks/demo": network()})
        one.networks.refresh()
        await one.store.transaction({"networks/demo": b"{"})
        await eventually(lambda: one.replica.records["networks/demo"].value == b"{", "it is spoilt")
        one.networks.refresh()
        assert one.networks.get("demo") == network()
        await one.stop()
        again = Member(memory, tmp_path, "h1")
        await again.store.transaction({"networks/demo": b"\xff"})
        await again.start()
        assert again.networks.get("demo") == network()
        assert again.replica.unreadable == {"networks/demo"}
        await again.replica.write({}, deletes=["networks/demo"])
        again.networks.refresh()
        assert again.networks.all() == ()
        assert again.replica.unreadable == set()
        await again.stop()

    together(work)


def test_the_last_readable_version_is_in_force_and_is_put_back_where_the_spoilt_one_is_deleted(tmp_path: Path) -> None:
    """That is true for versions that no host had read yet; a key deleted by hand is no removal."""

    async def work() -> None:
        one = Member(Memory(), tmp_path, "h1")
        await one.start()
        await one.replica.write({"networks/demo": network()})
        one.networks.refresh()
        later = msgspec.structs.replace(network(), internal=True)
        await one.store.transaction({"networks/demo": msgspec.json.encode(later)})
        await one.store.transaction({"networks/demo": b"{"})
        await eventually(lambda: one.replica.records["networks/demo"].value == b"{", "it is spoilt")
        one.networks.refresh()
        assert one.networks.get("demo") == later
        await one.store.transaction({}, deletes=["networks/demo"])
        await eventually(lambda: one.replica.settled and not one.replica.unreadable, "it is put back")
        one.networks.refresh()
        assert one.networks.get("demo") == later
        kept = await one.store.get("networks/demo")
        assert kept is not None
        assert msgspec.json.decode(kept.value)["internal"] is True
        await one.stop()

    together(work)


_TYPES: dict[str, type[msgspec.Struct]] = {
    "hosts/h2": Host,
    "leases/demo/h2": Lease,
    "networks/demo": Network,
    "gone/hosts/h3": Tombstone,
}


@pytest.mark.parametrize("key", _TYPES)
@pytest.mark.parametrize("read", [True, False], ids=["read", "unread"])
def test_a_record_that_is_put_right_is_not_named_any_more(tmp_path: Path, key: str, read: bool) -> None:
    """Its reason is gone, also if it has its old content again, and if nobody asks for it."""
    right = {
        "hosts/h2": Host(id="h2", name="h2"),
        "leases/demo/h2": Lease(network="demo", host="h2"),
        "networks/demo": network(),
        "gone/hosts/h3": Tombstone("h1", 1.0),
    }

    async def put(one: Member, value: bytes) -> None:
        await one.store.transaction({key: value})
        await eventually(lambda: one.replica.records[key].value == value, "it is known")

    async def work() -> None:
        one = Member(Memory(), tmp_path, "h1")
        as_it_was = msgspec.json.encode(right[key])
        await one.store.transaction({key: as_it_was})
        await one.replica.start()
        assert one.replica.value(key, _TYPES[key]) == right[key]
        for mended in (as_it_was, msgspec.json.encode({"schema": 1, **msgspec.to_builtins(right[key])})):
            await put(one, b"{")
            one.replica.value(key, _TYPES[key])
            assert one.replica.unreadable == {key}
            await put(one, mended)
            if read:
                assert one.replica.value(key, _TYPES[key]) == right[key]
            assert one.replica.unreadable == set()
        await one.replica.stop()

    together(work)


def test_a_misplaced_record_that_a_restored_store_lacks_is_not_named_any_more(tmp_path: Path) -> None:
    """Only the reason to skip it was known, and the store reports no deletion."""

    async def work() -> None:
        memory = Memory()
        one = Member(memory, tmp_path, "h1")
        await one.store.transaction({"blocks/demo": b"{}"})
        await one.replica.start()
        assert one.replica.unreadable == {"blocks/demo"}
        memory.restore(0, {})
        await eventually(lambda: not one.replica.unreadable, "it is not named any more")
        await one.replica.stop()

    together(work)


BLOCK = "blocks/demo/10.244.9.0/24"
NOBODY_S = {
    BLOCK: BlockRecord("h77", 1.0),
    "leases/demo/h77": Lease(network="demo", host="h77", prefixes=("10.244.9.0/24",)),
    "addresses/demo/10.244.9.9": AddressRecord("h77", "c", "eth0", 1.0),
}


def test_what_a_host_has_that_no_record_knows_is_named_and_not_missed(tmp_path: Path) -> None:
    """Nobody would put it back: otherwise a forged record would stop all claims."""

    async def work() -> None:
        one = Member(Memory(), tmp_path, "h1")
        await one.join()
        puts = {key: msgspec.json.encode(value) for key, value in NOBODY_S.items()}
        await one.store.transaction(puts)
        await eventually(lambda: one.leases.all("demo"), "the records are known")
        refused = one.leases.refused((network(),))
        assert {key: "host h77" in why for key, why in refused.items()} == dict.fromkeys(NOBODY_S, True)
        await one.store.transaction({}, deletes=list(puts))
        await eventually(lambda: not one.leases.all("demo"), "they are gone")
        assert one.replica.settled
        assert one.leases.refused((network(),)) == {}
        await one.leases.claim(network(), {})
        await one.replica.stop()

    together(work)


@pytest.mark.parametrize("away", [True, False], ids=["away", "watching"])
def test_a_block_that_was_put_and_deleted_in_a_living_host_s_name_is_not_missed(tmp_path: Path, away: bool) -> None:
    """No lease has it: its host may not have seen it at all, and does not put back what it never claimed."""

    async def work() -> None:
        memory = Memory()
        one, two = Member(memory, tmp_path, "h1"), Member(memory, tmp_path, "h2")
        await one.join()
        await two.join()
        if away:
            await two.replica.stop()
        seeing = [one] if away else [one, two]
        await one.store.transaction({BLOCK: msgspec.json.encode(BlockRecord("h2", 1.0))})
        for member in seeing:
            await eventually(lambda m=member: BLOCK in m.replica.records, "the record is known")
        await one.store.transaction({}, deletes=[BLOCK])
        for member in seeing:
            await eventually(lambda m=member: BLOCK not in m.replica.records, "it is forgotten")
            assert member.replica.settled
            await member.leases.claim(network(), {})
        assert memory.revision_of(BLOCK) == 0
        await asyncio.gather(*(member.replica.stop() for member in seeing))

    together(work)


@pytest.mark.parametrize("away", [True, False], ids=["away", "watching"])
def test_a_block_that_was_overwritten_and_deleted_is_its_host_s_again(tmp_path: Path, away: bool) -> None:
    """The host whose lease lists it puts it back, with the time of its own claim; the forged owner does not."""

    async def work() -> None:
        memory = Memory()
        one, two = Member(memory, tmp_path, "h1"), Member(memory, tmp_path, "h2")
        await one.join()
        await two.join()
        lease = await one.leases.claim(network(), {})
        key = block_key("demo", lease.prefixes[0])
        mine = one.replica.value(key, BlockRecord)
        await eventually(lambda: key in two.replica.records, "h2 knows the block")
        if away:
            await two.replica.stop()
        seeing = [one] if away else [one, two]
        await one.store.transaction({key: msgspec.json.encode(BlockRecord("h2", 1.0))})
        for member in seeing:
            await eventually(lambda m=member: m.leases.blocks("demo") == {lease.blocks[0]: "h2"}, "it is overwritten")
        await one.store.transaction({}, deletes=[key])
        for member in seeing:
            await eventually(lambda m=member: m.leases.blocks("demo") == {lease.blocks[0]: "h1"}, "h1 has it again")
            await eventually(lambda m=member: m.replica.settled, "nothing is missed")
        again = one.replica.value(key, BlockRecord)
        assert mine is not None
        assert again == msgspec.structs.replace(mine, back=True)
        assert one.leases.frozen("demo") == {}
        await asyncio.gather(*(member.replica.stop() for member in seeing))

    together(work)


def test_a_block_that_a_restored_store_lost_is_missed_though_its_older_lease_does_not_list_it(tmp_path: Path) -> None:
    """Its host is away, and has containers in it: also after a second listing, and after a restart of this agent."""

    async def work() -> None:
        memory, net = Memory(), network()
        one, two = Member(memory, tmp_path, "h1"), Member(memory, tmp_path, "h2")
        await one.join()
        await two.join()
        first = await two.leases.claim(net, {})
        backup = memory.revision, dict(memory.entries)
        await two.leases.grow(net, 4, first.blocks)
        (block,) = set(two.leases.blocks("demo")) - set(first.blocks)
        key = block_key("demo", block)
        await eventually(lambda: key in one.replica.records, "h1 knows the second block")
        await two.replica.stop()
        memory.restore(*backup)
        await eventually(lambda: one.replica.lost == {key}, "it is missed")
        assert one.leases.of("demo", "h2") == first
        await one.replica._list()
        assert one.replica.lost == {key}
        await one.replica.stop()
        again = Member(memory, tmp_path, "h1")
        await again.replica.start()
        await eventually(lambda: again.replica.lost == {key}, "it is missed after a restart")
        await again.replica.stop()

    together(work)


@pytest.mark.parametrize("key", ["hosts/h77", "leases/demo/h2", BLOCK, "addresses/demo/10.244.9.9"])
def test_what_nobody_could_read_is_not_missed_though_nobody_tried(tmp_path: Path, key: str) -> None:
    """It is JSON, and says nothing that counts: its host would not put it back."""

    async def work() -> None:
        one = Member(Memory(), tmp_path, "h1")
        await one.join()
        await one.store.transaction({"hosts/h2": msgspec.json.encode(Host(id="h2", name="h2"))})
        await one.store.transaction({key: b'{"owner":"h2","host":"h2","at":1e99}'})
        await eventually(lambda: key in one.replica.records, "it is known")
        await one.store.transaction({}, deletes=[key])
        await eventually(lambda: key not in one.replica.records, "it is forgotten")
        assert one.replica.settled
        await one.replica.stop()

    together(work)


@pytest.mark.parametrize("host", [Host(id="h77", name="h77"), None])
def test_a_removal_ends_a_wait_for_what_the_store_lost(tmp_path: Path, host: Host | None) -> None:
    """All agents continue: the store reports no deletion of a key that it lacks, only the tombstones."""

    async def work() -> None:
        memory = Memory()
        one, two = Member(memory, tmp_path, "h1"), Member(memory, tmp_path, "h2")
        await one.join()
        await two.join()
        puts = {"hosts/h77": msgspec.json.encode(Host(id="h77", name="h77"))}
        puts |= {key: msgspec.json.encode(value) for key, value in NOBODY_S.items()}
        await one.store.transaction(puts)
        for member in (one, two):
            await eventually(lambda m=member: BLOCK in m.replica.records, "the records are known")
        await one.store.transaction({}, deletes=list(puts))
        for member in (one, two):
            await eventually(lambda m=member: m.replica.lost == set(puts), "they are missed")
        if host is None:  # by hand, of the host alone
            await one.store.transaction({"gone/hosts/h77": msgspec.json.encode(Tombstone("h1", 1.0))})
        else:
            await one.leases.remove_host(host.id)
        for member in (one, two):
            await eventually(lambda m=member: m.replica.settled, "nothing is missed any more")
            assert not puts.keys() & member.replica.records.keys()
            await member.leases.claim(network(), {})
            await member.replica.stop()

    together(work)


def test_an_agent_that_waited_for_what_nobody_puts_back_goes_on_after_a_restart(tmp_path: Path) -> None:
    """Its snapshot has the record that an agent without this rule missed."""

    async def work() -> None:
        memory = Memory()
        one = Member(memory, tmp_path, "h1")
        await one.join()
        await one.store.transaction({BLOCK: msgspec.json.encode(NOBODY_S[BLOCK])})
        await eventually(lambda: BLOCK in one.replica.records, "the record is known")
        await one.replica.stop()
        await MemoryStore(memory).transaction({}, deletes=[BLOCK])
        again = Member(memory, tmp_path, "h1")
        await again.join()
        assert again.replica.settled
        assert BLOCK not in again.replica.records
        await again.replica.stop()

    together(work)


@pytest.mark.parametrize(
    ("key", "record"),
    [
        ("networks/x", network("x", backend="newer")),
        ("networks/x", network("x", pool="10.9.0.0/99")),
        ("networks/x", msgspec.structs.replace(network("x"), gateways=())),
        ("reservations/demo/x/32", Reservation("demo", "x/32")),
        ("hosts/x", Host(id="x", name="x", underlay=Underlay("eth0", ("x",)))),
        ("leases/demo/x", Lease(network="demo", host="x", prefixes=("x",))),
    ],
)
def test_a_record_that_means_nothing_here_is_skipped_and_named(
    tmp_path: Path, key: str, record: msgspec.Struct
) -> None:
    """It is well formed, from a newer linkspan or edited by hand: readers of the kind get the other records."""

    async def work() -> None:
        memory = Memory()
        one = Member(memory, tmp_path, "h1")
        well = {"networks/demo": network(), "reservations/demo/10.244.0.9/32": Reservation("demo", "10.244.0.9/32")}
        puts = {key: record, **well}
        await one.store.transaction({k: msgspec.json.encode(value) for k, value in puts.items()})
        await one.start()
        assert [one.name for one in one.networks.all()] == ["demo"]
        assert [r.cidr for r in one.reservations.all()] == ["10.244.0.9/32"]
        assert one.allowances.all() == ()
        assert (one.hosts.all(), one.leases.all()) == ({}, [])
        assert one.replica.unreadable == {key}
        await one.stop()

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
