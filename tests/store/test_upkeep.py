"""Upkeep of a real etcd: one agent at a time compacts, a file that fills is told, a full one is freed."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest

from linkspan.core.errors import Full, Unavailable
from linkspan.store import records
from linkspan.store.etcd import EtcdStore
from linkspan.store.etcd_errors import Refused
from linkspan.store.etcd_gateway import Gateway
from linkspan.store.etcd_maintenance import Maintenance, Root
from linkspan.store.etcd_status import FILLING, NOSPACE, MemberStatus
from linkspan.store.replica import Replica
from linkspan.store.upkeep import KEY, OTHER, OURS, Allowed, Pace, Turn, Upkeep
from support.polling import awaited, eventually
from support.store.engines import Watched
from support.store.etcd_members import Members, users

pytestmark = pytest.mark.root

QUOTA = 16 << 20
COMMIT = 0.12  # etcd commits a batch each 0.1 s, and counts the file only then
SMALL = ("--quota-backend-bytes", str(QUOTA))
QUICK = Pace(look=0.05, whole=0.05, turn=0.0, patience=0.0, full=0.05, again=0.5, recover=20, changes=1, spread=0.5)
PATIENT = Pace(look=0.05, whole=0.05, turn=0.0, patience=3600, full=0.05, again=0.5, recover=20, changes=1, spread=0.5)


class Watching(Maintenance):
    """The real thing, which writes down what was done, and which members were defragmented, in this order."""

    def __init__(self, store: EtcdStore, done: list[str], root: Root | None = None) -> None:
        super().__init__(store.gateway, KEY, root)
        self._done = done

    async def compact(self, revision: int, *, wait: bool = False) -> bool:
        """Do it."""
        did = await super().compact(revision, wait=wait)
        self._done.append(f"compact {did}")
        return did

    async def defragment(self, member: MemberStatus) -> None:
        """Do it, and see that no other member is defragmented meanwhile."""
        self._done.append(f"{'leader' if member.leader else 'follower'} {member.name}")
        await super().defragment(member)
        self._done.append(f"end {member.name}")


class Keeper:
    """An agent, as far as it looks after its store."""

    def __init__(
        self,
        members: Members,
        folder: Path,
        name: str,
        allowed: Allowed = "compact",
        pace: Pace = QUICK,
        url: str = "/c",
        *,
        root: Root | None = None,
        acts: bool = True,
    ) -> None:
        self.done: list[str] = []
        self.told: list[str] = []
        self.counts: Counter[str] = Counter()
        self.store = EtcdStore(members.url(url))
        self.reading = asyncio.Event()
        self.reading.set()
        self.replica = Replica(self.store, folder / f"{name}.json", name, self._changed)
        self.etcd = Watching(self.store, self.done, root)
        self.upkeep = Upkeep(
            self.replica, self.etcd, name, allowed, self.told.append, self._count, pace, acts=lambda: acts
        )

    def _count(self, what: str) -> None:
        self.counts[what] += 1

    async def _changed(self, _keys: frozenset[str]) -> None:
        await self.reading.wait()

    async def step(self) -> None:
        """Look, and act."""
        await self.upkeep.step(self.etcd)

    async def turn(self) -> None:
        """Take the turn, and see it in the replica."""
        before = self.replica.known_revision(KEY)
        await self.step()
        await eventually(lambda: self.replica.known_revision(KEY) != before, "the record of this turn")


@contextlib.asynccontextmanager
async def keeping(*keepers: Keeper) -> AsyncIterator[None]:
    """Follow the store with each, and end that."""
    for one in keepers:
        await one.replica.start()
    try:
        yield
    finally:
        for one in keepers:
            one.reading.set()
            await one.upkeep.stop()
            await one.replica.stop()


async def write(store: EtcdStore, changes: int, size: int = 100, keys: int = 100, *, fresh: bool = False) -> None:
    """Write so many changes, in transactions of ``keys`` keys: always the same ones, or ``fresh`` ones each time."""
    value = os.urandom(size)
    for start in range(0, changes, keys):
        first = start if fresh else 0
        await store.transaction({f"hosts/{first + each}": value for each in range(min(keys, changes - start))})


async def fill(store: EtcdStore) -> None:
    """Write until the quota is full: the same few keys, so that history takes it."""
    with pytest.raises(Full, match="its quota is full, so it takes no writes"):
        await _write_on(store, 40000, 20000, 20)


async def _write_on(store: EtcdStore, changes: int, size: int, keys: int) -> None:
    """Write as ``write`` does, and again what a busy disk does not take in the time of a call."""
    while changes > 0:
        try:
            await write(store, keys, size, keys)
        except Unavailable as error:
            if isinstance(error, Full):
                raise
        else:
            changes -= keys


async def half_unused(keeper: Keeper, members: Members) -> None:
    """Write half of the quota, and let the history be compacted, so that most of each file is unused."""
    while (await size(keeper)).fill < 0.5:
        await write(keeper.store, 10, 10000, 10)
    await keeper.turn()
    members.control("compact", str((await keeper.etcd.head())[0]))

    async def unused() -> bool:
        await keeper.store.transaction({"hosts/0": os.urandom(10)})  # etcd counts what is free when it writes
        return all(one.loose > 0.8 for one in (await keeper.etcd.status(60)).members)

    await awaited(unused, "the compacted space is unused in all members")


async def size(keeper: Keeper) -> MemberStatus:
    """Return the state of the first member."""
    return (await keeper.etcd.status(0)).members[0]


@pytest.fixture
def one(request: pytest.FixtureRequest) -> Iterator[Members]:
    """Start a member with a small quota, or with the options of the test, and be in its namespace."""
    options: Sequence[str] = getattr(request, "param", SMALL)
    with Members.started(1, options) as members, members.inside():
        yield members


@pytest.fixture
def three() -> Iterator[Members]:
    """Start three members with a small quota, and be in their namespace."""
    with Members.started(3, SMALL) as members, members.inside():
        yield members


async def test_history_before_the_last_turn_is_compacted(one: Members, tmp_path: Path) -> None:
    """The first turn begins, the second compacts what was before the first: no watch that lives is that far behind."""
    keeper = Keeper(one, tmp_path, "h1")
    async with keeping(keeper):
        await write(keeper.store, 10, keys=1)
        await keeper.turn()
        first = keeper.replica.known_revision(KEY)
        assert keeper.counts["compact"] == 0
        await write(keeper.store, 10, keys=1)
        await keeper.turn()
        assert keeper.counts["compact"] == 1
        assert keeper.upkeep.last.compactor == OURS
        assert await keeper.etcd.compacted(first - 1)
        assert not await keeper.etcd.compacted(first)


async def test_one_of_two_agents_compacts(one: Members, tmp_path: Path) -> None:
    """Both want to at the same moment, turn after turn: each turn is one agent's, and compacts once."""
    keepers = [Keeper(one, tmp_path, name) for name in ("h1", "h2")]
    async with keeping(*keepers):
        for turn in range(6):
            await write(keepers[0].store, 5, keys=1)
            known = keepers[0].replica.known_revision(KEY)
            await asyncio.gather(*(keeper.step() for keeper in keepers))
            head = (await keepers[0].etcd.head())[1]
            assert head > known, turn
            await eventually(lambda head=head: all(k.replica.known_revision(KEY) == head for k in keepers), "the turn")
        done = [what for keeper in keepers for what in keeper.done]
        assert done == ["compact True"] * 5
        assert not any(keeper.upkeep.problem for keeper in keepers)


async def test_little_change_costs_no_write(one: Members, tmp_path: Path) -> None:
    """In a cluster where nothing happens nothing is written for the upkeep either."""
    keeper = Keeper(one, tmp_path, "h1", pace=Pace(look=0, whole=0, turn=0, patience=0, changes=100))
    async with keeping(keeper):
        await keeper.turn()
        before = (await keeper.etcd.head())[0]
        await write(keeper.store, 50, keys=1)
        await keeper.step()
        assert (await keeper.etcd.head())[0] == before + 50
        await write(keeper.store, 60, keys=1)
        await keeper.turn()
        assert keeper.counts["compact"] == 1


async def test_an_etcd_that_is_compacted_by_others_is_left_alone(one: Members, tmp_path: Path) -> None:
    """Somebody compacted past the last turn: the record says so, and nothing is compacted before patience ends."""
    keeper = Keeper(one, tmp_path, "h1")
    async with keeping(keeper):
        await keeper.turn()
        await write(keeper.store, 10, keys=1)
        one.control("compact", str((await keeper.etcd.head())[0]))
        await keeper.turn()
        assert keeper.upkeep.last.compactor == OTHER
        assert keeper.done == []
        patient = Keeper(one, tmp_path, "h2", pace=PATIENT)
        async with keeping(patient):
            await write(keeper.store, 10, keys=1)
            known = patient.replica.known_revision(KEY)
            for _ in range(3):
                await patient.step()
            assert (await patient.etcd.head())[1] == known
        await keeper.turn()  # nobody compacts any more: the agents do
        assert keeper.upkeep.last.compactor == OURS
        assert keeper.done == ["compact True"]


@pytest.mark.parametrize("one", [("--auto-compaction-retention", "1s", *SMALL)], indirect=True)
async def test_an_etcd_that_compacts_itself_is_seen_to(one: Members, tmp_path: Path) -> None:
    """With etcd's own compaction the agents take turns and compact nothing."""
    keeper = Keeper(one, tmp_path, "h1", pace=PATIENT)
    async with keeping(keeper):
        await write(keeper.store, 10, keys=1)
        await keeper.turn()
        known = keeper.replica.known_revision(KEY)

        async def compacts() -> bool:
            await write(keeper.store, 1, keys=1)
            return await keeper.etcd.compacted(known)

        await awaited(compacts, "etcd compacts by itself", 30)
        keeper.upkeep._pace = QUICK
        await keeper.turn()
        assert (keeper.upkeep.last.compactor, keeper.done) == (OTHER, [])


async def test_a_file_that_fills_is_not_left_to_others(one: Members, tmp_path: Path) -> None:
    """From a quarter of the quota on the agents do not wait for hours whether somebody else compacts."""
    keeper = Keeper(one, tmp_path, "h1", pace=PATIENT)
    async with keeping(keeper):
        await keeper.turn()
        await write(keeper.store, 50, 10000, 10)
        await keeper.step()
        assert (keeper.done, keeper.upkeep.last.compactor) == ([], "")
        while (await size(keeper)).fill < FILLING:
            await write(keeper.store, 50, 10000, 10)
        await keeper.turn()
        assert (keeper.done, keeper.upkeep.last.compactor) == (["compact True"], OURS)


async def test_what_was_compacted_to_make_room_is_nobody_else_s_doing(one: Members, tmp_path: Path) -> None:
    """After NOSPACE the agents go on as before, and do not take their own compaction for that of another."""
    keeper = Keeper(one, tmp_path, "h1", "all")
    async with keeping(keeper):
        for _ in range(2):
            await write(keeper.store, 10, keys=1)
            await keeper.turn()
        assert keeper.upkeep.last.compactor == OURS
        await fill(keeper.store)
        await keeper.step()
        assert keeper.counts["disarm"] == 1
        await write(keeper.store, 10, keys=1)
        await keeper.turn()
        assert keeper.upkeep.last.compactor == OURS


async def test_a_setting_keeps_agents_away(one: Members, tmp_path: Path) -> None:
    """With `store_upkeep` none an agent looks, tells, and changes nothing, full or not."""
    keeper = Keeper(one, tmp_path, "h1", "none")
    async with keeping(keeper):
        await write(keeper.store, 100)
        for _ in range(3):
            await keeper.step()
        await fill(keeper.store)
        for _ in range(3):
            await keeper.step()
        assert (await keeper.etcd.head())[1] == 0
        assert (keeper.done, keeper.counts) == ([], Counter())
        assert [words.partition(":")[0] for words in keeper.told][-1] == "the store's quota is full"


async def test_a_slow_watcher_lists_again_after_a_compaction(
    one: Members, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A replica that reads nothing while much is compacted away is refused by etcd, lists, and has every record."""
    caplog.set_level("INFO", "linkspan.store.replica")
    keeper, slow = Keeper(one, tmp_path, "h1"), Keeper(one, tmp_path, "h2")
    async with keeping(keeper, slow):
        await keeper.turn()
        slow.reading.clear()
        for number in range(12):
            await slow_write(keeper, number)
            await keeper.turn()
        oldest = slow.replica.known_revision("hosts/big0")
        assert await keeper.etcd.compacted(max(oldest, 2) - 1)
        slow.reading.set()
        found, _ = await keeper.store.list("")
        right = {record.key: record.value for record in found}
        await eventually(
            lambda: {key: one_.value for key, one_ in slow.replica.records.items()} == right, "the records", 60
        )
        assert "no longer kept" in caplog.text
        assert (slow.replica.problem, slow.replica.lost) == ("", set())


async def slow_write(keeper: Keeper, number: int) -> None:
    """Write more than the sockets between etcd and a reader that reads nothing can hold, in the end."""
    for part in range(10):
        value = os.urandom(30000)
        await keeper.store.transaction({f"hosts/big{key}": value for key in range(5)})
        await keeper.store.transaction({f"hosts/small{part}": str(number).encode()}, deletes=["hosts/gone"])


async def test_a_watch_from_before_the_compacted_history_is_refused(one: Members, tmp_path: Path) -> None:
    """A watch from before the last turn but one is refused: its caller lists (as the replica above did)."""
    keeper = Keeper(one, tmp_path, "h1")
    async with keeping(keeper):
        _, old = await keeper.store.list("")
        for _ in range(3):
            await write(keeper.store, 10, keys=1)
            await keeper.turn()
        watched = Watched(keeper.store, "", old)
        await eventually(lambda: watched.ended, "the watch's end")
        assert (watched.batches, "no longer kept" in str(watched.error)) == ([], True)


async def test_a_file_that_fills_is_told_at_60_and_at_80_percent(one: Members, tmp_path: Path) -> None:
    """Each threshold is told once, with the sizes; the size that counts is the file's, which etcd compares too."""
    keeper = Keeper(one, tmp_path, "h1", "none")
    async with keeping(keeper):
        parts: list[tuple[float, float]] = []
        for part, many in ((0.55, 0), (0.65, 1), (0.7, 1), (0.85, 2), (0.9, 2)):
            while (before := (await size(keeper)).fill) < part:
                await write(keeper.store, 30, 10000, 30)
                await asyncio.sleep(COMMIT)
            await keeper.step()
            assert len(keeper.told) == many, keeper.told
            if len(parts) < many:
                parts.append((before, (await size(keeper)).fill))
        for words, (before, after) in zip(keeper.told, parts, strict=True):
            told = int(words.removeprefix("the store fills: ").partition("%")[0])
            assert round(100 * before) <= told <= round(100 * after), keeper.told
        assert "of 16.0 MiB on member m0" in keeper.told[0]
        assert (await size(keeper)).quota == QUOTA


async def test_what_etcd_refuses_is_told_and_the_last_record_is_not_kept(one: Members, tmp_path: Path) -> None:
    """A record that somebody made too large to be written again stops no turn; a refusal is named in the status."""
    keeper = Keeper(one, tmp_path, "h1")
    async with keeping(keeper):
        await keeper.turn()
        record = keeper.replica.records[KEY].value
        await keeper.store.transaction({KEY: record[:-1] + b',"junk":"' + b"y" * 1_000_000 + b'"}'})
        await eventually(lambda: len(keeper.replica.records[KEY].value) > 1_000_000, "the large record")
        await write(keeper.store, 10, 100, 10)
        await keeper.turn()
        assert len(keeper.replica.records[KEY].value) < 1000

        async def refuses(*_words: object, **_more: object) -> int:
            raise Refused("etcd refuses that", "look at its log", 3)

        keeper.store.transaction = refuses  # type: ignore[method-assign]
        await write(EtcdStore(one.url("/c")), 10, 100, 10)
        await keeper.step()
        assert (keeper.upkeep.problem, keeper.upkeep.fix) == ("etcd refuses that", "look at its log")


async def test_a_full_store_of_linkspan_s_own_is_freed(one: Members, tmp_path: Path) -> None:
    """An agent compacts, defragments and lifts the alarm: writes work again, and no record is missing."""
    keeper = Keeper(one, tmp_path, "h1", "all", PATIENT)
    async with keeping(keeper):
        await keeper.store.transaction({"networks/a": b"1"})
        await fill(keeper.store)
        before, _ = await keeper.store.list("")
        await keeper.step()
        assert keeper.counts == {"compact": 1, "defragment": 1, "disarm": 1}
        assert (await keeper.store.list(""))[0] == before
        assert await keeper.store.transaction({"networks/b": b"1"})
        found = await keeper.etcd.status(0)
        assert (found.alarms, found.members[0].fill < 0.2) == ((), True)
        assert keeper.told[-1] == "the store takes writes again"
        assert keeper.told.count("the store takes writes again") == 1
        assert not keeper.replica.contact.full


async def test_of_two_agents_one_frees_a_full_store(three: Members, tmp_path: Path) -> None:
    """Nothing can be put, so compaction is the lock: one agent does it all, one member at a time, the leader last."""
    keepers = [Keeper(three, tmp_path, name, "all", PATIENT) for name in ("h1", "h2")]
    async with keeping(*keepers):
        await fill(keepers[0].store)
        await asyncio.gather(*(keeper.step() for keeper in keepers))
        (busy,) = [keeper for keeper in keepers if keeper.counts]
        assert busy.counts == {"compact": 1, "defragment": 3, "disarm": busy.counts["disarm"]}
        _one_after_the_other(busy.done)
        for keeper in keepers:
            await keeper.step()
            assert await keeper.store.transaction({f"hosts/{id(keeper)}": b"1"})
            assert not keeper.upkeep.problem


def _one_after_the_other(done: list[str]) -> None:
    """See that three members were defragmented one at a time, the leader last."""
    members = [what for what in done if not what.startswith("compact")]
    assert [what.split()[0] for what in members] == ["follower", "end", "follower", "end", "leader", "end"], done
    assert all(begun.split()[1] == end.split()[1] for begun, end in zip(members[::2], members[1::2], strict=True))


async def test_the_next_agent_frees_a_full_store_if_the_first_one_ended(one: Members, tmp_path: Path) -> None:
    """The history is compacted already, by one that did no more: another goes on after a while."""
    keeper = Keeper(one, tmp_path, "h1", "all", PATIENT)
    async with keeping(keeper):
        await fill(keeper.store)
        head, _ = await keeper.etcd.head()
        one.control("compact", str(head))
        await keeper.step()
        assert keeper.counts == Counter()

        async def freed() -> bool:
            await keeper.step()
            return not keeper.replica.contact.full

        await awaited(freed, "the other agent goes on")
        assert keeper.counts == {"defragment": 1, "disarm": 1}
        assert await keeper.store.transaction({"hosts/x": b"1"})


async def test_an_etcd_that_somebody_else_compacts_is_left_alone_when_it_is_full_too(
    one: Members, tmp_path: Path
) -> None:
    """Its history may be another program's; an agent that may do everything frees it all the same."""
    keeper = Keeper(one, tmp_path, "h1", "compact", PATIENT)
    async with keeping(keeper):
        turn = records.encode(Turn("h2", 1.0, OTHER), b"", keeper.replica.settings.writes)
        await keeper.store.transaction({KEY: turn})
        await eventually(lambda: keeper.upkeep.last.compactor == OTHER, "the record")
        await fill(keeper.store)
        for _ in range(3):
            await keeper.step()
        assert keeper.counts == {}
        keeper.upkeep.allowed = "all"
        await keeper.step()
        assert keeper.counts == {"compact": 1, "defragment": 1, "disarm": 1}


async def test_somebody_else_s_etcd_is_compacted_and_freed_by_its_operator(one: Members, tmp_path: Path) -> None:
    """The agent compacts and lifts nothing; after the two commands of the page writes work, and it says so."""
    keeper = Keeper(one, tmp_path, "h1", "compact", PATIENT)
    async with keeping(keeper):
        await fill(keeper.store)
        for _ in range(3):
            await keeper.step()
        assert keeper.counts == {"compact": 1}
        with pytest.raises(Full):
            await keeper.store.transaction({"hosts/x": b"1"})
        one.control("defrag")
        one.control("alarm", "disarm")
        await keeper.step()
        assert keeper.told[-1] == "the store takes writes again"
        assert keeper.told.count("the store takes writes again") == 1
        assert await keeper.store.transaction({"hosts/x": b"1"})


async def test_records_that_do_not_fit_the_quota_leave_the_alarm(one: Members, tmp_path: Path) -> None:
    """No compaction helps where the records themselves take the quota: the agent says what does, and lifts nothing."""
    keeper = Keeper(one, tmp_path, "h1", "all", PATIENT)
    async with keeping(keeper):
        with pytest.raises(Full):
            await write(keeper.store, 2000, 20000, 20, fresh=True)
        await keeper.step()
        assert "do not fit a quota of 16.0 MiB" in keeper.upkeep.problem
        assert "--quota-backend-bytes" in keeper.upkeep.fix
        assert (await keeper.etcd.status(0)).full


async def test_members_with_unused_space_are_defragmented_leader_last(three: Members, tmp_path: Path) -> None:
    """Half of the files is unused after a compaction: the agent whose turn it is defragments them, one at a time."""
    keeper = Keeper(three, tmp_path, "h1", "all")
    async with keeping(keeper):
        await half_unused(keeper, three)
        await keeper.turn()
        _one_after_the_other(keeper.done)
        found = await keeper.etcd.status(0)
        assert all(one_.fill < 0.2 for one_ in found.members)
        assert sum("was defragmented" in words for words in keeper.told) == 3


async def test_no_member_is_defragmented_while_another_is_away(three: Members, tmp_path: Path) -> None:
    """Two of three are the quorum: none of them may be held up for a file that could be smaller."""
    keeper = Keeper(three, tmp_path, "h1", "all")
    async with keeping(keeper):
        await half_unused(keeper, three)
        three.members[2].stop()

        async def known() -> bool:
            with contextlib.suppress(Unavailable):  # the other two elect a leader first, if it was this one
                await keeper.upkeep.asked()
            return [one_.name for one_ in keeper.upkeep.etcd.members if one_.problem] == ["m2"]

        await awaited(known, "the member that is away")
        await keeper.turn()
        assert keeper.counts["defragment"] == 0


async def test_a_user_without_role_root_is_told_what_defragmenting_needs(one: Members, tmp_path: Path) -> None:
    """Compaction needs no right of its own; defragmenting does, and the problem says which."""
    url = f"/c{users(one, tmp_path)}"
    keeper = Keeper(one, tmp_path, "h1", "all", PATIENT, url)
    async with keeping(keeper):
        await fill(keeper.store)
        await keeper.step()
        assert keeper.counts == {"compact": 1}
        assert "only role root may defragment it" in keeper.upkeep.problem
        assert "grant-role" in keeper.upkeep.fix
        one.control("user", "grant-role", "agent", "root")

        async def freed() -> bool:
            await keeper.step()
            return not keeper.replica.contact.full

        await awaited(freed, "the next try")
        assert not keeper.upkeep.problem


async def test_an_agent_defragments_by_connections_of_root_if_it_has_some(one: Members, tmp_path: Path) -> None:
    """A voter of linkspan's own etcd: its own user is no root. Agents that leave it to voters do nothing meanwhile."""
    url = f"/c{users(one, tmp_path)}"
    (tmp_path / "root").write_text("secret of root\n")
    (tmp_path / "root").chmod(0o600)

    @contextlib.asynccontextmanager
    async def root() -> AsyncIterator[Gateway]:
        store = EtcdStore(one.url("/c", f"?user=root&password-file={tmp_path}/root"))
        try:
            yield store.gateway
        finally:
            await store.close()

    client = Keeper(one, tmp_path, "h2", "all", url=url, acts=False)
    voter = Keeper(one, tmp_path, "h1", "all", url=url, root=root)
    async with keeping(client, voter):
        await write(client.store, 2000)
        for _ in range(3):
            await client.step()
        assert client.upkeep.last == Turn()
        await fill(client.store)
        for _ in range(3):
            await client.step()
        assert client.counts == {}
        await voter.step()
        assert voter.counts == {"compact": 1, "defragment": 1, "disarm": 1}
        assert not voter.upkeep.problem


async def test_what_members_are_is_told(three: Members, tmp_path: Path) -> None:
    """Names, versions, who leads and what is full; one that is away says why, and no listing fails by it."""
    keeper = Keeper(three, tmp_path, "h1", "none")
    async with keeping(keeper):
        found = await keeper.upkeep.asked()
        assert [one_.name for one_ in found.members] == ["m0", "m1", "m2"]
        assert sum(one_.leader for one_ in found.members) == 1
        assert {one_.version for one_ in found.members} == {found.members[0].version}
        assert all(one_.led and one_.quota == QUOTA and 0 < one_.in_use <= one_.size for one_ in found.members)
        three.members[1].stop()
        found = await keeper.upkeep.asked()
        (away,) = [one_ for one_ in found.members if one_.problem]
        assert (away.name, away.version) == ("m1", "")
        assert "connection refused" in away.problem
        three.members[2].stop()

        async def leaderless() -> bool:
            return not any(one_.led for one_ in (await keeper.upkeep.asked()).answering)

        await awaited(leaderless, "the last member knows of no leader")


async def test_the_task_does_all_of_this_by_itself(one: Members, tmp_path: Path) -> None:
    """Nobody calls anything: a store that fills again and again is freed each time, while a host writes on."""
    keeper = Keeper(one, tmp_path, "h1", "all")
    async with keeping(keeper):
        keeper.upkeep.start()
        for _ in range(3):
            with contextlib.suppress(Full):
                await write(keeper.store, 1200, 20000, 20)

            async def taken() -> bool:
                with contextlib.suppress(Full):
                    return bool(await keeper.store.transaction({"hosts/x": os.urandom(10)}))
                return False

            await awaited(taken, "writes again", 60)
        assert keeper.counts["compact"]
        assert NOSPACE not in str((await keeper.etcd.status(0)).alarms)


async def test_a_year_s_changes_leave_the_file_as_large_as_their_first_tenth(one: Members, tmp_path: Path) -> None:
    """With a turn for every so many changes the file stops growing; without, it would have been full many times."""
    keeper = Keeper(one, tmp_path, "h1")
    async with keeping(keeper):
        sizes = []
        for _ in range(10):
            for _ in range(5):
                await write(keeper.store, 3000, 500, 100)
                await keeper.turn()
            sizes.append((await size(keeper)).size)
        assert abs(sizes[-1] / sizes[0] - 1) <= 0.05, sizes
        assert not keeper.replica.contact.full
