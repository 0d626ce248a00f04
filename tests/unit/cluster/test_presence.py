"""This host's record of liveness: what it costs, how a death is known, and each fault of the head note."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from linkspan.cluster.presence import BEAT, GAP, KEEP, REFUSED, STANDS
from linkspan.core.errors import Conflict, Unavailable
from linkspan.core.model import Host
from linkspan.core.store_contract import LIFE
from linkspan.store import replica
from linkspan.store.absence import ABSENCE, GRACE, ROOM_EVERY
from linkspan.store.contact import STALE
from linkspan.store.memory import Memory, MemoryStore
from linkspan.store.records import GONE
from linkspan.store.replica import AWAY
from support.records.living import Living
from support.virtual_time import clock, in_virtual_time, soon

KNOWN = LIFE + ABSENCE
"""Seconds after the last keepalive when the others of a store that is never late know of a death."""


Agent = Living[MemoryStore]


class World:
    """A store, and the agents that have begun on it."""

    def __init__(self, folder: Path) -> None:
        self.memory = Memory()
        self._folder = folder
        self._agents: list[Agent] = []

    async def agent(self, name: str, instance: str = "", promise: float = 0, *, shared: bool = True) -> Agent:
        """Return one more agent, which has begun."""
        one = self.made(name, instance, promise, shared=shared)
        await one.start()
        return one

    def made(self, name: str, instance: str = "", promise: float = 0, *, shared: bool = True) -> Agent:
        """Return one more agent, which has not begun."""
        folder = self._folder / f"{name}-{len(self._agents)}"
        folder.mkdir()
        one = Living(MemoryStore(self.memory), folder, name, instance, promise, shared=shared)
        self._agents.append(one)
        return one

    async def stop(self) -> None:
        """End all."""
        for one in self._agents:
            await one.stop()

    def record(self, host: str) -> bytes | None:
        """Return a host's record, None without one."""
        return self.memory.entries.get(f"alive/{host}", (None, 0))[0]

    def put_since(self, revision: int) -> set[str]:
        """Return the keys that were changed after a revision."""
        return {key for key, (_, changed) in self.memory.entries.items() if changed > revision}


class Spread:
    """Random pauses of a large cluster: one host lists at once, and all others wait."""

    def __init__(self) -> None:
        self._pauses = iter([0.0])

    def uniform(self, low: float, high: float) -> float:
        """Return the next one; errors are tried again as ever."""
        return high if low else next(self._pauses, 10.0)


def played(folder: Path, work: Callable[[World], Awaitable[None]]) -> None:
    """Run a test's work in a world of its own, in virtual time."""

    async def run() -> None:
        world = World(folder)
        await work(world)
        await world.stop()

    in_virtual_time(run)


def test_a_cluster_in_which_nothing_happens_changes_nothing(tmp_path: Path) -> None:
    """For an hour: no revision, and nothing that a watch tells; all live all the time."""

    async def work(world: World) -> None:
        agents = [await world.agent(name) for name in ("h1", "h2", "h3")]
        await asyncio.sleep(BEAT)
        revision, told = world.memory.revision, [len(one.told) for one in agents]
        for _ in range(3600):
            await asyncio.sleep(1)
            assert all(one.lives(name) for one in agents for name in ("h1", "h2", "h3"))
        assert world.memory.revision == revision
        assert [len(one.told) for one in agents] == told
        assert agents[0].replica.contact.silence() < STALE

    played(tmp_path, work)


def test_a_death_is_known_to_all_and_not_before_its_time(tmp_path: Path) -> None:
    """Whenever between two keepalives it comes; and so is the agent's return."""

    async def work(world: World) -> None:
        one, two, three = [await world.agent(name) for name in ("h1", "h2", "h3")]
        for part in range(5):
            await asyncio.sleep(10 + part * KEEP / 5)
            await one.die()
            took = await soon(lambda: two.lives("h1") is False, "h2 knows", KNOWN + 0.1)
            assert took > KNOWN - KEEP - 0.1
            assert three.lives("h1") is False
            one = await world.agent("h1")
            await soon(lambda: two.lives("h1") and three.lives("h1"), "both know that it is back", 0.1)

    played(tmp_path, work)


def test_a_record_that_somebody_deletes_is_back_before_anybody_acts(tmp_path: Path) -> None:
    """A thawed leader of etcd does that; the others see no change at all, and the owner puts it once."""

    async def work(world: World) -> None:
        one, two = [await world.agent(name) for name in ("h1", "h2")]
        await asyncio.sleep(5)
        revision = world.memory.revision
        await two.store.transaction({}, deletes=["alive/h1"])
        took = await soon(lambda: world.record("h1"), "it is back", 1)
        assert took < ABSENCE / 2
        for _ in range(100):
            assert two.lives("h1") is True
            assert "alive/h1" in two.replica.records
            await asyncio.sleep(0.05)
        assert world.memory.revision == revision + 2
        assert one.lives("h2") is True

    played(tmp_path, work)


def test_a_record_that_is_deleted_before_the_answer_to_its_put_is_put_again(tmp_path: Path) -> None:
    """The watch tells of both at once, before the put returns: the late answer must not bring the record back."""

    async def work(world: World) -> None:
        one, two = [await world.agent(name) for name in ("h1", "h2")]
        await asyncio.sleep(5)
        put = one.store.transaction
        deleted: list[int] = []

        async def late(*args: object, **more: object) -> int:
            revision = await put(*args, **more)  # type: ignore[arg-type]
            if len(deleted) < 3:
                deleted.append(await two.store.transaction({}, deletes=["alive/h1"]))
                await asyncio.sleep(0.1)
            return revision

        one.store.transaction = late  # type: ignore[method-assign]
        await two.store.transaction({}, deletes=["alive/h1"])
        await soon(lambda: len(deleted) == 3 and world.record("h1"), "it is back", 4 * (KEEP + GAP))
        await asyncio.sleep(ABSENCE + 0.1)
        assert (one.lives("h2"), two.lives("h1")) == (True, True)

    played(tmp_path, work)


def test_a_record_that_somebody_else_put_without_a_lease_ends_with_its_host(tmp_path: Path) -> None:
    """A copy of the store's keys, for example: the agent ties the record to its own lease again."""

    async def work(world: World) -> None:
        one, two = [await world.agent(name) for name in ("h1", "h2")]
        await asyncio.sleep(5)
        await two.store.transaction({"alive/h1": b"h1:1:1:boot" + STANDS})
        await asyncio.sleep(BEAT + KEEP)
        revision = world.memory.revision
        await asyncio.sleep(20)
        assert world.memory.revision == revision
        await one.die()
        await soon(lambda: two.lives("h1") is False, "it is dead", KNOWN + 0.1)

    played(tmp_path, work)


def test_a_record_without_an_agent_and_without_a_lease_keeps_nobody_out(tmp_path: Path) -> None:
    """Nobody puts such a record again, so the agent that starts has the host's id for itself."""

    async def work(world: World) -> None:
        two = await world.agent("h2")
        await two.store.transaction({"alive/h1": b"there:1:1" + STANDS})
        one = await world.agent("h1", "here:2:2")
        assert world.record("h1") == b"here:2:2" + STANDS
        assert not one.presence.second

    played(tmp_path, work)


def test_a_record_of_no_host_makes_nobody_write(tmp_path: Path) -> None:
    """Agents of the release before have a host's record: only beside such a one all put theirs again and again."""

    async def work(world: World) -> None:
        one = await world.agent("h1")
        await one.store.transaction({"alive/ghost": b"x"})
        await asyncio.sleep(5)
        revision = world.memory.revision
        await asyncio.sleep(20)
        assert world.memory.revision == revision

    played(tmp_path, work)


def test_whoever_deletes_a_record_again_and_again_is_answered_in_measure(tmp_path: Path) -> None:
    """A few times a second, and nobody takes the host for dead."""

    async def work(world: World) -> None:
        await world.agent("h1")
        two = await world.agent("h2")
        await asyncio.sleep(5)
        revision, deletes, begun = world.memory.revision, 0, clock()
        while clock() < begun + 20:
            if world.record("h1"):
                await two.store.transaction({}, deletes=["alive/h1"])
                deletes += 1
            assert two.lives("h1") is True
            await asyncio.sleep(0.01)
        assert world.memory.revision - revision - deletes <= 20 / GAP + 2

    played(tmp_path, work)


def test_an_agent_that_was_stopped_for_long_puts_its_record_again(tmp_path: Path) -> None:
    """Its lease has ended meanwhile, and the next keepalive says so."""

    async def work(world: World) -> None:
        one, two = [await world.agent(name) for name in ("h1", "h2")]
        await asyncio.sleep(5)
        one.store.lapse()
        await soon(lambda: world.record("h1"), "it is back", ABSENCE / 2)
        assert two.lives("h1") is True
        one.store.cut()  # as a process that does nothing
        await soon(lambda: two.lives("h1") is False, "it is missed", KNOWN + 0.1)
        await asyncio.sleep(60)
        one.store.mend()
        await soon(lambda: two.lives("h1"), "it is back", KEEP + 0.1)

    played(tmp_path, work)


def test_an_agent_that_is_cut_off_says_so_and_nothing_is_left_of_that(tmp_path: Path) -> None:
    """It knows of nobody then; once all is well its problem is over, though nobody but it writes."""

    async def work(world: World) -> None:
        one, two = [await world.agent(name) for name in ("h1", "h2")]
        await asyncio.sleep(5)
        one.store.cut()
        took = await soon(lambda: one.replica.problem, "the problem", AWAY + 2 * KEEP + 0.1)
        assert took >= AWAY
        await soon(lambda: one.lives("h2") is None, "nobody can tell", STALE + 0.1)
        with pytest.raises(Unavailable):
            await one.replica.write({"hosts/h1": b"{}"})
        one.store.mend()
        await soon(lambda: one.lives("h2"), "h2 lives", 2)
        await soon(lambda: not one.replica.problem, "all is well", KEEP + BEAT + 0.1)
        assert two.lives("h1") is True

    played(tmp_path, work)


def test_the_next_agent_of_a_host_takes_the_record_over(tmp_path: Path) -> None:
    """It begins at once, and the end of the old lease takes nothing away."""

    async def work(world: World) -> None:
        one, two = [await world.agent(name) for name in ("h1", "h2")]
        await asyncio.sleep(5)
        await one.die()
        begun = clock()
        await world.agent("h1")
        assert clock() - begun < 0.1
        for _ in range(100):
            await asyncio.sleep(0.1)
            assert two.lives("h1") is True

    played(tmp_path, work)


def test_an_agent_waits_for_the_end_of_another_ones_record(tmp_path: Path) -> None:
    """The host's state folder is a new one, for example: its id is that of an agent that has ended."""

    async def work(world: World) -> None:
        one = await world.agent("h1", "old:1:1")
        await asyncio.sleep(5)
        await one.die()
        begun = clock()
        new = await world.agent("h1", "new:1:2")
        assert LIFE - KEEP <= clock() - begun <= LIFE + ABSENCE + 0.1
        assert world.record("h1") == b"new:1:2" + STANDS
        assert not new.presence.second

    played(tmp_path, work)


def test_an_agent_by_the_id_of_one_that_lives_is_refused(tmp_path: Path) -> None:
    """Its record does not end; the error says where the other one lives."""

    async def work(world: World) -> None:
        one = await world.agent("h1", "there:1:1")
        await asyncio.sleep(5)
        with pytest.raises(Conflict, match="host id h1 is in use by another agent that lives, on there"):
            await world.agent("h1", "here:2:2")
        assert not one.presence.second
        assert world.record("h1") == b"there:1:1" + STANDS

    played(tmp_path, work)


def test_a_copy_of_a_machine_whose_agent_lives_is_refused(tmp_path: Path) -> None:
    """The copy has the same name and the same state folder, device and inode; only its boot is another one."""

    async def work(world: World) -> None:
        one = await world.agent("h1", "web1:64769:1835010:boot1")
        await asyncio.sleep(5)
        with pytest.raises(Conflict, match="host id h1 is in use by another agent that lives, on web1"):
            await world.agent("h1", "web1:64769:1835010:boot2")
        assert not one.presence.second
        await one.die()
        await asyncio.sleep(KNOWN + 0.1)
        begun = clock()
        await world.agent("h1", "web1:64769:1835010:boot3")  # the machine itself has restarted, which took its time
        assert clock() - begun < 0.1

    played(tmp_path, work)


def test_two_agents_by_one_id_say_so_and_do_not_fight(tmp_path: Path) -> None:
    """Machines that were copied may begin at one moment: each puts its record every two seconds, until one ends."""

    async def work(world: World) -> None:
        one, two = world.made("h1", "web1:1:1:boot"), world.made("h1", "web1:1:1:other")
        await one.replica.start()
        await two.replica.start()
        await one.presence.start()
        await two.presence.start()
        await soon(lambda: one.presence.second and two.presence.second, "both know", 2 * BEAT + 1)
        assert "lives, on web1" in one.presence.second
        assert "lives, on web1" in two.presence.second
        revision = world.memory.revision
        for _ in range(200):
            await asyncio.sleep(0.1)
            assert one.presence.second
            assert two.presence.second
        assert world.memory.revision - revision <= 2 * 20 / BEAT + 4
        await two.die()
        await soon(lambda: not one.presence.second, "it is alone again", LIFE + 2 * BEAT + 1)
        assert one.alone == 1
        assert world.record("h1") == b"web1:1:1:boot" + STANDS

    played(tmp_path, work)


@pytest.mark.parametrize("joins", [False, True])
def test_beside_an_agent_of_the_release_before_all_beat(tmp_path: Path, joins: bool) -> None:
    """That one judges by revisions; the zeros are back when it has ended. If it joins, its host's record comes last."""

    async def work(world: World) -> None:
        one, two = [await world.agent(name) for name in ("h1", "h2")]
        old = MemoryStore(world.memory)
        await asyncio.sleep(5)
        if joins:
            await old.transaction({"alive/h9": b"h9:1:1"}, ttl=7)
            await asyncio.sleep(0.02)
        await one.replica.write({"hosts/h9": Host(id="h9", name="h9")})
        for _ in range(10):
            await old.transaction({"alive/h9": b"h9:1:1"}, ttl=7)
            await asyncio.sleep(2)
        before = world.memory.revision
        both = {"alive/h1", "alive/h2"}
        await soon(lambda: world.put_since(before) >= both, "both beat", BEAT + KEEP + 0.1)
        assert one.lives("h9")
        assert two.lives("h9")
        await soon(lambda: one.lives("h9") is False, "the old one is missed", 7 + ABSENCE + 0.1)
        await asyncio.sleep(BEAT)
        revision = world.memory.revision
        await asyncio.sleep(60)
        assert world.memory.revision == revision

    played(tmp_path, work)


@pytest.mark.parametrize("mark", [b"", STANDS])
def test_an_agent_of_the_release_before_is_no_other_agent_after_an_upgrade(tmp_path: Path, mark: bytes) -> None:
    """Its record has the same instance, without the boot and perhaps without the mark; the new one begins at once."""

    async def work(world: World) -> None:
        await MemoryStore(world.memory).transaction({"alive/h1": b"h1:1:1" + mark}, ttl=7)
        begun = clock()
        one = await world.agent("h1")
        assert clock() - begun < 0.1
        await asyncio.sleep(20)
        assert world.record("h1") == b"h1:1:1:boot" + STANDS
        assert not one.presence.second

    played(tmp_path, work)


def test_an_agent_of_the_release_before_that_lives_by_this_id_is_found(tmp_path: Path) -> None:
    """It puts its record again; one whose record nobody puts again has ended."""

    async def work(world: World) -> None:
        old = MemoryStore(world.memory)

        async def beat() -> None:
            while True:
                await old.transaction({"alive/h1": b"there:1:1"}, ttl=7)
                await asyncio.sleep(2)

        beating = asyncio.create_task(beat())
        await asyncio.sleep(5)
        with pytest.raises(Conflict, match="lives, on there"):
            await world.agent("h1")
        beating.cancel()
        begun = clock()
        await world.agent("h1")
        assert clock() - begun <= 7 + ABSENCE + 1

    played(tmp_path, work)


def test_a_host_that_was_removed_says_nothing_more(tmp_path: Path) -> None:
    """Its record ends, and is not put again."""

    async def work(world: World) -> None:
        await world.agent("h1")
        two = await world.agent("h2")
        await two.replica.write({"hosts/h1": b"{}"})
        await two.replica.write({}, deletes=["hosts/h1"])
        assert f"{GONE}hosts/h1" in world.memory.entries
        await soon(lambda: two.lives("h1") is False, "it is silent", KNOWN + 0.1)
        await asyncio.sleep(20)
        assert world.record("h1") is None

    played(tmp_path, work)


def test_a_full_store_makes_nobody_dead_and_all_come_back_by_themselves(tmp_path: Path) -> None:
    """Living hosts stay; one that lost its lease is unknown, asks in measure, and is back before it counts as dead."""

    async def work(world: World) -> None:
        one, two, three = [await world.agent(name) for name in ("h1", "h2", "h3")]
        await asyncio.sleep(5)
        world.memory.full = True
        tries: list[float] = []
        put = one.store.transaction

        async def counted(*args: object, **more: object) -> int:
            tries.append(clock())
            return await put(*args, **more)  # type: ignore[arg-type]

        one.store.transaction = counted  # type: ignore[method-assign]
        one.store.lapse()
        await soon(lambda: two.lives("h1") is None, "nobody can tell", ABSENCE + 0.2)
        late = await world.agent("h4")
        for _ in range(60):
            await asyncio.sleep(1)
            assert (two.lives("h1"), two.lives("h3"), late.lives("h1"), late.lives("h3")) == (None, True, None, True)
        assert len(tries) <= 60 / REFUSED + 2
        assert "full" in one.replica.problem
        world.memory.full = False
        await soon(lambda: two.lives("h1") and late.lives("h1"), "it is back", REFUSED + ROOM_EVERY + 0.2)
        await soon(lambda: not one.replica.problem, "all is well", 1)
        await asyncio.sleep(GRACE)
        await three.die()
        await soon(lambda: two.lives("h3") is False, "a death is known again", KNOWN + 0.1)

    played(tmp_path, work)


def test_an_agent_that_started_on_a_full_store_takes_nobody_for_dead_when_it_has_room(tmp_path: Path) -> None:
    """It never saw the records of hosts that lost theirs before; these put them again within the next seconds."""

    async def work(world: World) -> None:
        one = await world.agent("h1")
        await one.replica.write({"hosts/h1": Host(id="h1", name="h1")})
        await asyncio.sleep(5)
        world.memory.full = True
        one.store.lapse()
        await asyncio.sleep(3)
        late = await world.agent("h4")
        await asyncio.sleep(4)
        world.memory.full = False
        seen = set()
        for _ in range(100):
            await asyncio.sleep(0.1)
            seen.add(late.lives("h1"))
        assert False not in seen
        assert late.lives("h1")

    played(tmp_path, work)


def test_who_lists_a_restored_store_first_takes_nobody_for_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a large cluster the others list later; each learns with its next keepalive that its lease has ended."""

    async def work(world: World) -> None:
        agents = [await world.agent(name) for name in ("h1", "h2", "h3")]
        for one in agents:
            await one.replica.write({f"hosts/{one.name}": Host(id=one.name, name=one.name)})
        await asyncio.sleep(5.1)
        monkeypatch.setattr(replica, "random", Spread())
        lasting = {key: found for key, found in world.memory.entries.items() if not key.startswith("alive/")}
        world.memory.restore(world.memory.revision - 1, lasting)
        for one in agents:
            one.store._standing.clear()
        for _ in range(100):
            await asyncio.sleep(0.1)
            assert all(one.lives(other.name) is not False for one in agents for other in agents)

    played(tmp_path, work)


def test_a_host_that_died_while_the_store_was_full_is_dead_once_there_is_room(tmp_path: Path) -> None:
    """After the time in which those that live come back."""

    async def work(world: World) -> None:
        one, two = [await world.agent(name) for name in ("h1", "h2")]
        await asyncio.sleep(5)
        world.memory.full = True
        await one.die()
        await soon(lambda: two.lives("h1") is None, "nobody can tell", KNOWN + 0.2)
        await asyncio.sleep(60)
        assert two.lives("h1") is None
        world.memory.full = False
        await asyncio.sleep(ROOM_EVERY + 0.5)
        assert two.lives("h1") is None  # it may come back, and was never seen to live meanwhile
        took = await soon(lambda: two.lives("h1") is False, "it is dead", ROOM_EVERY + GRACE + 0.2)
        took += ROOM_EVERY + 0.5
        assert took > GRACE - 0.2

    played(tmp_path, work)


def test_a_silent_host_withdraws_before_others_may_have_what_it_held(tmp_path: Path) -> None:
    """It counts from its last keepalive, and they from the end of its record; its return ends both."""

    async def work(world: World) -> None:
        one, two = [await world.agent(name, promise=60) for name in ("h1", "h2")]
        await two.replica.write({f"hosts/{name}": Host(id=name, name=name) for name in ("h1", "h2")})
        await asyncio.sleep(120)
        assert not one.liveness.withdrawn("h1")
        assert not two.liveness.overdue("h1")
        one.store.cut()
        begun = clock()
        withdrew = await soon(lambda: one.liveness.withdrawn("h1"), "it withdraws", 60.1)
        assert not two.liveness.overdue("h1")
        await soon(lambda: two.liveness.overdue("h1"), "others may have it", 60 + KNOWN + 2 * KEEP)
        assert clock() - begun > withdrew + LIFE - KEEP
        one.store.mend()
        await soon(lambda: not one.liveness.withdrawn("h1") and not two.liveness.overdue("h1"), "it is back", 3)

    played(tmp_path, work)


def test_nobody_withdraws_from_a_full_store_and_nobody_s_silence_counts_there(tmp_path: Path) -> None:
    """It answers, and lets nobody reclaim anything; after that a host has as long as ever to say that it lives."""

    async def work(world: World) -> None:
        one, two = [await world.agent(name, promise=60) for name in ("h1", "h2")]
        await two.replica.write({f"hosts/{name}": Host(id=name, name=name) for name in ("h1", "h2")})
        await asyncio.sleep(5)
        world.memory.full = True
        one.store.lapse()
        late = await world.agent("h3", promise=60)
        for _ in range(200):
            await asyncio.sleep(1)
            assert not one.liveness.withdrawn("h1")
            assert not two.liveness.overdue("h1")
            assert not late.liveness.overdue("h1")
        one.store.cut()  # it does not know that there is room, and may not claim that there is none
        world.memory.full = False
        await soon(lambda: one.liveness.withdrawn("h1"), "it withdraws", 61 + REFUSED)
        assert not two.liveness.overdue("h1")
        await soon(lambda: two.liveness.overdue("h1"), "others may have it", 60)

    played(tmp_path, work)


def test_a_host_that_is_alone_in_its_store_leaves_the_disk_alone(tmp_path: Path) -> None:
    """Nobody asks whether it lives."""

    async def work(world: World) -> None:
        await world.agent("h1", shared=False)
        await asyncio.sleep(60)
        assert world.memory.revision == 0

    played(tmp_path, work)


def test_a_host_alone_whose_store_failed_finds_that_it_is_well_again(tmp_path: Path) -> None:
    """Nobody else writes, so it does."""

    async def work(world: World) -> None:
        one = await world.agent("h1", shared=False)
        one.store.cut()
        with pytest.raises(Unavailable):
            await one.replica.write({"hosts/h1": b"{}"})
        await asyncio.sleep(10)
        assert one.replica.problem
        one.store.mend()
        await soon(lambda: not one.replica.problem, "all is well", BEAT + KEEP + 0.1)

    played(tmp_path, work)
