"""Hosts in memory that hold egress addresses, in virtual time."""

from __future__ import annotations

from asyncio import create_task, sleep
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
import pytest

from linkspan.cluster import address_probe, egress, held_addresses
from linkspan.cluster.egress import Exits
from linkspan.cluster.egress_flows import Turn
from linkspan.cluster.networks import Networks
from linkspan.cluster.participation import Participation
from linkspan.core.addresses import Prefix, prefix
from linkspan.core.errors import LinkspanError, NotFound, Unavailable
from linkspan.core.event_log import EventLog
from linkspan.core.model import Egress
from linkspan.core.states.host import EgressAddress, Key, State
from linkspan.kernel.drivers.egress_addresses import LIFETIME, EgressAddressDriver
from linkspan.kernel.io.link_messages import Link
from linkspan.kernel.io.sockets import Sockets
from linkspan.kernel.probe import gratuitous_arp
from linkspan.kernel.worker import Worker
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


class Segment:
    """The link that all hosts are on: their kernels, and the addresses of other machines."""

    def __init__(self) -> None:
        self.kernels: list[Addresses] = []
        self.others: set[str] = set()
        self.announced: list[int] = []
        """How many addresses were announced at a time."""

    async def rivals(self, worker: Worker, addresses: Iterable[Prefix]) -> dict[Prefix, str]:
        """Answer a host's question as machines do that have an address."""
        asking = worker.machine.egress
        taken = {a for one in self.kernels if one is not asking for a, end in one.ends.items() if end > clock()}
        return {one: "another machine" for one in addresses if one.address in self.others | taken}

    def announce(self, _device: str, _mac: bytes, addresses: Sequence[Prefix]) -> None:
        """Hear the announcements of a host."""
        self.announced.append(len(addresses))


class Addresses(EgressAddressDriver):
    """A kernel's, by the loop's clock; it is as late as a kernel may be."""

    def __init__(self, segment: Segment) -> None:
        segment.kernels.append(self)
        self._until = {}
        self.ends: dict[str, float] = {}
        self.broken: set[str] = set()
        """The addresses that it refuses."""

    def place(self, address: Prefix) -> str:
        """Return a link that has the subnet."""
        return "eth0"

    def places(self, addresses: Collection[Prefix]) -> dict[Prefix, str]:
        """Return the links of those that have one."""
        return {address: link for address in addresses if (link := self.place(address))}

    def left(self) -> set[Prefix]:
        """Return those whose time has not ended."""
        return {prefix(address).single() for address, end in self.ends.items() if end > clock()}

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

    def __init__(self, networks: Networks) -> None:
        self._networks = networks

    def all(self) -> frozenset[str]:
        """Return the networks."""
        return frozenset(network.name for network in self._networks.all())


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
        self.calls: list[Mapping[str, Mapping[int, Turn]]] = []
        takes_part = TakesPart(self.networks)
        self.exits = Exits(
            Worker(machine), self.replica, self.hosts, self.networks, takes_part, log, self._follow
        )
        self.presence.subscribe(self.exits.confirmed, self.exits.lost)

    @property
    def followed(self) -> list[Mapping[int, Turn]]:
        """The changes of network demo."""
        return [turns["demo"] for turns in self.calls if "demo" in turns]

    async def _follow(self, turns: Mapping[str, Mapping[int, Turn]]) -> None:
        self.calls.append(turns)

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
        self.segment = Segment()
        self.kernels = {name: Addresses(self.segment) for name in ("h1", "h2", "h3")}
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


def turned(address: str = EXIT.address, **how: bool) -> Mapping[int, Turn]:
    """Return a change of the address as ``follow`` gets it."""
    return {4: Turn(address=prefix(address), **how)}


def played(folder: Path, work: Callable[[Cluster], Awaitable[None]]) -> None:
    """Run a test's work in virtual time; at no moment two hosts have the address."""

    async def run() -> None:
        cluster = Cluster(folder)
        patched.setattr(address_probe, "rivals", lambda *asked: cluster.segment.rivals(*asked))
        patched.setattr(gratuitous_arp, "announce", cluster.segment.announce)
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

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(egress, "now", clock)
        patched.setattr(held_addresses, "now", clock)
        in_virtual_time(run)
