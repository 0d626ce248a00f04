"""The etcd store: over failures of members, connections and passwords, and in its own cluster only."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from linkspan.core.contracts import Batch
from linkspan.core.errors import NotFound, Unavailable
from linkspan.store import etcd, etcd_gateway, etcd_lease
from linkspan.store.etcd import EtcdStore, Place
from support.certificates import Authority
from support.polling import eventually
from support.store.engines import Watched
from support.store.etcd_members import Members, run, users

pytestmark = pytest.mark.root

@pytest.fixture
def one() -> Iterator[Members]:
    """Start a member of the test's own, and be in its namespace."""
    with Members.started(1) as members, members.inside():
        yield members


@pytest.fixture
def three() -> Iterator[Members]:
    """Start three members, and be in their namespace."""
    with Members.started(3) as members, members.inside():
        yield members


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait less for what hangs, so that the tests do."""
    monkeypatch.setattr(etcd_gateway, "SECONDS", 1.0)
    monkeypatch.setattr(etcd, "PROOF_SECONDS", 0.2)
    monkeypatch.setattr(etcd, "QUIET_SECONDS", 0.3)


async def settled(store: EtcdStore, puts: dict[str, bytes], seconds: float = 60) -> None:
    """Put records as soon as the store takes them."""
    end = time.monotonic() + seconds
    while True:
        try:
            assert await store.transaction(puts)
        except Unavailable:
            assert time.monotonic() < end
            await asyncio.sleep(0.05)
        else:
            return


async def test_a_member_that_dies_is_passed_over(three: Members) -> None:
    """Calls and watches continue at the others, whichever it is, and each change is watched."""
    store, other = EtcdStore(three.url()), EtcdStore(three.url())
    _, revision = await store.list("")
    watched = Watched(store, "", revision)
    puts = {}
    for number, member in enumerate(three.members):
        member.stop()
        puts[f"hosts/h{number}"] = b"1"
        await settled(other, {f"hosts/h{number}": b"1"})
        await watched.has(puts)
        member.start()
        three.ready()
    assert not watched.deleted
    for each in (store, other):
        await each.close()


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


async def test_a_member_that_hangs_is_passed_over(three: Members, impatient: None) -> None:
    """A call takes one member's time more, and a silent watch is opened at another member."""
    store = EtcdStore(three.url())
    other = EtcdStore(f"etcd://{three.members[1].client}")
    _, revision = await store.list("")
    watched = Watched(store, "", revision)
    await store.transaction({"a": b"1"})
    await watched.has({"a": b"1"})
    three.members[0].hang(True)
    try:
        await settled(other, {"a": b"2"})
        await watched.has({"a": b"2"})
        await settled(store, {"a": b"3"})
        await watched.has({"a": b"3"})
    finally:
        three.members[0].hang(False)
    for each in (store, other):
        await each.close()


async def test_a_claim_has_one_winner_while_members_die(three: Members) -> None:
    """A host whose claim succeeded is the only winner, and a claim with an unknown result is an error."""
    stores = [EtcdStore(three.url()) for _ in range(4)]
    await asyncio.gather(*(store.list("") for store in stores))
    claims = [
        asyncio.create_task(stores[number % 4].transaction({"block": b"%d" % number}, absent=["block"]))
        for number in range(200)
    ]
    await eventually(lambda: any(store._gateway._calls for store in stores), "a claim under way", 60)
    await asyncio.sleep(0)
    three.members[0].stop()
    told = await asyncio.gather(*claims, return_exceptions=True)
    three.members[0].start()
    three.ready()
    record = await stores[0].get("block")
    assert record
    winners = [number for number, answer in enumerate(told) if isinstance(answer, int) and answer]
    unknown = [number for number, answer in enumerate(told) if isinstance(answer, Unavailable)]
    assert winners == [int(record.value)] or (not winners and int(record.value) in unknown)
    assert {type(answer) for answer in told} <= {int, Unavailable}
    for store in stores:
        await store.close()


async def test_a_member_without_a_quorum_is_said_to_be_of_no_use(three: Members, impatient: None) -> None:
    """Unavailable names every endpoint and why; nothing is reported as written that is not."""
    store = EtcdStore(three.url())
    await store.transaction({"a": b"1"})
    for member in three.members[1:]:
        member.stop()
    with pytest.raises(Unavailable) as caught:
        await store.transaction({"a": b"2"})
    for member in three.members:
        assert member.client in str(caught.value)
    assert "connection refused" in str(caught.value)
    for member in three.members[1:]:
        member.start()
    three.ready()
    await settled(store, {"a": b"3"})
    await store.close()


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


async def watching(members: Members) -> tuple[EtcdStore, Watched]:
    """Return a store, and a watch that has told of a change."""
    store = EtcdStore(members.url("/c"))
    await store.transaction({"a": b"1"})
    _, revision = await store.list("")
    watched = Watched(store, "", revision)
    await store.transaction({"a": b"2"})
    await watched.has({"a": b"2"})
    return store, watched


async def test_a_cut_connection_is_found_and_made_again(one: Members, impatient: None) -> None:
    """A call fails in bounded time, and the watch yields what it missed when packets pass again."""
    store, watched = await watching(one)
    with cut(one):
        began = time.monotonic()
        with pytest.raises(Unavailable, match="no answer within 1 s"):
            await store.transaction({"a": b"never"})
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
    async with contextlib.aclosing(store._follow(place)) as batches:
        one.control("put", "/elsewhere", "1")
        assert await anext(batches) == Batch(revision)
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
        await eventually(lambda: bool(watched.batches) and watched.batches[-1].revision == written[-1], "all", 60)
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


async def test_a_store_restored_from_a_backup_is_told(one: Members) -> None:
    """The watch reports that the revision went back; the cluster is the same, and lost records can be put again."""
    store = EtcdStore(one.url())
    await store.transaction({"a": b"1"})
    snapshot = one.save()
    await store.transaction({"b": b"1"})
    await store.transaction({"c": b"1"})
    _, revision = await store.list("")
    watched = Watched(store, "", revision)
    one.restore(snapshot)
    await eventually(lambda: watched.ended, "the watch's error", 60)
    assert isinstance(watched.error, NotFound)
    assert "went back" in str(watched.error)
    records, before = await store.list("")
    assert before < revision
    assert [record.key for record in records] == ["a"]
    assert await store.transaction({"b": b"1"})
    await store.close()


async def test_a_restored_store_with_users_is_reached_again(one: Members, tmp_path: Path) -> None:
    """A token of before names a place in raft's log that the restored member has not reached: it waits, and is mute."""
    store = EtcdStore(one.url("/c", users(one, tmp_path)))
    await store.transaction({"a": b"1"})
    snapshot = one.save()
    for number in range(100):
        await store.transaction({"b": str(number).encode()})
    store._gateway._token = ""  # a login after those
    await store.transaction({"b": b"last"})
    one.restore(snapshot)
    with contextlib.suppress(Unavailable):
        await store.list("")
    records, _ = await store.list("")
    assert [record.key for record in records] == ["a"]
    assert await store.keep() == 0
    assert await store.transaction({"c": b"1"}, standing=True)
    assert await store.keep()
    await store.close()


async def test_a_restored_store_is_told_though_it_is_as_far_again(one: Members) -> None:
    """Others have written as much since as the restore took back: the watch knows it by what it saw last."""
    store = EtcdStore(one.url())
    await store.transaction({"a": b"1"})
    snapshot = one.save()
    _, revision = await store.list("")
    place = Place(store.url.prefix, revision)
    async with contextlib.aclosing(store._follow(place)) as batches:
        await store.transaction({"b": b"1"})
        assert [record.key for record in (await anext(batches)).puts] == ["b"]
    async with contextlib.aclosing(store._follow(place)) as batches:  # the store is the one that it was
        await store.transaction({"c": b"1"}, deletes=["b"])
        assert (await anext(batches)).deletes == ("b",)
    one.restore(snapshot)
    for number in range(4):
        await store.transaction({"d": str(number).encode()})
    assert (await store.list(""))[1] > place.revision
    with pytest.raises(NotFound, match="it is another one now"):
        await anext(store._follow(place))
    await store.close()


async def test_an_emptied_store_stays_the_same_cluster(one: Members) -> None:
    """A host that knows the cluster's id puts it back before anything else, and all continue."""
    store, other = EtcdStore(one.url("/c")), EtcdStore(one.url("/c"))
    await store.transaction({"a": b"1"})
    await other.get("a")
    _, revision = await store.list("")
    watched = Watched(store, "", revision)
    one.control("del", "/c/", "--prefix")
    await eventually(lambda: watched.deleted == ["a"], "the delete", 60)
    assert await store.list("") != ([], 0)
    assert await other.transaction({"a": b"2"})
    assert one.control("get", "/c/.cluster", "--print-value-only").strip() == store.cluster == other.cluster
    for each in (store, other):
        await each.close()


async def test_another_clusters_store_is_neither_read_nor_written(one: Members) -> None:
    """The error names both clusters: for a host that starts, and for one that runs when the store is exchanged."""
    store = EtcdStore(one.url("/c"), cluster="mine")
    await store.transaction({"a": b"1"})
    stranger = EtcdStore(one.url("/c"), cluster="theirs")
    with pytest.raises(Unavailable, match="is cluster mine's, and this host belongs to theirs"):
        await stranger.list("")
    one.control("put", "/c/.cluster", "theirs")
    for call in (store.get("a"), store.list(""), store.transaction({"a": b"2"})):
        with pytest.raises(Unavailable, match="is cluster theirs's, and this host belongs to mine"):
            await call
    record = await stranger.get("a")
    assert record
    assert record.value == b"1"
    for each in (store, stranger):
        await each.close()


async def test_a_claim_whose_answer_was_lost_is_known_as_won(one: Members) -> None:
    """A condition that fails only because the first try was carried out does not make a claim lost."""
    store = EtcdStore(one.url())
    await store.transaction({"block": b"h1", "by/h1": b""})
    assert await store._was_ours({"block": b"h1", "by/h1": b""})
    await store.transaction({"block": b"h2"})
    assert not await store._was_ours({"block": b"h1", "by/h1": b""})
    assert not await store._was_ours({"block": b"h2", "by/h1": b""})
    await store.close()


async def test_a_long_listing_comes_in_pages_of_one_revision(
    one: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is missing or twice in it if the records do not fit one answer."""
    monkeypatch.setattr(etcd, "PAGE", 7)
    store, keys = EtcdStore(one.url()), [f"k{number:03}" for number in range(100)]
    await store.transaction(dict.fromkeys(keys, b""))
    for largest, prompt, sizes in ((40, 60.0, [7, 40, 40, 13]), (40, 0.0, [7] * 14 + [2])):
        monkeypatch.setattr(etcd, "LARGEST", largest)
        monkeypatch.setattr(etcd, "PROMPT", prompt)  # the pages of an etcd that answers late stay small
        assert [record.key for record in (await store.list(""))[0]] == keys
        pages = [[record.key for record in page] async for page, _ in store.pages("k")]
        assert [key for page in pages for key in page] == keys
        assert [len(page) for page in pages] == sizes
    await store.close()


async def test_the_next_page_comes_while_one_is_used(one: Members, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for at once, and dropped if nobody wants it."""
    monkeypatch.setattr(etcd, "PAGE", 1)
    store, running = EtcdStore(one.url()), asyncio.all_tasks()
    await store.transaction({"x/a": b"", "x/b": b""})
    pages = store.pages("x/")
    (first,), _ = await anext(pages)
    coming = asyncio.all_tasks() - running
    assert first.key == "x/a"
    assert len(coming) == 1
    await asyncio.wait(coming)
    (second,), _ = await anext(pages)
    assert second.key == "x/b"
    pages = store.pages("x/")
    await anext(pages)
    assert asyncio.all_tasks() - running
    del pages
    await eventually(lambda: not asyncio.all_tasks() - running, "the request has ended")
    await store.close()


async def test_a_certificate_of_the_right_authority_is_taken(tmp_path: Path, impatient: None) -> None:
    """With ca, cert and key linkspan connects to etcd, by streams too; each wrong file has its own error and cause."""
    authority, stranger = Authority(tmp_path / "ca"), Authority(tmp_path / "stranger")
    server, client = authority.certificate("server"), authority.certificate("client")
    forged = stranger.certificate("client")
    options = ("--cert-file", server.cert, "--key-file", server.key, "--client-cert-auth")
    login = ("--cacert", authority.cert, "--cert", client.cert, "--key", client.key)
    with Members.started(1, (*options, "--trusted-ca-file", authority.cert), login) as members, members.inside():
        for query, why in [
            (f"?ca={authority.cert}&cert={client.cert}&key={client.key}", ""),
            (f"?ca={stranger.cert}&cert={client.cert}&key={client.key}", "its certificate is refused: "),
            (f"?ca={authority.cert}&cert={forged.cert}&key={forged.key}", "refuses our certificate"),
            (f"?ca={authority.cert}", "refuses our certificate"),
            (f"?ca={authority.cert}&cert={client.cert}&key={forged.key}", "cannot be used: .*mismatch"),
            (f"?ca={tmp_path}/none", "certificate .*/none cannot be used: no such file"),
            ("", "it speaks TLS, and the store's URL names no authority"),
        ]:
            store = EtcdStore(members.url("/c", query))
            if why:
                with pytest.raises(Unavailable, match=why):
                    await store.transaction({"a": b"1"})
            else:
                _, revision = await store.list("")
                watched = Watched(store, "", revision)
                await store.transaction({"a": b"1"}, standing=True)
                await watched.has({"a": b"1"})
                await kept(store, 2)
                await eventually(lambda watched=watched: watched.proofs > 1, "the watch proves that it lives")
            await store.close()


async def test_an_etcd_without_tls_is_told(one: Members, tmp_path: Path) -> None:
    """The error says which options to take out."""
    store = EtcdStore(one.url("/c", f"?ca={Authority(tmp_path).cert}"))
    with pytest.raises(Unavailable, match="does not speak TLS"):
        await store.get("a")
    await store.close()


async def test_a_name_that_is_not_known_is_told_as_such(one: Members) -> None:
    """Neither a resolver that says no nor one that says nothing looks like an etcd that does not answer."""
    for host in ("no-such-host.invalid", "other.no-such-host.invalid"):
        store = EtcdStore(f"etcd://{host}:2379/c")
        with pytest.raises(Unavailable, match=f"(the name {host} is not known|no resolver says which address)") as said:
            await store.get("a")
        assert "/etc/resolv.conf" in said.value.hint
        await store.close()


async def test_a_user_logs_in_and_stays_so(one: Members, tmp_path: Path) -> None:
    """A token that has expired is renewed within the call; watches live on."""
    store = EtcdStore(one.url("/c", users(one, tmp_path)))
    await store.transaction({"a": b"1"})
    _, revision = await store.list("")
    watched = Watched(store, "", revision)
    token = store._gateway._token
    assert token
    for words in (("auth", "disable"), ("auth", "enable")):  # which ends all tokens, as their age does
        one.control(*words)
    assert await store.transaction({"a": b"2"})
    await watched.has({"a": b"2"})
    assert store._gateway._token != token
    one.members[0].stop()
    one.members[0].start()
    one.ready()
    assert await store.transaction({"a": b"3"})
    await watched.has({"a": b"3"})
    await store.close()


async def test_a_user_who_is_wrong_is_told_what_is_wrong(one: Members, tmp_path: Path) -> None:
    """A wrong password, no user, a user without the right, and a file that is missing or open are five errors."""
    query = users(one, tmp_path)
    for name, mode in (("wrong", 0o600), ("open", 0o644)):
        (tmp_path / name).write_text("wrong\n")
        (tmp_path / name).chmod(mode)
    for prefix, options, why in [
        ("/c", f"?user=agent&password-file={tmp_path}/wrong", "user agent is refused: .*wrong password in .*/wrong"),
        ("/c", "", "lets only users in that it knows, and the store's URL names none"),
        ("/c", f"?user=agent&password-file={tmp_path}/open", "password-file .*/open must belong to root"),
        ("/d", query, "user agent may not use /d/: permission denied"),
        ("/c", f"?user=agent&password-file={tmp_path}/none", "password-file .*/none cannot be read: no such file"),
    ]:
        store = EtcdStore(one.url(prefix, options))
        with pytest.raises(Unavailable, match=why):
            await store.transaction({"a": b"1"})
        await store.close()


async def kept(store: EtcdStore, seconds: float, *, alone: bool = True) -> None:
    """Keep for so long what stands, as an agent does; each time it is kept, within the time of one silent member."""
    end = time.monotonic() + seconds
    while (begun := time.monotonic()) < end:
        assert await store.keep() >= 2
        assert not alone or time.monotonic() - begun < etcd_lease.TRY + 0.5
        await asyncio.sleep(0.3)


async def standing(members: Members) -> tuple[EtcdStore, EtcdStore, Watched]:
    """Return a store with a standing record, and another one that watches."""
    store, other = EtcdStore(members.url("/c")), EtcdStore(members.url("/c"))
    await store.transaction({"alive/h1": b"1"}, standing=True)
    _, revision = await other.list("")
    return store, other, Watched(other, "", revision)


async def test_a_lease_is_kept_without_an_entry_in_the_log(one: Members) -> None:
    """Nor does the revision move, and all goes over one connection."""
    store, other, watched = await standing(one)
    assert await store.keep()
    streams, before = set(store._gateway.streams), one.entries()
    await kept(store, 5)
    assert (one.entries(), store._gateway.streams) == (before, streams)
    assert not watched.batches
    for each in (store, other):
        await each.close()


async def test_a_lease_is_kept_while_a_member_dies_or_hangs(three: Members) -> None:
    """Whichever it is, the leader too: the next member is asked at once, and no watch tells of anything."""
    store, other, watched = await standing(three)
    for member in three.members:
        await kept(store, 0.5)
        member.hang(True)
        try:
            await kept(store, 5, alone=False)
        finally:
            member.hang(False)
        member.stop()
        await kept(store, 5, alone=False)
        member.start()
        three.ready()
    assert not watched.batches
    for each in (store, other):
        await each.close()


async def test_a_member_that_has_lost_its_leader_says_so(three: Members) -> None:
    """The error names it, in a stream that was open or in the place of its answer."""
    store, other, _ = await standing(three)
    for member in three.members[1:]:
        member.stop()
    said, end = f"etcd {three.members[0].client}: no leader", time.monotonic() + 30

    async def told() -> bool:
        try:
            await store.keep()
        except Unavailable as error:
            return said in str(error)
        return False

    while not await told():
        assert time.monotonic() < end, said
    for each in (store, other):
        await each.close()


async def test_a_lease_outlives_a_time_without_any_member(three: Members) -> None:
    """No leader, no end: members that are back give each lease its whole time, and names all that did not answer."""
    store, other, watched = await standing(three)
    await kept(store, 0.5)
    for member in three.members:
        member.stop()
    with pytest.raises(Unavailable) as caught:
        await store.keep()
    for member in three.members:
        assert f"{member.client}: cannot be reached" in str(caught.value)
    for member in three.members:
        member.start()
    three.ready()
    await kept(store, 5, alone=False)
    assert not watched.batches
    for each in (store, other):
        await each.close()


async def test_a_lease_that_has_ended_is_granted_again(one: Members, prompt: None) -> None:
    """After a time in which the host was stopped, or the lease revoked: by the next put, though nobody asked before."""
    store, other, watched = await standing(one)
    await eventually(lambda: watched.deleted == ["alive/h1"], "its end", 20)
    assert await store.transaction({"alive/h1": b"2"}, standing=True)
    assert await store.keep() >= 2
    lease = store._standing._id
    one.control("lease", "revoke", f"{int(lease):x}")
    assert await store.keep() == 0
    assert await store.transaction({"alive/h1": b"3"}, standing=True)
    assert await store.keep() >= 2
    for each in (store, other):
        await each.close()


async def filled(store: EtcdStore) -> None:
    """Put records until the store has no room."""
    for number in range(100):
        await store.transaction({f"hosts/{number}": b"x" * 100_000})


async def test_a_full_etcd_keeps_what_stands_and_says_that_it_is_full() -> None:
    """What has ended meanwhile cannot be put again until there is room."""
    with Members.started(1, ("--quota-backend-bytes", "1000000")) as members, members.inside():
        store, other, watched = await standing(members)
        late = EtcdStore(members.url("/c"))
        with pytest.raises(Unavailable, match="database space exceeded"):
            await filled(other)
        assert await other.full()
        with pytest.raises(Unavailable, match="database space exceeded") as caught:
            await late.transaction({"alive/h2": b"1"}, standing=True)
        assert "docs/store.md" in caught.value.hint
        assert {record.key for record in (await late.list(""))[0]} >= {"alive/h1", "hosts/0"}
        await kept(store, 5)
        assert not watched.deleted
        for each in (store, other, late):
            await each.close()


async def test_a_user_of_the_store_s_prefix_may_keep_what_stands(one: Members, tmp_path: Path) -> None:
    """And ask whether there is room: no right besides those of the prefix is needed."""
    store = EtcdStore(one.url("/c", users(one, tmp_path)))
    await store.transaction({"alive/h1": b"1"}, standing=True)
    await kept(store, 3)  # tokens of this etcd live for two seconds
    assert not await store.full()
    await store.close()


async def test_an_etcd_that_is_away_at_first_is_met_later(one: Members) -> None:
    """Opening needs no etcd; the cluster's id is known from the first answer on."""
    one.members[0].stop()
    store = EtcdStore(one.url())
    assert store.cluster == ""
    with pytest.raises(Unavailable, match="cannot be reached"):
        await store.list("")
    one.members[0].start()
    one.ready()
    assert await store.transaction({"a": b"1"})
    assert store.cluster
    await store.close()


