"""Hosts that say by a real etcd that they live: what that costs it, and how soon a death is known to all."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from linkspan.core.errors import Unavailable
from linkspan.store.etcd import EtcdStore
from linkspan.store.etcd_gateway import CONNECTIONS
from support.polling import SHARED, awaited, eventually
from support.records.living import Living
from support.store.etcd_members import Member, Members, run

pytestmark = pytest.mark.root

HOSTS = ("h1", "h2", "h3")
STEADY, ELECTION = 5.0 * SHARED, 12.0 * SHARED
"""Seconds in which a death is to be known everywhere: while etcd has a leader, and where that goes as well."""
HERD = 50
"""Hosts that all react to one event."""
REQUESTS = 5
"""Of one host to an etcd that is back: its lease's stream, two questions whether it is the same etcd, and the watch's
stream; and one to spare."""
TIMES = ("--heartbeat-interval", "100", "--election-timeout", "1000")
Host = Living[EtcdStore]


@pytest.fixture
def one() -> Iterator[Members]:
    """Start a member with etcd's own times, and be in its namespace."""
    with Members.started(1, TIMES) as members, members.inside():
        yield members


@pytest.fixture
def three() -> Iterator[Members]:
    """Start three members with etcd's own times, and be in their namespace."""
    with Members.started(3, TIMES) as members, members.inside():
        yield members


@contextlib.asynccontextmanager
async def hosts(members: Members, folder: Path, names: tuple[str, ...] = HOSTS) -> AsyncIterator[list[Host]]:
    """Begin hosts, each with another member as its first."""
    found = []
    for number, name in enumerate(names):
        order = [member.client for member in members.members[number:] + members.members[:number]]
        found.append(Living(EtcdStore(f"etcd://{','.join(order)}/c"), folder, name))
    try:
        for one in found:
            await one.start()
        await eventually(lambda: all_live(found, names), "all live")
        yield found
    finally:
        for one in found:
            await one.stop()


def all_live(among: list[Host], names: tuple[str, ...] = HOSTS) -> bool:
    """Tell whether each of these hosts takes all for living."""
    return all(one.lives(name) is True for one in among for name in names)


async def known(among: list[Host], dead: str, begun: float) -> float:
    """Wait until all of these know that a host is dead; return after how many seconds the last one did."""
    await eventually(lambda: all(one.lives(dead) is False for one in among), f"all know of {dead}", 60)
    return time.monotonic() - begun


async def test_hosts_that_live_cost_etcd_no_entry_and_no_event(three: Members, tmp_path: Path) -> None:
    """In twenty seconds neither its log nor its revision grows, and no host is told anything."""
    async with hosts(three, tmp_path) as all_:
        await asyncio.sleep(1)
        told = [len(one.told) for one in all_]
        entries, revision = three.entries(), (await all_[0].store.list(""))[1]
        end = time.monotonic() + 20
        while time.monotonic() < end:
            assert all_live(all_)
            await asyncio.sleep(0.1)
        assert (three.entries(), (await all_[0].store.list(""))[1]) == (entries, revision)
        assert [len(one.told) for one in all_] == told
        assert all(one.replica.contact.silence() < 5 for one in all_)


async def test_a_death_is_known_everywhere_in_time(three: Members, tmp_path: Path) -> None:
    """Whenever it comes between two keepalives, and though a follower hangs."""
    async with hosts(three, tmp_path, (*HOSTS, "d1", "d2", "d3")) as all_:
        living, dying = all_[:3], all_[3:]
        took = []
        for number, one in enumerate(dying):
            await asyncio.sleep(0.3 * number)
            hung = follower(three) if number == 2 else None
            if hung is not None:
                hung.hang(True)
            begun = time.monotonic()
            await one.die()
            took.append(await known(living, one.name, begun))
            if hung is not None:
                hung.hang(False)
        assert all_live(living)
        assert max(took) <= STEADY, took


def leader(members: Members) -> Member:
    """Return the member that leads."""
    (found,) = (member for member in members.members if members.leads(member))
    return found


def follower(members: Members) -> Member:
    """Return a member that does not lead."""
    return next(member for member in members.members if not members.leads(member))


async def test_a_death_is_known_though_the_leader_dies_with_the_host(three: Members, tmp_path: Path) -> None:
    """The others live all the time, for each of them, too."""
    async with hosts(three, tmp_path, (*HOSTS, "d1")) as all_:
        living = all_[:3]
        first = leader(three)
        begun = time.monotonic()
        first.stop()
        await all_[3].die()
        knowing = asyncio.create_task(known(living, "d1", begun))
        while not knowing.done():
            assert all_never_missed(living)
            await asyncio.sleep(0.05)
        assert await knowing <= ELECTION
        first.start()
        three.ready()
        assert all_live(living)


def all_never_missed(living: list[Host]) -> bool:
    """Tell whether none of these hosts takes another of them for dead."""
    return all(one.lives(other.name) is not False for one in living for other in living)


async def test_a_leader_that_freezes_and_goes_on_makes_nobody_dead(three: Members, tmp_path: Path) -> None:
    """It had been away for longer than leases live, and another member leads by then."""
    async with hosts(three, tmp_path) as all_:
        for _ in range(2):
            frozen = leader(three)
            frozen.hang(True)
            end = time.monotonic() + 8
            while time.monotonic() < end:
                assert all_never_missed(all_)
                await asyncio.sleep(0.05)
            frozen.hang(False)
            end = time.monotonic() + 5
            while time.monotonic() < end:
                assert all_never_missed(all_)
                await asyncio.sleep(0.05)
            three.ready()
            await eventually(lambda: all_live(all_), "all live")


async def test_nobody_is_dead_after_a_time_without_etcd(three: Members, tmp_path: Path) -> None:
    """Longer than leases live: its members give each its whole time again, and all go on by themselves."""
    async with hosts(three, tmp_path) as all_:
        for member in three.members:
            member.stop()
        await eventually(lambda: all(one.replica.problem for one in all_), "all say that it is away", 20 * SHARED)
        await eventually(lambda: all(one.lives("h9") is None for one in all_), "nobody can tell", 20 * SHARED)
        for member in three.members:
            member.start()
        three.ready()
        end = time.monotonic() + 8
        while time.monotonic() < end:
            assert all_never_missed(all_)
            await asyncio.sleep(0.05)
        assert all_live(all_)
        assert not any(one.replica.problem for one in all_)


async def requests(members: Members) -> int:
    """Return how many requests the first member has had since its start, -1 if it does not answer yet."""

    def read() -> int:
        try:
            url = f"{members.members[0].control}/metrics"
            with urllib.request.urlopen(url, timeout=1) as answer:  # noqa: S310 - an http one
                text = answer.read().decode()
        except OSError:
            return -1
        counts = re.findall(r"^grpc_server_started_total\{.*\} (\S+)$", text, re.MULTILINE)
        assert counts, text[:500]
        return int(sum(map(float, counts)))

    return await asyncio.to_thread(read)


async def test_hosts_do_not_overrun_an_etcd_that_is_back(one: Members, tmp_path: Path) -> None:
    """Each asks it a few things once, whatever it has seen before; nobody is dead, and the watches go on."""
    names = tuple(f"h{number}" for number in range(HERD))
    async with hosts(one, tmp_path, names) as all_:
        one.members[0].stop()
        await eventually(lambda: all(host.lives("stranger") is None for host in all_), "nobody can tell", 30 * SHARED)
        one.members[0].start()
        await awaited(lambda: answering(one), "etcd is back", 30 * SHARED)
        await asyncio.sleep(1)  # which is the second that counts
        assert await requests(one) <= REQUESTS * HERD
        await eventually(lambda: all_live(all_, names), "all live", 20 * SHARED)
        assert await requests(one) <= REQUESTS * HERD
        await all_[0].store.transaction({"settings/a": b"1"})
        await eventually(lambda: all("settings/a" in host.replica.records for host in all_), "all watch", 10 * SHARED)


async def answering(members: Members) -> bool:
    """Tell whether the first member answers."""
    return await requests(members) >= 0


async def test_a_host_has_few_connections_however_much_it_asks(one: Members, tmp_path: Path) -> None:
    """One for the watch, one for the lease, and a few for all calls together."""
    async with hosts(one, tmp_path, ("h1",)) as (host,):
        await asyncio.gather(*(host.store.get(f"hosts/h{number}") for number in range(200)))
        lines = run("ss", "-Htnp", "state", "established", "dport = :2379").splitlines()
        assert 2 < len([line for line in lines if f",pid={os.getpid()}," in line]) <= CONNECTIONS + 2


async def test_a_full_etcd_makes_nobody_dead_and_all_go_on_once_there_is_room(tmp_path: Path) -> None:
    """A host whose lease ended is unknown to all, a new one's too; the operator's usual steps are enough."""
    with Members.started(1, ("--quota-backend-bytes", "1000000")) as members, members.inside():
        async with hosts(members, tmp_path) as all_:
            first, other, third = all_
            with pytest.raises(Unavailable, match="database space exceeded"):
                await filled(other.store)
            members.control("lease", "revoke", f"{int(first.store._standing._id):x}")
            await eventually(lambda: other.lives("h1") is None and third.lives("h1") is None, "nobody can tell", 20)
            late = Living(EtcdStore(members.url("/c")), tmp_path, "h4")
            await late.replica.start()
            await eventually(lambda: late.lives("h2"), "the new host knows of h2")
            end = time.monotonic() + 10
            while time.monotonic() < end:
                assert {one.lives("h1") for one in (other, third, late)} == {None}
                assert {one.lives("h2") for one in (third, late)} == {True}
                await asyncio.sleep(0.1)
            assert "database space exceeded" in first.replica.problem
            members.control("del", "/c/full/", "--prefix")
            members.control("compact", str((await other.store.list(""))[1]))
            members.control("defrag")
            members.control("alarm", "disarm")
            await eventually(lambda: all_live([*all_, late]), "all live", 20 * SHARED)
            await eventually(lambda: not first.replica.problem, "h1 says that all is well")
            await late.stop()


async def filled(store: EtcdStore) -> None:
    """Put records until the store has no room; each host has its own."""
    for name in HOSTS:
        await store.transaction({f"hosts/{name}": b'{"id": "%s", "name": "%s"}' % (name.encode(), name.encode())})
    for number in range(100):
        await store.transaction({f"full/{number}": b"x" * 100_000})
