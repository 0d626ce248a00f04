"""A machine whose kernel is in memory: worker, reconciler and registry are the agent's own, over one fake driver."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from linkspan.core.driver_contract import Driver, Support
from linkspan.core.errors import LinkspanError
from linkspan.core.kinds import Kind, Link
from linkspan.core.ports import PortTable
from linkspan.core.reconcile import Reconciler
from linkspan.core.states.host import HOST, Key, State
from linkspan.endpoints.journal import Journal
from linkspan.endpoints.registry import Registry
from linkspan.kernel.kinds import kinds
from linkspan.kernel.machine import Machine
from linkspan.kernel.worker import Worker
from support.records.listeners import NoListener
from support.records.replicas import Member


def _netns(state: State) -> int:
    return int(getattr(state, "netns", HOST))


class MemoryDriver(Driver):
    """A kernel that has states of every kind; with a link goes what is on it."""

    def __init__(self, states: Iterable[State] = ()) -> None:
        self.known = kinds()
        self.states = {state.key: state for state in states}

    def served(self) -> Iterator[tuple[Kind[Any], Driver]]:
        """Yield all kinds, each with this driver."""
        for kind in self.known:
            yield kind, self

    def probe(self) -> Support:
        """Return support for all kinds."""
        return Support("memory")

    def observe(self, netns: int) -> Iterable[State]:
        """Return what is in a namespace."""
        return [state for state in self.states.values() if _netns(state) == netns]

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Put and delete; nothing is refused."""
        self.states |= {state.key: state for state in put}
        for state in delete:
            self.states.pop(state.key, None)
            if links := set(self.known.makes(state)):
                self._fall(links)
        return {}

    def _fall(self, links: set[Link]) -> None:
        """Remove what is on links that were deleted. A port of a bridge stays."""
        for key, state in list(self.states.items()):
            if not self.known.makes(state) and not links.isdisjoint(self.known.on(state)):
                del self.states[key]


class MemoryMachine(Machine):
    """A machine with a reconciler over a kernel in memory, and nothing else.

    A test that needs more of the machine adds it in a subclass.
    """

    def __init__(self, states: Iterable[State] = ()) -> None:
        self.driver = MemoryDriver(states)
        self.reconciler = Reconciler(self.driver.served())

    def release(self) -> None:
        """Close nothing: there are no sockets."""


def worker_of(machine: Machine) -> Worker:
    """Return a worker that has its machine already."""
    return Worker(machine)


def registry_of(member: Member, folder: Path, machine: Machine | None = None) -> Registry:
    """Return the registry of a host's endpoints, with its journal in a folder, and no port taken by a process."""
    return Registry(
        worker_of(machine or MemoryMachine()),
        Journal(folder / "journal.db", boot_id="b1"),
        member.networks,
        member.allocator,
        PortTable(NoListener()),
        member.event_log,
        member.name,
        member.endpoints,
    )
