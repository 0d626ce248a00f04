"""The etcd store: over failures of members, connections and passwords, and in its own cluster only."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

import pytest

from linkspan.core.errors import NotFound, Unavailable
from linkspan.store import etcd_lease, etcd_page_size
from linkspan.store.etcd import EtcdStore
from support.certificates import Authority
from support.polling import eventually
from support.store.engines import Watched
from support.store.etcd_members import Members, users

pytestmark = pytest.mark.root


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
    monkeypatch.setattr(etcd_page_size, "PAGE", 7)
    store, keys = EtcdStore(one.url()), [f"k{number:03}" for number in range(100)]
    await store.transaction(dict.fromkeys(keys, b""))
    for largest, prompt, sizes in ((40, 60.0, [7, 28, 40, 25]), (40, 0.0, [7] * 14 + [2])):
        monkeypatch.setattr(etcd_page_size, "LARGEST", largest)
        monkeypatch.setattr(etcd_page_size, "PROMPT", prompt)  # the pages of an etcd that answers late stay small
        assert [record.key for record in (await store.list(""))[0]] == keys
        pages = [[record.key for record in page] async for page, _ in store.pages("k")]
        assert [key for page in pages for key in page] == keys
        assert [len(page) for page in pages] == sizes
    await store.close()


async def test_the_next_page_comes_while_one_is_used(one: Members, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for at once, and dropped if nobody wants it."""
    monkeypatch.setattr(etcd_page_size, "PAGE", 1)
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


async def test_a_keepalive_waits_for_no_login(
    one: Members, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an outage all hosts log in at once, which may take longer than the lease lives."""
    store = EtcdStore(one.url("/c", users(one, tmp_path)))
    await store.transaction({"alive/h1": b"1"}, standing=True)
    assert await store.keep()
    one.members[0].stop()
    with pytest.raises(Unavailable):
        await store.keep()
    one.members[0].start()
    one.ready()

    async def slow(endpoint: str, stale: str) -> str:
        raise AssertionError(f"a login at {endpoint} instead of {stale!r}")

    monkeypatch.setattr(store.gateway, "_logged_in", slow)
    assert await store.keep()
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
    """Records that ended meanwhile cannot be put again until there is room."""
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
