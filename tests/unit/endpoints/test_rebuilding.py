"""Start of an agent with a journal, the kernel's objects and the store's records, whichever of them is lost."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from linkspan.backends import backend
from linkspan.cluster.endpoint_records import key_of, record_of
from linkspan.core.errors import NotFound
from linkspan.core.model import Endpoint, Network, host_ifname
from linkspan.core.ports import PortTable
from linkspan.core.states.host import HOST, State
from linkspan.endpoints.journal import Journal
from linkspan.endpoints.multihoming import container_states
from linkspan.endpoints.orphans import SOURCE, Orphans
from linkspan.endpoints.recovery import Recovery
from linkspan.endpoints.registry import Registry
from linkspan.kernel.io.namespaces import Namespaces
from linkspan.kernel.io.sockets import Sockets
from linkspan.store.memory import Memory
from support.memory_machine import MemoryMachine, worker_of
from support.polling import eventually
from support.records.listeners import NoListener
from support.records.one_host import NETNS, endpoint, network
from support.records.replicas import Member

DEMO = network("demo", "10.1.0.0/24", routed=True)
COOKIE = endpoint(DEMO, "10.1.0.5").netns_cookie


class Spaces(Namespaces):
    """Namespaces of which those in ``alive`` are there, each by its inode and cookie."""

    def __init__(self, alive: set[tuple[int, int]]) -> None:
        super().__init__()
        self.alive = alive

    def lookup(self, number: int, path: str = "", cookie: int = 0) -> tuple[int, str]:
        """Open the namespace with this inode and cookie."""
        if (number, cookie) not in self.alive:
            raise NotFound("it is gone")
        return os.open("/dev/null", os.O_RDONLY), path

    def ways(self, number: int) -> Iterator[str]:
        """Yield the one way."""
        yield "/run/netns/c1"


class Kernel(MemoryMachine):
    """A machine that has some states, and the namespace of container c1."""

    def __init__(self, states: Iterable[State]) -> None:
        super().__init__(states)
        self.living = {(NETNS, COOKIE)}
        self.namespaces = Spaces(self.living)
        self.sockets = Sockets(self.namespaces)
        self.entered: list[tuple[int, int]] = []

    def enter(self, endpoint: Endpoint) -> None:
        """Note the namespace."""
        self.entered.append(endpoint.namespace)

    def reached(self, endpoint: Endpoint) -> Endpoint:
        """Return an endpoint with the cookie of the namespace that its pair leads into, where it has a pair."""
        if not any(getattr(state, "name", "") == endpoint.host_ifname for state in self.driver.states.values()):
            return endpoint
        cookie = dict(self.living)[endpoint.netns]
        return msgspec.structs.replace(endpoint, netns_path="/run/netns/c1", netns_cookie=cookie)

    def alive(self, endpoint: Endpoint) -> bool:
        """Return whether an endpoint's namespace is there."""
        return (endpoint if endpoint.netns_cookie else self.reached(endpoint)).namespace in self.living

    def difference(self) -> tuple[State, ...]:
        """Return what the first resync would remove."""
        return self.reconciler.difference()[0].delete


class Start:
    """An agent's start on a host of one network, with this kernel, these records, and what is in the journal's file."""

    def __init__(self, folder: Path, kernel: Kernel, records: Iterable[Endpoint] = ()) -> None:
        self.kernel = kernel
        self.memory = Memory()
        self.member = Member(self.memory, folder, "h1")
        self.records = list(records)
        folder.mkdir(exist_ok=True)
        self.journal = Journal(folder / "journal.db", boot_id="b1")
        self.written: dict[str, bytes] = {}
        """Records of the store besides the network's and the endpoints'."""

    async def run(self, listed: bool = True) -> None:
        """Do as an agent does."""
        store = self.member.store
        await store.transaction({"networks/demo": msgspec.json.encode(DEMO), **self.written})
        if listed:
            await self.put_records()
        await self.member.replica.start()
        self.member.networks.refresh()
        member = self.member
        member.blocks.refresh()
        worker, ports = worker_of(self.kernel), PortTable(NoListener())
        here = (worker, self.journal, member.networks)
        self.registry = Registry(*here, member.allocator, ports, member.event_log, "h1", {})
        self.orphans = Orphans(*here, member.blocks, member.readiness, member.event_log, grace=600)
        self.recovery = Recovery(self.registry, member.blocks, member.endpoint_records, self.orphans)
        self.inside = await self.recovery.run(listed)
        await self.orphans.spare()

    async def put_records(self) -> None:
        """Have the store tell of the endpoints."""
        found = {key_of("h1", one.identity): msgspec.json.encode(record_of(one)) for one in self.records}
        if found:
            await self.member.store.transaction(found)

    async def stop(self) -> None:
        """End."""
        await self.member.replica.stop()
        self.journal.close()
        self.kernel.namespaces.close()

    @property
    def endpoints(self) -> dict[tuple[str, str], Endpoint]:
        """Return the endpoints in place."""
        return self.registry.endpoints


def states(of: Network, *endpoints: Endpoint) -> list[State]:
    """Return all states of one container's endpoints."""
    own = [state for one in endpoints for state in backend(of.backend).endpoint(of, one)]
    return [*own, *container_states([(of, one) for one in endpoints])]


def started(start: Start, check: Callable[[], None], **how: Any) -> None:
    """Run a start, and a check after it."""

    async def work() -> None:
        await start.run(**how)
        try:
            check()
        finally:
            await start.stop()

    asyncio.run(work())


@pytest.mark.parametrize("known", ["journal", "store", "kernel"])
def test_one_of_three_is_enough(tmp_path: Path, known: str) -> None:
    """The endpoint is unchanged, its states are desired, nothing would be removed, and its address is reserved."""
    made = endpoint(DEMO, "10.1.0.5")
    kernel = Kernel(states(DEMO, made))
    start = Start(tmp_path, kernel, [made] if known == "store" else [])
    if known == "journal":
        start.journal.begin(made)
        start.journal.attached(made)

    def check() -> None:
        assert start.endpoints == {made.identity: made}
        assert start.inside == {NETNS}
        assert start.kernel.difference() == ()
        assert [row.endpoint for row in start.journal.rows()] == [made]
        assert start.recovery.rebuilt == (known != "journal")
        assert start.orphans.told() == []
        assert start.member.blocks.free("demo") == 252

    started(start, check)


def test_two_interfaces_of_one_container_are_rebuilt_together(tmp_path: Path) -> None:
    """Rules, tables and ports follow from both, and are what they were."""
    first = endpoint(DEMO, "10.1.0.5")
    second = msgspec.structs.replace(
        endpoint(DEMO, "10.1.0.6"), ifname="eth1", host_ifname=host_ifname(True, "c1", "eth1"), metric=1
    )
    start = Start(tmp_path, Kernel(states(DEMO, first, second)))

    def check() -> None:
        assert {e.identity: e.metric for e in start.endpoints.values()} == {("c1", "eth0"): 0, ("c1", "eth1"): 1}
        wanted = {state.key: state for state in states(DEMO, first, second)}
        assert start.kernel.reconciler.desired.states() == wanted

    started(start, check)


def test_an_id_that_comes_with_the_store_is_taken_over(tmp_path: Path) -> None:
    """Known by its pair's name at first; nothing changes in the kernel, and the journal has one row."""
    made = endpoint(DEMO, "10.1.0.5", id_="c0ffee")
    start = Start(tmp_path, Kernel(states(DEMO, made)), [made])

    async def work() -> None:
        await start.run(listed=False)
        assert start.endpoints.keys() == {(made.host_ifname, "eth0")}
        await start.put_records()
        await asyncio.sleep(0)
        await eventually(start.member.endpoint_records.own, "the host's own records are read", 5)
        await start.recovery.learn()
        assert start.endpoints == {made.identity: made}
        assert [row.endpoint.id for row in start.journal.rows()] == ["c0ffee"]
        assert start.kernel.difference() == ()
        await start.stop()

    asyncio.run(work())


def test_what_nobody_knows_stays_with_all_that_it_needs_until_it_is_removed(tmp_path: Path) -> None:
    """The pair without rules of its own is an orphan: everything stays, and goes with the last orphan."""
    made = endpoint(DEMO, "10.1.0.5")
    kernel = Kernel([state for state in states(DEMO, made) if type(state).__name__ != "NftElement"])
    start = Start(tmp_path, kernel)

    async def work() -> None:
        await start.run()
        assert start.endpoints == {}
        (told,) = start.orphans.told()
        assert told["link"] == made.host_ifname
        assert start.kernel.difference() == ()
        assert start.kernel.reconciler.desired.sources()[SOURCE]
        await start.orphans.remove()
        assert [s for s in start.kernel.driver.states.values() if getattr(s, "netns", HOST) == HOST] == []
        assert start.orphans.told() == []
        await start.stop()

    asyncio.run(work())


@pytest.mark.parametrize("phase", ["attaching", "detaching"])
@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "unrecorded"])
def test_what_an_agent_was_about_to_remove_is_gone_however_many_starts_that_takes(
    tmp_path: Path, phase: str, recorded: bool
) -> None:
    """Its row says so until the first resync has removed it. It is no orphan, and nobody rebuilds it."""
    made = endpoint(DEMO, "10.1.0.5")
    kernel = Kernel(states(DEMO, made))

    def begun() -> Start:
        return Start(tmp_path, Kernel(kernel.driver.states.values()), [made] if recorded else [])

    first = begun()
    first.journal.begin(made)
    if phase == "detaching":
        first.journal.attached(made)
        first.journal.detaching(made.identity)

    def ends_too_early(start: Start) -> None:
        assert start.endpoints == {}
        assert start.orphans.told() == []
        assert start.kernel.difference()

    def comes_up(start: Start) -> None:
        ends_too_early(start)
        start.kernel.reconciler.resync()
        start.recovery.finish()
        assert start.kernel.difference() == ()
        assert start.journal.rows() == []

    second, third = begun(), begun()
    started(first, lambda: ends_too_early(first))
    started(second, lambda: ends_too_early(second))
    started(third, lambda: comes_up(third))


FAR = network("far", "10.2.0.0/24", routed=True)


def test_a_pair_of_a_network_that_nobody_knows_is_what_its_row_says_once_it_is_known(tmp_path: Path) -> None:
    """The network is there again: the endpoint has its id and its name, and no other row is left."""
    made = msgspec.structs.replace(endpoint(FAR, "10.2.0.5"), name="web", labels={"tier": "back"})
    start = Start(tmp_path, Kernel(states(FAR, made)))
    start.journal.begin(made)
    start.journal.attached(made)

    async def work() -> None:
        await start.run()
        assert start.endpoints == {}
        assert [one["link"] for one in start.orphans.told()] == [made.host_ifname]
        assert start.kernel.difference() == ()
        await start.recovery.learn()
        assert start.endpoints == {}
        await start.member.replica.write({"networks/far": msgspec.json.encode(FAR)})
        start.member.networks.refresh()
        start.member.blocks.refresh()
        await start.recovery.learn()
        assert start.orphans.told() == []
        (found,) = start.endpoints.values()
        assert (found.identity, found.name, found.labels) == (made.identity, "web", {"tier": "back"})
        assert [row.endpoint.identity for row in start.journal.rows()] == [made.identity]
        await start.stop()

    asyncio.run(work())


def test_an_orphan_that_is_removed_leaves_no_row(tmp_path: Path) -> None:
    """Nobody knew its network in time: the same container can be attached again."""
    made = endpoint(FAR, "10.2.0.5")
    start = Start(tmp_path, Kernel(states(FAR, made)))
    start.journal.begin(made)
    start.journal.attached(made)

    async def work() -> None:
        await start.run()
        assert start.journal.rows()
        await start.orphans.remove()
        assert start.journal.rows() == []
        assert start.kernel.difference() == ()
        start.journal.begin(made)
        await start.stop()

    asyncio.run(work())


def test_of_two_rows_with_one_inode_the_one_whose_cookie_the_namespace_has_stands(tmp_path: Path) -> None:
    """Whichever the journal has first: nothing of the other is put into a namespace that is not its container's."""
    living = endpoint(DEMO, "10.1.0.5", id_="c2")
    dead = msgspec.structs.replace(endpoint(DEMO, "10.1.0.6"), netns_cookie=COOKIE - 1, metric=1)
    for number, rows in enumerate(((dead, living), (living, dead))):
        start = Start(tmp_path / str(number), Kernel(states(DEMO, living)))
        for row in rows:
            start.journal.begin(row)
            start.journal.attached(row)

        def check(start: Start = start) -> None:
            assert start.endpoints == {living.identity: living}
            assert start.kernel.reconciler.desired.states() == {state.key: state for state in states(DEMO, living)}
            assert [row.endpoint for row in start.journal.rows()] == [living]

        started(start, check)


@pytest.mark.parametrize("paired", [True, False], ids=["pair", "no-pair"])
def test_a_cookie_that_an_older_release_did_not_write_down_is_learnt_by_the_pair_alone(
    tmp_path: Path, paired: bool
) -> None:
    """If the pair is gone, the namespace with the inode may be another container's: the endpoint is gone."""
    made = endpoint(DEMO, "10.1.0.5")
    start = Start(tmp_path, Kernel(states(DEMO, made) if paired else []))
    old = msgspec.structs.replace(made, netns_cookie=0)
    start.journal.begin(old)
    start.journal.attached(old)

    def check() -> None:
        assert start.endpoints == ({made.identity: made} if paired else {})
        assert [row.endpoint for row in start.journal.rows()] == list(start.endpoints.values())

    started(start, check)


def test_a_namespace_where_the_last_agent_ended_halfway_is_not_another_s_with_its_inode(tmp_path: Path) -> None:
    """The first resync checks the namespace of the existing row, known by its cookie."""
    living = endpoint(DEMO, "10.1.0.5", id_="c2")
    dead = msgspec.structs.replace(endpoint(DEMO, "10.1.0.6"), netns_cookie=COOKIE - 1)
    start = Start(tmp_path, Kernel(states(DEMO, living)))
    start.journal.begin(living)
    start.journal.attached(living)
    start.journal.begin(dead)

    def check() -> None:
        assert start.inside == {NETNS}
        assert start.kernel.entered[-1] == living.namespace

    started(start, check)


DAMAGED, OVERLAPPING = b"{", msgspec.json.encode(network("far", "10.1.0.0/23", routed=True))


@pytest.mark.parametrize("record", [DAMAGED, OVERLAPPING], ids=["damaged", "overlapping"])
def test_a_record_that_cannot_be_used_ends_no_container(tmp_path: Path, record: bytes) -> None:
    """Nobody deleted the network: the container continues until its network's record is repaired, unchanged."""
    made = endpoint(FAR, "10.2.0.5")
    start = Start(tmp_path, Kernel(states(FAR, made)))
    start.written["networks/far"] = record
    start.journal.begin(made)
    start.journal.attached(made)

    async def work() -> None:
        await start.run()
        assert [one["link"] for one in start.orphans.told()] == [made.host_ifname]
        assert start.kernel.difference() == ()
        await start.member.replica.write({"networks/far": msgspec.json.encode(FAR)})
        start.member.networks.refresh()
        start.member.blocks.refresh()
        await start.recovery.learn()
        assert start.endpoints.keys() == {made.identity}
        await start.stop()

    asyncio.run(work())


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ({"networks/far": DAMAGED}, "the record of its network cannot be used: Input data was truncated"),
        ({"networks/far": OVERLAPPING}, "its network is not in force on this host: pool 10.1.0.0/23"),
        ({"gone/networks/far": b'{"by": "h2", "at": 1}'}, "its network was deleted"),
        ({}, "its network has no record"),
    ],
    ids=["damaged", "overlapping", "deleted", "unknown"],
)
def test_a_container_that_ends_says_what_became_of_its_network(
    tmp_path: Path, written: dict[str, bytes], why: str
) -> None:
    """It has no pair any more, so nothing is kept; the event says deleted only after a deletion."""
    made = endpoint(FAR, "10.2.0.5")
    start = Start(tmp_path, Kernel([]))
    start.written.update(written)
    start.journal.begin(made)
    start.journal.attached(made)

    def check() -> None:
        assert start.journal.rows() == []
        (told,) = start.member.event_log.kept("recover")
        assert why in told.what

    started(start, check)
