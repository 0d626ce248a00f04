"""Contract of every store, whatever it keeps its records in."""

from __future__ import annotations

import asyncio
import time

import pytest

from linkspan.core.errors import Invalid, NotFound
from linkspan.core.store_contract import PAGE
from linkspan.store.request import MOST_BYTES, MOST_KEYS
from support.polling import eventually
from support.store.engines import Engine, Watched


async def test_what_one_host_puts_another_reads(engine: Engine) -> None:
    """A record is there for all connections, byte for byte, with the revision of its change."""
    one, other = engine.connect(), engine.connect()
    assert await one.transaction({"hosts/h1": b"\x00\xff", "hosts/h2": b""})
    record = await other.get("hosts/h1")
    assert record
    assert record.value == b"\x00\xff"
    records, revision = await other.list("")
    assert [(each.key, each.value) for each in records] == [("hosts/h1", b"\x00\xff"), ("hosts/h2", b"")]
    assert {each.revision for each in records} == {record.revision}
    assert revision >= record.revision
    assert await other.get("hosts/h3") is None


@pytest.mark.parametrize(
    ("prefix", "keys"),
    [
        ("networks/", ["networks/a", "networks/é"]),
        ("networks", ["networks/a", "networks/é", "networks2/a"]),
        ("n%", []),
        ("Networks/", []),
        ("", ["a*b", "networks/a", "networks/é", "networks2/a"]),
        ("a*", ["a*b"]),
    ],
)
async def test_a_listing_holds_exactly_the_keys_that_begin_so(
    engine: Engine, prefix: str, keys: list[str]
) -> None:
    """No character is a wildcard, case counts, and the keys come in order."""
    store = engine.connect()
    await store.transaction(dict.fromkeys(["networks/a", "networks/é", "networks2/a", "a*b"], b"x"))
    records, _ = await store.list(prefix)
    assert [record.key for record in records] == keys


async def test_a_listing_leaves_out_the_keys_that_begin_otherwise(engine: Engine) -> None:
    """The rest is of one moment, in the keys' order."""
    store = engine.connect()
    there = ["endpoint", "endpoints/h1/a/e", "endpoints/h2/b/e", "endpoints0", "hosts/h1"]
    await store.transaction(dict.fromkeys(there, b"x"))
    found, revision = await store.list("", beside="endpoints/")
    assert [record.key for record in found] == ["endpoint", "endpoints0", "hosts/h1"]
    assert revision == (await store.list(""))[1]
    found, _ = await store.list("endpoints/", beside="endpoints/h1/")
    assert [record.key for record in found] == ["endpoints/h2/b/e"]
    assert (await store.list("hosts/", beside="hosts/"))[0] == []


async def test_pages_have_all_records_of_a_prefix_once(engine: Engine) -> None:
    """In the keys' order, PAGE of them at first; a prefix without records has an empty page."""
    store = engine.connect()
    keys = [f"x/{number:04}" for number in range(2 * PAGE + 1)]
    for start in range(0, len(keys), MOST_KEYS):
        await store.transaction(dict.fromkeys(keys[start : start + MOST_KEYS], b"v"))
    await store.transaction({"w": b"", "x": b"", "y/1": b""})
    pages = [page async for page in store.pages("x/")]
    assert [len(records) for records, _ in pages if records] in ([PAGE, PAGE, 1], [PAGE, PAGE + 1])
    assert [record.key for records, _ in pages for record in records] == keys
    assert {record.value for records, _ in pages for record in records} == {b"v"}
    assert [revision for _, revision in pages] == sorted(revision for _, revision in pages)
    assert [records async for records, _ in store.pages("z/")] == [[]]


async def test_pages_go_on_while_the_store_changes(engine: Engine) -> None:
    """A record that is there all the time is in them, whatever comes, goes and is compacted between two pages."""
    store, other = engine.connect(), engine.connect()
    keys = [f"x/{number:04}" for number in range(PAGE + 5)]
    for start in range(0, len(keys), MOST_KEYS):
        await store.transaction(dict.fromkeys(keys[start : start + MOST_KEYS], b"v"))
    found: list[str] = []
    async for records, revision in store.pages("x/"):
        found += [record.key for record in records]
        if len(found) == PAGE:
            await other.transaction({"x/0000a": b"late"}, deletes=["x/0001"])
            await engine.compact(revision + 1)
    assert found == keys


async def test_a_condition_that_fails_stops_the_whole_transaction(engine: Engine) -> None:
    """A key that must not exist, or that has changed: neither puts nor deletes happen."""
    store = engine.connect()
    await store.transaction({"a": b"1", "b": b"2"})
    before = await store.get("a")
    assert before
    assert not await store.transaction({"c": b"3"}, deletes=["b"], absent=["x", "a"])
    assert await store.transaction({"a": b"4"}, absent=["x"], unchanged={"a": before.revision})
    assert not await store.transaction({"c": b"3"}, deletes=["b"], unchanged={"a": before.revision})
    assert not await store.transaction({"c": b"3"}, unchanged={"never": before.revision})
    records, _ = await store.list("")
    assert {record.key: record.value for record in records} == {"a": b"4", "b": b"2"}


async def test_the_revision_grows_with_every_change_and_with_nothing_else(engine: Engine) -> None:
    """One transaction is one revision; deleting an absent key, or only a condition, adds none."""
    store = engine.connect()
    _, first = await store.list("")
    await store.transaction({"a": b"1", "b": b"1"})
    _, second = await store.list("")
    assert second > first
    assert await store.transaction({}, deletes=["never"])
    assert await store.transaction({}, absent=["never"])
    assert (await store.list(""))[1] == second
    await store.transaction({}, deletes=["a"])
    assert (await store.list(""))[1] == second + 1


@pytest.mark.parametrize("deletes", [["a"], ["b", "b"], [f"k{number}" for number in range(MOST_KEYS)]])
async def test_what_one_store_cannot_take_none_takes(engine: Engine, deletes: list[str]) -> None:
    """A key twice in a transaction, or more keys than etcd allows, are Invalid everywhere."""
    with pytest.raises(Invalid, match="transaction"):
        await engine.connect().transaction({"a": b"1"}, deletes=deletes)


async def test_a_store_takes_as_much_at_once_as_is_said(engine: Engine) -> None:
    """Etcd's own limit is above it; and no store takes more, so that no test without etcd does."""
    store = engine.connect()
    part = (MOST_BYTES - MOST_KEYS * 4) // MOST_KEYS
    assert await store.transaction({f"k{number:03}": bytes(part) for number in range(MOST_KEYS)})
    with pytest.raises(Invalid, match="1048577 bytes, and 1048576 are the most"):
        await store.transaction({"a": bytes(MOST_BYTES)})


async def test_a_watch_yields_what_another_host_changes(engine: Engine) -> None:
    """Puts and deletes of its prefix come in order, and nothing else does."""
    one, other = engine.connect(), engine.connect()
    await other.transaction({"x/old": b"0"})
    _, revision = await one.list("x/")
    watched = Watched(one, "x/", revision)
    await other.transaction({"x/a": b"1", "y/a": b"1"})
    await watched.has({"x/a": b"1"})
    await other.transaction({"y/b": b"1"})
    await other.transaction({"x/b": b"2"}, deletes=["x/a", "x/old"])
    await watched.has({"x/b": b"2"})
    assert sorted(watched.deleted) == ["x/a", "x/old"]
    revisions = [batch.revision for batch in watched.batches]
    assert revisions == sorted(set(revisions))
    assert revisions[0] > revision
    await watched.stop()


async def test_a_watch_of_a_quiet_store_proves_that_it_lives(engine: Engine, prompt: None) -> None:
    """By empty batches, again and again; nobody writes for that."""
    store = engine.connect()
    _, revision = await store.list("")
    watched = Watched(store, "", revision)
    for _ in range(3):
        before = watched.proofs
        await eventually(lambda before=before: watched.proofs > before, "another proof")
    assert (await store.list(""))[1] == revision
    assert not watched.batches
    await watched.stop()


async def test_a_watch_from_an_earlier_revision_yields_what_came_since(engine: Engine) -> None:
    """Nothing between a listing and the watch from its revision is lost."""
    store = engine.connect()
    _, revision = await store.list("")
    await store.transaction({"a": b"1", "b": b"1"})
    await store.transaction({"a": b"2"}, deletes=["b"])
    await store.transaction({"b": b"3", "c": b"3"})
    await store.transaction({}, deletes=["c"])
    watched = Watched(store, "", revision)
    await watched.has({"a": b"2", "b": b"3"})
    _, revision = await store.list("")
    await eventually(lambda: watched.batches[-1].revision == revision, "the last change watched", 60)
    await watched.stop()


async def test_the_changes_of_one_transaction_come_together(engine: Engine) -> None:
    """A reader that applies batch after batch never has half of a transaction, and no key twice in a batch."""
    store = engine.connect()
    _, revision = await store.list("")
    watched = Watched(store, "", revision)
    for number in range(30):
        await store.transaction({"a": b"%d" % number, "b": b"%d" % number})
    await watched.has({"a": b"29", "b": b"29"})
    for batch in watched.batches:
        assert sorted(record.key for record in batch.puts) == ["a", "b"]
        assert len({record.value for record in batch.puts}) == 1
        assert {record.revision for record in batch.puts} == {batch.revision}
    await watched.stop()


async def test_a_watch_from_before_a_compaction_is_refused(engine: Engine) -> None:
    """NotFound says to list again; a watch from the present continues."""
    store = engine.connect()
    await store.transaction({"a": b"1"})
    _, old = await store.list("")
    await store.transaction({"b": b"1"})
    await store.transaction({}, deletes=["b"])
    _, revision = await store.list("")
    await engine.compact(revision)
    with pytest.raises(NotFound, match="no longer kept") as caught:
        await anext(aiter(store.watch("", old)))
    assert "list" in caught.value.hint
    watched = Watched(store, "", revision)
    await store.transaction({"c": b"1"})
    await watched.has({"c": b"1"})
    await watched.stop()


async def test_a_watch_from_the_future_is_refused(engine: Engine) -> None:
    """A revision that the store has not reached was another store's, or this one's before a restore."""
    store = engine.connect()
    await store.transaction({"a": b"1"})
    _, revision = await store.list("")
    with pytest.raises(NotFound, match=f"revision went back from {revision + 7} to {revision}"):
        await anext(aiter(store.watch("", revision + 7)))


async def test_a_record_with_a_time_to_live_goes_by_itself(engine: Engine) -> None:
    """Its expiry is a delete in every watch; a record that was put again, with or without a TTL, stays."""
    one, other = engine.connect(), engine.connect()
    _, revision = await one.list("")
    watched = Watched(one, "", revision)
    puts = {"going": b"1", "kept": b"1", "staying": b"1"}
    assert await other.transaction(puts, ttl=1)
    await watched.has(puts)
    await other.transaction({"kept": b"2"})
    await other.transaction({"staying": b"2"}, ttl=60)
    await watched.has({"kept": b"2", "staying": b"2"})
    assert watched.deleted == ["going"]
    assert await one.transaction({"going": b"2"}, absent=["going"])
    await watched.stop()


async def test_a_standing_record_lives_as_long_as_it_is_kept(engine: Engine, prompt: None) -> None:
    """To keep it is no change that a revision or a watch tells; its end is a delete in every watch."""
    one, other = engine.connect(), engine.connect()
    assert await one.keep() == 0
    assert await one.transaction({"alive/h1": b"1"}, standing=True)
    _, revision = await other.list("")
    watched = Watched(other, "", revision)
    begun = time.monotonic()
    while time.monotonic() < begun + 5:
        assert await one.keep() >= 2
        await asyncio.sleep(0.2)
    assert (await other.list(""))[1] == revision
    assert not watched.batches
    kept = time.monotonic()
    await eventually(lambda: watched.deleted == ["alive/h1"], "its end", 20)
    assert time.monotonic() - kept > 1
    assert await one.keep() == 0
    assert await one.transaction({"alive/h1": b"1"}, standing=True)
    assert await one.keep() >= 2
    await watched.stop()


async def test_what_somebody_deletes_or_replaces_is_not_kept(engine: Engine, prompt: None) -> None:
    """A record that was put otherwise stays, one that was deleted may be put again at once, and the rest is kept."""
    one, other = engine.connect(), engine.connect()
    await one.transaction({"alive/h1": b"1", "alive/h2": b"1", "alive/h3": b"1"}, standing=True)
    await other.transaction({"alive/h2": b"2"}, deletes=["alive/h1"])
    assert await one.keep() >= 1
    assert await other.get("alive/h1") is None
    assert await one.transaction({"alive/h1": b"3"}, absent=["alive/h1"], standing=True)
    _, revision = await other.list("")
    watched = Watched(other, "", revision)
    await eventually(lambda: len(watched.deleted) == 2, "the end of what stood", 20)
    assert sorted(watched.deleted) == ["alive/h1", "alive/h3"]
    assert await other.get("alive/h2")
    await watched.stop()


async def test_what_the_next_connection_puts_again_outlives_the_last_one(engine: Engine, prompt: None) -> None:
    """An agent that begins again finds its record, puts it again, and the end of the old one takes nothing away."""
    last, following, other = engine.connect(), engine.connect(), engine.connect()
    await last.transaction({"alive/h1": b"1", "alive/h2": b"1"}, standing=True)
    await following.transaction({"alive/h1": b"1"}, standing=True)
    _, revision = await other.list("")
    watched = Watched(other, "", revision)

    async def ended() -> None:
        while watched.deleted != ["alive/h2"]:
            assert await following.keep() >= 1
            await asyncio.sleep(0.2)

    await asyncio.wait_for(ended(), 20)
    assert await other.get("alive/h1")
    await watched.stop()


async def test_a_standing_record_obeys_conditions(engine: Engine) -> None:
    """Where one does not hold nothing is put, and nothing is kept."""
    one, other = engine.connect(), engine.connect()
    await other.transaction({"alive/h1": b"1"})
    assert not await one.transaction({"alive/h1": b"2"}, absent=["alive/h1"], standing=True)
    record = await other.get("alive/h1")
    assert record
    assert record.value == b"1"
    with pytest.raises(Invalid, match="not both"):
        await one.transaction({"alive/h1": b"2"}, ttl=5, standing=True)


async def test_a_store_with_room_says_that_it_is_not_full(engine: Engine) -> None:
    """The question changes nothing."""
    store = engine.connect()
    _, revision = await store.list("")
    assert not await store.full()
    assert (await store.list(""))[1] == revision


async def test_a_key_is_claimed_by_one_host_only(engine: Engine) -> None:
    """Of 200 claims at once from two connections exactly one wins, and the record is the winner's."""
    stores = [engine.connect(), engine.connect()]
    claims = [
        stores[number % 2].transaction({"block": b"%d" % number, f"by/{number}": b""}, absent=["block"])
        for number in range(200)
    ]
    (winner,) = [number for number, won in enumerate(await asyncio.gather(*claims)) if won]
    records, _ = await stores[0].list("")
    assert {record.key: record.value for record in records} == {"block": b"%d" % winner, f"by/{winner}": b""}


async def test_no_count_is_lost_between_hosts(engine: Engine) -> None:
    """A writer that requires an unchanged record, and reads again after a conflict, undoes no other change."""
    stores = [engine.connect(), engine.connect()]
    await stores[0].transaction({"count": b"0"})

    async def count(number: int) -> None:
        for _ in range(5):
            done = 0
            while not done:
                record = await stores[number % 2].get("count")
                assert record
                value = b"%d" % (int(record.value) + 1)
                done = await stores[number % 2].transaction(
                    {"count": value}, unchanged={"count": record.revision}
                )

    await asyncio.gather(*(count(number) for number in range(6)))
    record = await stores[0].get("count")
    assert record
    assert record.value == b"30"


async def test_all_hosts_are_in_one_cluster(engine: Engine) -> None:
    """The cluster's id is made once and is the same for all, and it is no record."""
    one, other = engine.connect(), engine.connect()
    assert (await one.list(""))[0] == (await other.list(""))[0] == []
    assert one.cluster
    assert one.cluster == other.cluster


async def test_a_watch_ends_with_its_store(engine: Engine) -> None:
    """An iterating reader gets to the end, not an error."""
    store = engine.open()
    await store.transaction({"a": b"1"})
    _, revision = await store.list("")
    watched = Watched(store, "", revision)
    await store.transaction({"a": b"2"})
    await watched.has({"a": b"2"})
    await store.close()
    await eventually(lambda: watched.ended, "the watch's end", 60)
    assert watched.error is None
