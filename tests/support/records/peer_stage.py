"""A host with some peers in one network, for tests of what it puts for each: a store in memory, and no kernel."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec
import pytest

from linkspan.cluster.peers import Pair, Peers
from linkspan.core.addresses import Prefix
from linkspan.core.desired import Source
from linkspan.core.errors import Conflict
from linkspan.core.host_view import HostView
from linkspan.core.model import Host, Lease, Offer, Underlay
from linkspan.core.reconcile import Reconciler
from linkspan.core.states.host import State
from linkspan.kernel.io.namespaces import Namespaces
from linkspan.kernel.io.sockets import Sockets
from linkspan.kernel.probe import underlay
from linkspan.store.memory import Memory
from linkspan.store.records import BlockRecord, block_key, lease_key
from support.memory_machine import MemoryDriver, MemoryMachine, worker_of
from support.records.replicas import Member, network

DEMO = network(backend="host-gw", options={})


def underlay_of(number: int) -> Underlay:
    """Return the underlay of host h``number``."""
    return Underlay("eth0", (f"192.0.2.{number}/24",))


class Kernel(Reconciler):
    """A reconciler over a kernel in memory, which writes down each batch of changed sources.

    Nothing may look at ``peers`` half changed: what it was during each batch is written down too.
    """

    def __init__(self) -> None:
        super().__init__(MemoryDriver().served())
        self.batches: list[list[Source]] = []
        self.threads: set[int] = set()
        self.known: list[set[Pair]] = []
        self.meanwhile: Callable[[], object] = lambda: None
        """Called during each batch."""
        self.peers: Peers

    def each(self, sources: Mapping[Source, Iterable[State]]) -> dict[Source, Conflict]:
        """Change, and note it."""
        refused = super().each(sources)
        self.batches.append(list(sources))
        self.threads.add(threading.get_ident())
        self.known.append(set(self.peers.known))
        self.meanwhile()
        return refused


class PeerStage(Member):
    """Host h1, and hosts h2, h3, ... with a lease each."""

    def __init__(self, folder: Path, others: int) -> None:
        super().__init__(Memory(), folder, "h1")
        self.count = others + 1
        self.own_record.change(underlay=underlay_of(1))
        machine = MemoryMachine()
        machine.reconciler = self.kernel = Kernel()
        machine.sockets = Sockets(Namespaces())
        self.views: list[int] = []
        """The threads in which the view was asked for."""
        self.exact: tuple[tuple[str, Prefix], ...] = ()
        """This host's exact addresses, as backends that encrypt see them."""
        self.peers = self.kernel.peers = Peers(
            worker_of(machine),
            self.hosts,
            self.leases,
            self.networks,
            self.conflicts,
            self.participation,
            self.event_log,
            self._view,
        )

    def _host(self, number: int) -> Host:
        return Host(id=f"h{number}", name=f"h{number}", underlay=underlay_of(number))

    def _view(self) -> HostView:
        self.views.append(threading.get_ident())
        mine = self.leases.mine("demo")
        return HostView(self.networks.all(), host=self.hosts.here, leases=(mine,) if mine else (), exact=self.exact)

    async def start(self) -> None:
        """Have the network, and all hosts with their leases."""
        await self.replica.start()
        written: dict[str, msgspec.Struct] = {"networks/demo": DEMO}
        for number in range(1, self.count + 1):
            host, block = f"h{number}", f"10.244.{number}.0/24"
            written[f"hosts/{host}"] = self._host(number)
            written[block_key("demo", block)] = BlockRecord(host, 0.0)
            written[lease_key("demo", host)] = Lease(
                network="demo",
                host=host,
                prefixes=(block,),
                addresses=(f"10.244.{number}.0",),
                endpoints={"host-gw": Offer({})},
            )
        await self.replica.write(written)
        self.networks.refresh()

    async def stop(self) -> None:
        """End."""
        await self.replica.stop()

    def pairs(self, *numbers: int) -> list[Pair]:
        """Return the pairs of these hosts, or of all."""
        return [("demo", f"h{number}") for number in numbers or range(2, self.count + 1)]


def one_link(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a kernel that reaches all peers without a router, and has heard of all of them."""
    monkeypatch.setattr(underlay, "way", lambda _sockets, _address: ("eth0", True))
    monkeypatch.setattr(underlay, "resolved", lambda _sockets, _device, _address: True)
