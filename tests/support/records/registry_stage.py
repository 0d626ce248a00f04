"""The endpoints of a host whose kernel is in memory; nothing but the loop may look at the endpoints."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from linkspan.core.desired import Source
from linkspan.core.errors import LinkspanError
from linkspan.core.model import Endpoint, Network
from linkspan.core.ports import PortTable
from linkspan.core.reconcile import Reconciler
from linkspan.core.states.host import Key, State
from linkspan.endpoints.journal import Journal
from linkspan.endpoints.registry import Identity, Registry
from linkspan.store.memory import Memory
from support.memory_machine import MemoryDriver, MemoryMachine, worker_of
from support.records.listeners import NoListener
from support.records.replicas import Member


class LoopOnly(dict[Identity, Endpoint]):
    """Endpoints that fail where another thread walks over them: it would do so now and then, while one is added."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def __iter__(self) -> Iterator[Identity]:
        """Walk over the identities."""
        assert threading.get_ident() == self._thread
        return super().__iter__()

    def values(self) -> Any:
        """Walk over the endpoints."""
        assert threading.get_ident() == self._thread
        return super().values()

    def items(self) -> Any:
        """Walk over both."""
        assert threading.get_ident() == self._thread
        return super().items()


class NotedReconciler(Reconciler):
    """A reconciler over a kernel in memory, which notes the sources of what changes."""

    def __init__(self) -> None:
        super().__init__(MemoryDriver().served())
        self.changed: list[Source] = []

    def changes(
        self, sources: Mapping[Source, Iterable[State]], there: tuple[type[State], ...] = ()
    ) -> dict[Key, LinkspanError]:
        """Note the sources, and change."""
        self.changed += sources
        return super().changes(sources, there)


class NotedMachine(MemoryMachine):
    """A machine with such a reconciler, and no way into any namespace."""

    def __init__(self, reconciler: NotedReconciler | None = None) -> None:
        super().__init__()
        self.reconciler = self.noted = reconciler or NotedReconciler()

    def enter(self, endpoint: Endpoint) -> None:
        """Remember no way."""

    def leave(self, endpoint: Endpoint, every: Iterable[Endpoint]) -> None:
        """Forget no way."""


class RegistryStage:
    """Such a host, with networks."""

    def __init__(self, folder: Path, machine: NotedMachine | None = None) -> None:
        machine = machine or NotedMachine()
        self.kernel, self.worker = machine.noted, worker_of(machine)
        self.member = Member(Memory(), folder, "h1")
        self.journal = Journal(folder / "journal.db", cooldown=0)
        self.endpoints = LoopOnly()
        self.counted: list[tuple[str, str, float]] = []
        """Each attach and detach: its verb, result and seconds."""
        member, ports = self.member, PortTable(NoListener())
        self.registry = Registry(
            self.worker,
            self.journal,
            member.networks,
            member.allocator,
            ports,
            member.event_log,
            "h1",
            self.endpoints,
            lambda *counted: self.counted.append(counted),
        )

    async def start(self, *networks: Network) -> None:
        """Have the networks."""
        await self.member.replica.start()
        await self.member.replica.write({f"networks/{network.name}": network for network in networks})
        self.member.networks.refresh()
        self.member.blocks.refresh()

    async def stop(self) -> None:
        """End."""
        await self.member.replica.stop()
        self.journal.close()
