"""Watches of etcd: over cut connections, restarts and restored stores, and without a change that is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator

import pytest

from linkspan.core.errors import NotFound, Unavailable
from linkspan.core.store_contract import Batch
from linkspan.store.etcd import EtcdStore
from linkspan.store.etcd_watch import QUIET_SECONDS, Place
from support.polling import PATIENCE, eventually
from support.store.engines import Watched
from support.store.etcd_members import Members, run

pytestmark = pytest.mark.root


def cut(members: Members) -> contextlib.AbstractContextManager[None]:
    """Drop every packet between this host and the first member, both ways; etcdctl uses another address."""
    host, _, port = members.members[0].client.rpartition(":")
    return dropped(f"ip daddr {host} tcp dport {port}", f"ip saddr {host} tcp sport {port}")


@contextlib.contextmanager
def dropped(*packets: str) -> Iterator[None]:
    """Drop the packets that these match."""
    run("nft", "add table inet cut; add chain inet cut in { type filter hook input priority 0; }")
    for one_ in packets:
        run("nft", f"add rule inet cut in {one_} drop")
    try:
        yield
    finally:
        run("nft", "delete table inet cut")


async def watching(members: Members) -> tuple[EtcdStore, Watched]:
    """Return a store, and a watch that has told of a change."""
    store = EtcdStore(members.url("/c"))
    await store.transaction({"a": b"1"})
    _, revision = await store.list("")
    watched = Watched(store, "", revision)
    await store.transaction({"a": b"2"})
    await watched.has({"a": b"2"})
    return store, watched


async def test_a_watch_reads_many_changes_together_and_loses_none(one: Members) -> None:
    """Each key's last change is told, and no batch tells of a change after a later one was told."""
    store, other = EtcdStore(one.url()), EtcdStore(one.url())
    _, revision = await store.list("")
    watched = Watched(store, "", revision)
    for number in range(200):
        await other.transaction({f"key{number % 10}": str(number).encode(), "gone": b""})
        await other.transaction({}, deletes=["gone"])
    await watched.has({f"key{number}": str(190 + number).encode() for number in range(10)})
    await eventually(lambda: "gone" in watched.deleted, "the deletion is told")
    told = [record.revision for batch in watched.batches for record in batch.puts]
    assert told == sorted(told)
    assert all(record.revision <= batch.revision for batch in watched.batches for record in batch.puts)
    for each in (store, other):
        await each.close()


async def test_a_watch_goes_on_after_a_restart(one: Members) -> None:
    """Changes made while this host's connection was down arrive, once, when etcd is back."""
    store = EtcdStore(one.url("/c"))
    await store.transaction({"a": b"1"})
    _, revision = await store.list("")
    watched = Watched(store, "", revision)
    await store.transaction({"b": b"1"})
    await watched.has({"b": b"1"})
    one.members[0].stop(signal.SIGTERM)
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:2379: cannot be reached: .*connection refused"):
        await store.get("a")
    one.members[0].start()
    one.ready()
    one.control("put", "/c/a", "2")
    await watched.has({"a": b"2", "b": b"1"})
    assert [record.key for batch in watched.batches for record in batch.puts] == ["b", "a"]
    await store.close()


async def test_a_cut_connection_is_found_and_made_again(one: Members, impatient: None) -> None:
    """A call fails in bounded time, and the watch yields what it missed when packets pass again."""
    store, watched = await watching(one)
    with cut(one):
        began = time.monotonic()
        with pytest.raises(Unavailable, match="no answer within 1 s"):
            await store.get("a")  # a write might still arrive after the cut
        assert time.monotonic() - began < 3
        one.control("put", "/c/a", "3")
    await watched.has({"a": b"3"})
    await store.close()


async def test_a_watch_whose_own_connection_died_is_opened_anew(one: Members, impatient: None) -> None:
    """No event reports that, because the member still answers: this happens when an address of the host goes."""
    store, watched = await watching(one)
    (stream,) = store._gateway.streams
    assert stream._response.connection is not None
    assert stream._response.connection.transport is not None
    _, port = stream._response.connection.transport.get_extra_info("sockname")
    with dropped(f"tcp sport {port}", f"tcp dport {port}"):
        await store.transaction({"a": b"3"})
        await watched.has({"a": b"3"})
    await store.close()


async def test_a_quiet_watch_is_asked_on_its_own_connection(one: Members, impatient: None) -> None:
    """It stays the one that it is, and neither etcd's log nor its revision grows by the questions."""
    store, watched = await watching(one)
    streams, before = set(store._gateway.streams), (one.entries(), (await store.list(""))[1], watched.proofs)
    await eventually(lambda: watched.proofs >= before[2] + 5, "five proofs")
    assert (one.entries(), (await store.list(""))[1]) == before[:2]
    assert store._gateway.streams == streams
    await store.close()


async def test_a_proof_moves_no_watch_past_changes_that_it_may_not_have_told(one: Members, impatient: None) -> None:
    """An etcd before 3.5.8 may answer before it tells: what was not told is asked for again."""
    store = EtcdStore(one.url("/c"))
    _, revision = await store.list("")
    place = Place(store.url.prefix, revision)
    proof: Batch | None = None
    while proof is None:  # on a busy machine a watch may be silent for too long, and ends
        async with contextlib.aclosing(store._watch.follow(place, QUIET_SECONDS)) as batches:
            one.control("put", "/elsewhere", "1")
            proof = await anext(batches, None)
    assert proof == Batch(revision)
    assert place.revision == revision
    await store.close()


async def test_a_watch_that_is_far_behind_catches_up(one: Members, impatient: None) -> None:
    """Etcd needs longer for 36,000 changes than a watch may be silent: they come in parts, none twice or missing."""
    store, other = EtcdStore(one.url()), EtcdStore(one.url())
    _, revision = await store.list("")
    keys = [f"endpoints/h1/c{number}/eth0" for number in range(120)]
    written = [await other.transaction(dict.fromkeys(keys, b"%d" % turn + bytes(500))) for turn in range(300)]
    watched = Watched(store, "", revision)
    try:
        await eventually(lambda: bool(watched.batches) and watched.batches[-1].revision == written[-1], "all", PATIENCE)
    finally:
        await watched.stop()
    assert watched.records == dict.fromkeys(keys, b"299" + bytes(500))
    assert [batch.revision for batch in watched.batches] == sorted({batch.revision for batch in watched.batches})
    for each in (store, other):
        await each.close()


async def test_what_was_connected_from_an_address_that_went_is_left(one: Members) -> None:
    """Told of that, calls and watches continue at once by connections of their own; none waits for an answer."""
    store, watched = await watching(one)
    lines = run("ss", "-Htnp", "state", "established", "dport = :2379").splitlines()
    ours = [line.split() for line in lines if f",pid={os.getpid()}," in line]
    ports = [words[2].rpartition(":")[2] for words in ours]
    assert len(ports) > 1
    with dropped(*(f"tcp {side} {port}" for port in ports for side in ("sport", "dport"))):
        store.renew()
        await store.transaction({"a": b"3"})
        await watched.has({"a": b"3"})
    await store.close()


async def test_a_watch_that_was_away_over_a_compaction_is_refused(one: Members, impatient: None) -> None:
    """NotFound comes out of the watch that lost its connection before, for changes were missed."""
    store, watched = await watching(one)
    with cut(one):
        for number in range(3):
            one.control("put", "/c/a", str(number))
        last = one.control("get", "/c/a", "-w", "fields").split('"Revision" : ')[1].split()[0]
        one.control("compact", last)
        await eventually(lambda: not store._gateway.streams, "the watch's end", 60)
    await eventually(lambda: watched.ended, "the watch's error", 60)
    assert isinstance(watched.error, NotFound)
    assert "no longer kept" in str(watched.error)
    await store.close()


async def test_a_restored_store_is_told_though_it_is_as_far_again(one: Members) -> None:
    """Others have written as much since as the restore took back: the watch knows it by what it saw last."""
    store = EtcdStore(one.url())
    await store.transaction({"a": b"1"})
    snapshot = one.save()
    _, revision = await store.list("")
    place = Place(store.url.prefix, revision)
    async with contextlib.aclosing(store._watch.follow(place, QUIET_SECONDS)) as batches:
        await store.transaction({"b": b"1"})
        assert [record.key for record in (await anext(batches)).puts] == ["b"]
    async with contextlib.aclosing(store._watch.follow(place, QUIET_SECONDS)) as batches:  # the same store
        await store.transaction({"c": b"1"}, deletes=["b"])
        assert (await anext(batches)).deletes == ("b",)
    one.restore(snapshot)
    for number in range(4):
        await store.transaction({"d": str(number).encode()})
    assert (await store.list(""))[1] > place.revision
    with pytest.raises(NotFound, match="it is another one now"):
        await anext(store._watch.follow(place, QUIET_SECONDS))
    await store.close()
