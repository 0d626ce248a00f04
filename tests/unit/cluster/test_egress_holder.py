"""Who holds an egress address: whatever happens to hosts and store, never two, and soon somebody again."""

from __future__ import annotations

import random
from asyncio import create_task, sleep
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import pytest

from linkspan.cluster import egress
from linkspan.cluster.egress import LATER, Exits, Turn, stale
from linkspan.cluster.networks import Networks
from linkspan.cluster.participation import Participation
from linkspan.core.addresses import Prefix, prefix
from linkspan.core.contracts import LIFE
from linkspan.core.errors import LinkspanError, NotFound, Unavailable
from linkspan.core.event_log import EventLog
from linkspan.core.model import Egress, Network, Underlay
from linkspan.core.states.host import EgressAddress, Key, State
from linkspan.kernel.drivers.egress_addresses import LIFETIME, EgressAddressDriver
from linkspan.kernel.io.link_messages import Link
from linkspan.kernel.io.sockets import Sockets
from linkspan.kernel.probe import gratuitous_arp
from linkspan.kernel.probe.conntrack import Flow
from linkspan.kernel.worker import Worker
from linkspan.store.absence import ABSENCE, STEP
from linkspan.store.memory import Memory, MemoryStore
from support.memory_machine import MemoryDriver, MemoryMachine
from support.records.living import Living
from support.records.replicas import network
from support.virtual_time import clock, in_virtual_time, soon

EXIT = Egress("192.0.2.100")
DEMO = msgspec.structs.replace(network(), egress=(EXIT,))
APPS = network("apps", "10.246.0.0/16", gateways=("10.246.0.1/16",), options={"vni": "201"})
RECORD = "alive/(egress)/4/192.0.2.100"
FAILOVER = 8.0
"""Seconds."""
LATE = 1.0
"""Seconds after the end of its life at which the kernel removes an address at the latest."""


class Addresses(EgressAddressDriver):
    """A kernel's, by the loop's clock; it is as late as a kernel may be."""

    def __init__(self) -> None:
        self._until = {}
        self.ends: dict[str, float] = {}
        self.broken: set[str] = set()
        """The addresses that it refuses."""

    def place(self, address: Prefix) -> str:
        """Return a link that has the subnet."""
        return "eth0"

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Put for the rest of the time, or remove at once."""
        for state in put:
            assert isinstance(state, EgressAddress)
            left = int(self._until.get(state.prefix, 0.0) - clock())
            if left < 1:
                return {state.key: Unavailable("not confirmed")}
            if state.prefix.address in self.broken:
                return {state.key: NotFound("no link")}
            self.ends[state.prefix.address] = clock() + min(left, LIFETIME) + LATE
        for state in delete:
            assert isinstance(state, EgressAddress)
            self.ends.pop(state.prefix.address, None)
        return {}


class Kernel(MemoryDriver):
    """Everything else in memory."""

    def __init__(self, addresses: Addresses) -> None:
        super().__init__()
        self._addresses = addresses

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Leave egress addresses to their driver."""
        return self._addresses.apply(put, delete) or super().apply(put, delete)


class Links(Sockets):
    """Sockets of a host whose link has a MAC."""

    def __init__(self) -> None: ...

    def link(self, netns: int, name: str) -> Link:
        """Return the link."""
        return Link(1, 1, {})


class TakesPart(Participation):
    """Takes part in all networks."""

    def __init__(self) -> None: ...

    def all(self) -> frozenset[str]:
        """Return the networks."""
        return frozenset({"demo", "apps"})


class Host(Living[MemoryStore]):
    """A host with what holds addresses."""

    def __init__(self, store: MemoryStore, folder: Path, name: str, addresses: Addresses) -> None:
        super().__init__(store, folder, name)
        machine = MemoryMachine()
        machine.driver = Kernel(addresses)
        machine.reconciler = type(machine.reconciler)(machine.driver.served())
        machine.egress, machine.sockets = addresses, Links()
        self.networks = Networks(self.replica)
        self.hosts._own_record.change(egresses=True)
        log = EventLog(folder / f"{name}.events")
        self.followed: list[Mapping[int, Turn]] = []
        self.exits = Exits(
            Worker(machine), self.replica, self.hosts, self.networks, TakesPart(), log, self._follow
        )
        self.presence.subscribe(self.exits.confirmed, self.exits.lost)

    async def _follow(self, name: str, turns: Mapping[int, Turn]) -> None:
        assert name == "demo"
        self.followed.append(turns)

    async def _changed(self, keys: frozenset[str]) -> None:
        await super()._changed(keys)
        if any(key.startswith("networks/") for key in keys):
            self.networks.refresh()
        self.exits.changed(keys)

    async def start(self) -> None:
        """Begin as an agent does."""
        await super().start()
        self.networks.refresh()
        self.exits.start()

    async def die(self) -> None:
        """End as by SIGKILL."""
        await self.exits.stop()
        await super().die()


class Cluster:
    """Hosts h1 to h3; the kernels outlive the agents."""

    def __init__(self, folder: Path) -> None:
        self.memory = Memory()
        self.kernels = {name: Addresses() for name in ("h1", "h2", "h3")}
        self.hosts: dict[str, Host] = {}
        self.twice: list[tuple[float, list[str]]] = []
        self._folder = folder
        self._born = 0

    async def begin(self, name: str) -> None:
        """Start a host's agent."""
        self._born += 1
        folder = self._folder / f"{name}-{self._born}"
        folder.mkdir()
        store = MemoryStore(self.memory)
        self.hosts[name] = Host(store, folder, name, self.kernels[name])
        await self.hosts[name].start()

    async def wish(self, wish: Egress) -> None:
        """Write the network's record."""
        changed = msgspec.structs.replace(DEMO, egress=(wish,))
        await next(iter(self.hosts.values())).replica.write({"networks/demo": changed})

    def having(self, address: str = EXIT.address) -> list[str]:
        """Return the hosts whose kernels have the address."""
        return [name for name, kernel in self.kernels.items() if kernel.ends.get(address, 0.0) > clock()]

    async def drain(self, name: str, drained: str) -> None:
        """Drain a host, or end that."""
        host = self.hosts[name].hosts._own_record.change(settings={"drained": drained})
        await self.hosts[name].replica.write({f"hosts/{name}": host})

    async def one(self, but: str = "") -> str:
        """Wait until a host has the address, another one than ``but``."""
        await soon(lambda: self.having() not in ([], [but]), "somebody has it", FAILOVER)
        (found,) = self.having()
        return found

    async def watch(self) -> None:
        """Note each moment at which two have it."""
        while True:
            if len(found := self.having()) > 1:
                self.twice.append((clock(), found))
            await sleep(0.02)


@pytest.fixture(autouse=True)
def _clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress, "now", clock)
    monkeypatch.setattr(gratuitous_arp, "announce", lambda *_: None)


def turned(address: str = EXIT.address, **how: bool) -> Mapping[int, Turn]:
    """Return a change of the address as ``follow`` gets it."""
    return {4: Turn(address=prefix(address), **how)}


def played(folder: Path, work: Callable[[Cluster], Awaitable[None]]) -> None:
    """Run a test's work in virtual time; at no moment two hosts have the address."""

    async def run() -> None:
        cluster = Cluster(folder)
        for name in cluster.kernels:
            await cluster.begin(name)
            await cluster.hosts[name].replica.write({f"hosts/{name}": cluster.hosts[name].hosts.here})
        watch = create_task(cluster.watch())
        await cluster.wish(EXIT)
        await work(cluster)
        watch.cancel()
        for host in cluster.hosts.values():
            await host.die()
            await host.stop()
        assert cluster.twice == []

    in_virtual_time(run)


def test_another_host_takes_it_when_the_holder_dies(tmp_path: Path) -> None:
    """Again and again; one that is back leaves it where it is, and all know who has it."""

    async def work(cluster: Cluster) -> None:
        holder = await cluster.one()
        for _ in range(4):
            await cluster.hosts[holder].die()
            died, begun = holder, clock()
            holder = await cluster.one(but=died)
            assert LIFETIME + 1.5 - 1 <= clock() - begun <= FAILOVER
            await cluster.begin(died)
            await sleep(15)
            assert await cluster.one() == holder
            told = [host.exits.told(DEMO) for host in cluster.hosts.values()]
            assert told == [[{"address": EXIT.address, "host": holder}]] * 3
            assert {name: host.followed[-1] for name, host in cluster.hosts.items()} == {
                name: turned(here=name == holder) if name in (died, holder) else {} for name in cluster.hosts
            }

    played(tmp_path, work)


def test_a_restarted_agent_keeps_it(tmp_path: Path) -> None:
    """If it is back before its record ends, the kernel has the address again before its time is over, or soon."""

    async def work(cluster: Cluster) -> None:
        holder = await cluster.one()
        await sleep(3)
        await cluster.hosts[holder].die()
        await sleep(0.5)
        await cluster.begin(holder)
        await sleep(4)
        assert cluster.having() == [holder]

    played(tmp_path, work)


def test_without_the_store_nobody_has_it(tmp_path: Path) -> None:
    """And with it again, one has."""

    async def work(cluster: Cluster) -> None:
        await cluster.one()
        for host in cluster.hosts.values():
            host.store.cut()
        await soon(lambda: cluster.having() == [], "nobody has it", LIFETIME + LATE + 0.1)
        await sleep(20)
        assert cluster.having() == []
        for host in cluster.hosts.values():
            host.store.mend()
        await soon(lambda: len(cluster.having()) == 1, "one has it", 15)

    played(tmp_path, work)


def test_the_preferred_host_comes_first_and_an_operator_moves_it(tmp_path: Path) -> None:
    """The same wish again is a new one; while the preferred host is dead, another one has it."""

    async def work(cluster: Cluster) -> None:
        first = await cluster.one()
        target = next(name for name in cluster.kernels if name != first)
        await cluster.wish(Egress(EXIT.address, target, 1))
        assert await cluster.one(but=first) == target
        await cluster.hosts[target].die()
        other = await cluster.one(but=target)
        await cluster.begin(target)
        await sleep(15)
        assert cluster.having() == [other]
        await cluster.wish(Egress(EXIT.address, target, 2))
        assert await cluster.one(but=other) == target

    played(tmp_path, work)


def test_a_network_without_one_leaves_nothing(tmp_path: Path) -> None:
    """Neither in a kernel nor in the store."""

    async def work(cluster: Cluster) -> None:
        await cluster.one()
        assert not any(host.exits.told(network()) for host in cluster.hosts.values())
        await next(iter(cluster.hosts.values())).replica.write({"networks/demo": network()})
        await soon(lambda: cluster.having() == [], "it is gone", 2)
        assert cluster.memory.entries[RECORD][0] is None
        assert not any(list(host.exits.problems()) for host in cluster.hosts.values())

    played(tmp_path, work)


def test_a_record_of_a_host_that_does_not_exist_keeps_it_from_nobody(tmp_path: Path) -> None:
    """It is tied to no life, so it would never end."""

    async def work(cluster: Cluster) -> None:
        holder = await cluster.one()
        store = cluster.hosts[holder].store
        await store.transaction({RECORD: b"h9\x1b[2J"})
        await sleep(10)
        after = await cluster.one()
        assert cluster.hosts["h1"].exits.told(DEMO) == [{"address": EXIT.address, "host": after}]

    played(tmp_path, work)


def _faulty(monkeypatch: pytest.MonkeyPatch, fault: str, seconds: float, *, of: str) -> None:
    """Let the store fail for so long from the first write of a record on that ``of`` puts, or deletes.

    "refused": it is not executed, and there is no answer. "lost": it is executed, and there is no answer. "changed":
    it is not executed, because a condition fails.
    """
    real, begun = MemoryStore.transaction, []

    async def transaction(
        self: MemoryStore, puts: Mapping[str, bytes], deletes: Sequence[str] = (), **more: object
    ) -> int:
        if RECORD not in (puts if of == "puts" else deletes):
            return await real(self, puts, deletes, **more)  # type: ignore[arg-type]
        begun.append(clock())
        if clock() - begun[0] > seconds:
            return await real(self, puts, deletes, **more)  # type: ignore[arg-type]
        if fault == "lost":
            await real(self, puts, deletes, **more)  # type: ignore[arg-type]
        if fault != "changed":
            raise Unavailable("store in memory: no answer")
        return 0

    monkeypatch.setattr(MemoryStore, "transaction", transaction)


FAULTS = pytest.mark.parametrize("fault", ["refused", "lost", "changed"])


@FAULTS
def test_a_drained_host_frees_it_in_spite_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Its keepalive keeps the record until it is deleted, so it tries that again."""

    async def work(cluster: Cluster) -> None:
        first = await cluster.one()
        _faulty(monkeypatch, fault, 3, of="deletes")
        await cluster.drain(first, "1")
        await soon(lambda: cluster.having() == [], "it is gone from the drained host", 2)
        assert await cluster.one(but=first) != first

    played(tmp_path, work)


@FAULTS
def test_an_operator_moves_it_in_spite_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The host that has it does not take it again for the new wish."""

    async def work(cluster: Cluster) -> None:
        first = await cluster.one()
        target = next(name for name in cluster.kernels if name != first)
        _faulty(monkeypatch, fault, 3, of="deletes")
        await cluster.wish(Egress(EXIT.address, target, 1))
        assert await cluster.one(but=first) == target

    played(tmp_path, work)


@FAULTS
def test_a_network_without_one_leaves_nothing_in_spite_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The record goes later; and a network that gets one again has it on one host."""

    async def work(cluster: Cluster) -> None:
        await cluster.one()
        _faulty(monkeypatch, fault, 3, of="deletes")
        await next(iter(cluster.hosts.values())).replica.write({"networks/demo": network()})
        await soon(lambda: cluster.having() == [], "it is gone", 2)
        await soon(lambda: cluster.memory.entries[RECORD][0] is None, "the record is gone", 5)
        await cluster.wish(EXIT)
        await cluster.one()

    played(tmp_path, work)


def test_a_host_that_got_no_answer_waits_before_it_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It finds its own record then, though another host may have the address in its kernel for a moment longer."""

    async def work(cluster: Cluster) -> None:
        for _ in range(4):
            holder = await cluster.one()
            with monkeypatch.context() as patched:
                _faulty(patched, "lost", 0.1, of="puts")
                await cluster.hosts[holder].die()
                await cluster.one(but=holder)
            await cluster.begin(holder)
            await sleep(5)

    played(tmp_path, work)


def test_a_record_of_no_address_wakes_nobody(tmp_path: Path) -> None:
    """Any host may write and delete such records without end: nothing is kept or computed because of them."""

    async def work(cluster: Cluster) -> None:
        await cluster.one()
        await sleep(3)
        host = cluster.hosts["h1"]
        alive, heartbeats = host.hosts.alive(), set(host.presence._beats)
        assert alive == set(cluster.kernels)
        for key in ("alive/(egress)/4/192.0.2.7", "alive/(egress)/demo/4"):
            await host.replica.write({key: b"h1"})
            assert key in host.replica.records
            host.exits._wake.clear()
            host.exits.changed(frozenset({key}))
            assert not host.exits._wake.is_set()
            await host.replica.write({}, deletes=[key])
        asked = 0

        async def full() -> bool:
            nonlocal asked
            asked += 1
            return False

        host.store.full = full  # type: ignore[method-assign]
        begun = clock()
        for number in range(100):
            await host.store.transaction({f"alive/(egress)/4/{number}": b"h1"})
            await host.store.transaction({}, deletes=[f"alive/(egress)/4/{number}"])
            await sleep(0.03)
        assert 1 <= asked <= (clock() - begun) / STEP + 1
        assert host.hosts.alive() is alive
        assert host.presence._beats == heartbeats
        assert not any("egress" in key for key in host.replica.contact._gone)
        host.exits.changed(frozenset({RECORD}))
        assert host.exits._wake.is_set()

    played(tmp_path, work)


def test_a_preferred_host_that_is_drained_leaves_it_to_another(tmp_path: Path) -> None:
    """When it is drained no more, it leaves it there."""

    async def work(cluster: Cluster) -> None:
        await cluster.wish(Egress(EXIT.address, "h2", 1))
        await soon(lambda: cluster.having() == ["h2"], "h2 has it", FAILOVER)
        await cluster.drain("h2", "1")
        other = await cluster.one(but="h2")
        await cluster.drain("h2", "")
        await sleep(15)
        assert cluster.having() == [other]

    played(tmp_path, work)


def test_a_move_to_a_host_without_a_link_ends_on_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host gets the chance for some seconds."""

    async def work(cluster: Cluster) -> None:
        first = await cluster.one()
        target = next(name for name in cluster.kernels if name != first)
        monkeypatch.setattr(cluster.kernels[target], "place", lambda _address: "")
        await cluster.wish(Egress(EXIT.address, target, 1))
        await sleep(15)
        assert cluster.having() not in ([], [target])

    played(tmp_path, work)


def test_two_networks_never_have_one_address(tmp_path: Path) -> None:
    """Two operators gave it to them at one moment; and one that leaves a network is taken for the other in time."""

    async def work(cluster: Cluster) -> None:
        await cluster.one()
        host = cluster.hosts["h1"]
        await host.replica.write({"networks/apps": msgspec.structs.replace(APPS, egress=(EXIT,))})
        await sleep(10)
        for one in cluster.hosts.values():
            assert list(one.exits.holders()) == [("apps", 4)]
            assert list(one.exits.problems()) == [
                f"networks apps and demo have one egress address, {EXIT.address}: change one"
            ]
        holder = await cluster.one()
        cluster.hosts[holder].store.cut()
        other = next(name for name in cluster.hosts if name != holder)
        await cluster.hosts[other].replica.write({"networks/apps": APPS})
        assert await cluster.one(but=holder) != holder
        cluster.hosts[holder].store.mend()

    played(tmp_path, work)


def test_nobody_takes_what_a_pool_or_a_host_has(tmp_path: Path) -> None:
    """Any host may write such a record of a network: an honest one would answer for somebody else."""

    async def work(cluster: Cluster) -> None:
        await cluster.one()
        for address, owner in (("10.244.3.4", "in a pool of network demo"), ("192.0.2.3", "host h3's own")):
            host = msgspec.structs.replace(cluster.hosts["h3"].hosts.here, underlay=Underlay("eth0", ("192.0.2.3/24",)))
            await cluster.hosts["h3"].replica.write({"hosts/h3": host})
            await cluster.wish(Egress(address, "h1", 2))
            await sleep(10)
            assert not cluster.having(address)
            assert list(cluster.hosts["h1"].exits.problems()) == [
                f"egress address {address} of network demo is {owner}: change it"
            ]

    played(tmp_path, work)


def test_a_host_that_does_not_know_egress_addresses_is_named(tmp_path: Path) -> None:
    """It may have joined later, and its containers leave by its own address."""

    async def work(cluster: Cluster) -> None:
        await cluster.one()
        old = msgspec.structs.replace(cluster.hosts["h3"].hosts.here, egresses=False)
        await cluster.hosts["h3"].replica.write({"hosts/h3": old})
        await sleep(3)
        (problem,) = cluster.hosts["h1"].exits.problems()
        assert problem.startswith("the agent of host h3 is of a version without egress addresses")

    played(tmp_path, work)


def test_an_address_that_cannot_be_put_goes_elsewhere_and_stops_no_other(tmp_path: Path) -> None:
    """Its link may be gone on that host, or down."""

    async def work(cluster: Cluster) -> None:
        bad = Egress("192.0.2.50", "h1")
        for name in cluster.kernels:
            cluster.kernels[name].broken = {bad.address} if name == "h1" else set()
        await cluster.wish(Egress(EXIT.address, "h1", 1))
        await cluster.hosts["h2"].replica.write({"networks/apps": msgspec.structs.replace(APPS, egress=(bad,))})
        await soon(lambda: cluster.having() == ["h1"], "h1 has the good one", 2 * FAILOVER)
        for _ in range(200):
            await sleep(0.1)
            assert cluster.having() == ["h1"]
        assert len(cluster.having(bad.address)) == 1

    played(tmp_path, work)


def _faults(seed: int) -> Iterator[tuple[float, str, str]]:
    """Yield faults of hosts with the seconds until the next one."""
    chosen = random.Random(seed)  # noqa: S311 - it repeats
    for _ in range(40):
        yield chosen.uniform(0, 7), chosen.choice(("die", "begin", "cut", "mend", "mend")), f"h{chosen.randint(1, 3)}"


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_never_two_have_it(tmp_path: Path, seed: int) -> None:
    """Agents that die, begin again, lose the store and find it; in the end one host has it (``played`` watches)."""

    async def work(cluster: Cluster) -> None:
        dead: set[str] = set()
        for pause, what, name in _faults(seed):
            await sleep(pause)
            if what == "die" and name not in dead:
                dead.add(name)
                await cluster.hosts[name].die()
            elif what == "begin" and name in dead:
                dead.discard(name)
                await cluster.begin(name)
            elif what == "cut":
                cluster.hosts[name].store.cut()
            elif what == "mend":
                cluster.hosts[name].store.mend()
        for name, host in list(cluster.hosts.items()):
            host.store.mend()
            if name in dead:
                await cluster.begin(name)
        await soon(lambda: len(cluster.having()) == 1, "one has it", 30)

    played(tmp_path, work)


def test_open_flows_follow_when_the_address_comes_changes_and_goes(tmp_path: Path) -> None:
    """On all hosts when the network gets, changes or loses it, also while nobody holds it."""

    async def work(cluster: Cluster) -> None:
        every = cluster.hosts.values()

        def follow(address: str) -> bool:
            """Return whether one host has it, and all follow that."""
            last = [host.followed[-1] for host in every if host.followed]
            return [last.count(turned(address, here=here)) for here in (True, False)] == [1, 2]

        await soon(lambda: follow(EXIT.address), "all follow", FAILOVER)
        assert [len(host.followed) for host in every] == [1, 1, 1]
        await cluster.wish(Egress("192.0.2.101"))
        await soon(lambda: follow("192.0.2.101"), "all follow the new address", 2 * FAILOVER)
        for host in every:
            host.store.cut()
        await sleep(20)
        await MemoryStore(cluster.memory).transaction({"networks/demo": msgspec.json.encode(network())})
        for host in every:
            host.store.mend()
        gone = turned("192.0.2.101", lost=True)
        await soon(lambda: all(host.followed[-1] == gone for host in every), "all know that it is gone", 20)

    played(tmp_path, work)


@pytest.mark.parametrize(
    ("turn", "wrong"),
    [
        (turned(here=True), {"", "192.0.2.1", "192.0.2.101"}),
        (turned(here=False), {EXIT.address, "192.0.2.1", "192.0.2.101"}),
        (turned(lost=True), {"", EXIT.address}),
        ({6: Turn(address=prefix("2001:db8::100"), here=True)}, set()),
        ({}, set()),
    ],
)
def test_a_flow_is_stale_if_the_outside_sees_another_source_of_it(turn: Mapping[int, Turn], wrong: set[str]) -> None:
    """The holder's have the address, others are not translated on their hosts, and without it each host masquerades."""

    def is_stale(seen: str) -> bool:
        source, target = prefix("10.244.1.2"), prefix("198.51.100.9")
        return stale(DEMO, (DEMO,), turn, Flow(source, target, "tcp", 80, prefix(seen) if seen else None))

    assert {seen for seen in ("", EXIT.address, "192.0.2.1", "192.0.2.101") if is_stale(seen)} == wrong


def test_only_flows_from_the_network_to_no_pool_are_stale() -> None:
    """Of another network they go on as they are, and so do those between containers."""
    other = network("other", "10.245.0.0/16", options={"vni": "200"})

    def is_stale(source: str, target: str) -> bool:
        return stale(DEMO, (DEMO, other), turned(here=True), Flow(prefix(source), prefix(target), "tcp", 80))

    assert is_stale("10.244.1.2", "198.51.100.9")
    assert not is_stale("10.244.1.2", "10.244.2.3")
    assert not is_stale("10.244.1.2", "10.245.0.9")
    assert not is_stale("10.245.0.9", "198.51.100.9")


def test_the_next_holder_waits_longer_than_an_address_can_live() -> None:
    """Its record ends LIFE after the last keepalive, and others see that half a second later."""
    assert LIFE + ABSENCE + LATER > LIFETIME + LATE
    assert msgspec.convert(msgspec.to_builtins(DEMO), Network) == DEMO
