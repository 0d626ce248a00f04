"""A machine whose kernel is in memory: worker, reconciler and registry are the agent's own, over one fake driver."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from linkspan.core.contracts import Driver, Support
from linkspan.core.errors import LinkspanError
from linkspan.core.ports import PortTable
from linkspan.core.reconcile import Reconciler
from linkspan.core.states.host import HOST, Bridge, Key, State, Veth
from linkspan.endpoints.journal import Journal
from linkspan.endpoints.registry import Registry
from linkspan.kernel.worker import Machine, Worker
from support.records.listeners import NoListener
from support.records.replicas import Member


def _kinds(kind: type[State]) -> Iterator[type[State]]:
    for one in kind.__subclasses__():
        yield one
        yield from _kinds(one)


def _netns(state: State) -> int:
    return int(getattr(state, "netns", HOST))


class MemoryDriver(Driver):
    """A kernel that has states of every kind; with a link goes what is on it."""

    def __init__(self, states: Iterable[State] = ()) -> None:
        self.kinds = tuple(_kinds(State))
        self.states = {state.key: state for state in states}

    def probe(self) -> Support:
        """It serves all kinds."""
        return Support("memory")

    def observe(self, netns: int) -> Iterable[State]:
        """Return what is in a namespace."""
        return [state for state in self.states.values() if _netns(state) == netns]

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Put and delete; nothing is refused."""
        self.states |= {state.key: state for state in put}
        for state in delete:
            self.states.pop(state.key, None)
            if isinstance(state, Bridge | Veth):
                self._fall(state)
        return {}

    def _fall(self, link: Bridge | Veth) -> None:
        """Remove what is on a link that was deleted, and on the container's end of it."""
        ends = {(HOST, link.name)}
        if isinstance(link, Veth):
            ends.add((link.peer_netns, link.peer_name))
        for key, state in list(self.states.items()):
            if (_netns(state), getattr(state, "device", "")) in ends:
                del self.states[key]


class MemoryMachine(Machine):
    """A machine with a reconciler over a kernel in memory, and nothing else.

    A test that needs more of the machine adds it in a subclass.
    """

    def __init__(self, states: Iterable[State] = ()) -> None:
        self.driver = MemoryDriver(states)
        self.reconciler = Reconciler((self.driver,))


def worker_of(machine: Machine) -> Worker:
    """Return a worker that has its machine already."""
    worker = Worker()
    worker.machine = machine
    return worker


def registry_of(member: Member, folder: Path, machine: Machine | None = None) -> Registry:
    """Return the registry of a host's endpoints, with its journal in a folder, and no port taken by a process."""
    return Registry(
        worker_of(machine or MemoryMachine()),
        Journal(folder / "journal.db", boot_id="b1"),
        member.networks,
        member.allocator,
        PortTable(NoListener()),
        member.happenings,
        member.name,
        member.endpoints,
    )
