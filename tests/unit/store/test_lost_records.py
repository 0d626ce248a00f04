"""Records that the store lost: which of them count, and when the wait for them ends."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from linkspan.core.model import Host, Lease
from linkspan.store.memory import Memory, MemoryStore
from linkspan.store.records import AddressRecord, BlockRecord, Tombstone, block_key
from support.polling import eventually
from support.records.replicas import Member, network, together

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
