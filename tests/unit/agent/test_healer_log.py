"""Log of the healer: a host that lost its underlay must not fill its disk, and no error ends healing."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterable
from pathlib import Path

import pytest

from linkspan.agent import healer as healer_module
from linkspan.agent.condition import drift
from linkspan.agent.healer import Healer, Look
from linkspan.agent.metrics import Metrics
from linkspan.core import supervise
from linkspan.core.errors import KernelError, LinkspanError
from linkspan.core.reconcile import Reconciler, Report
from linkspan.core.states.host import Interface, Key, NftTable, State, TokenBucket
from linkspan.kernel.drivers.links import Leaving, LinkDriver
from linkspan.kernel.drivers.neighbours_and_fdb import NeighbourDriver
from linkspan.kernel.drivers.processes import ProcessDriver
from linkspan.kernel.machine import Machine
from linkspan.store.memory import Memory
from support.memory_machine import MemoryDriver, MemoryMachine, registry_of
from support.polling import eventually
from support.records.replicas import Member


class Observed(Reconciler):
    """A reconciler that says at which kinds it was asked to look, and that they are ok."""

    def __init__(self) -> None:
        super().__init__(MemoryDriver().served())
        self.seen: list[set[type[State]]] = []
        self.inside: set[int] = set()

    def resync(
        self,
        kinds: Iterable[type[State]] | None = None,
        namespaces: Iterable[int] = (),
        *,
        log: bool = True,
    ) -> Report:
        """Note the kinds."""
        self.seen.append(set(kinds or ()))
        self.inside |= set(namespaces)
        return Report()


async def nothing() -> None:
    """Look at nothing."""


def healer_of(machine: Machine, folder: Path, replan: Look) -> Healer:
    """Return the healer of a host without containers."""
    member = Member(Memory(), folder, "h1")
    registry = registry_of(member, folder, machine)
    return Healer(registry, Metrics(), replan, nothing, nothing, nothing)


def test_what_cannot_be_mended_is_logged_once_until_it_is_well(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """For all objects with one cause together; another cause, and the same one later, are reported again."""
    machine = MemoryMachine()
    healer = healer_of(machine, tmp_path, nothing)

    def told(**failed: str) -> list[str]:
        caplog.clear()
        errors: dict[Key, LinkspanError] = {("Key", name): KernelError(why) for name, why in failed.items()}
        machine.reconciler.failing = {**machine.reconciler.failing, **errors}
        with caplog.at_level(logging.WARNING):
            healer.record(Report([], errors))
        return [record.getMessage().partition(": ")[2] for record in caplog.records]

    assert told(x="add a", y="add a") == ["add a"]
    assert told(x="add a") == told() == told(y="add a") == []
    assert told(x="add b", y="add a") == ["add b"]
    assert told(x="add b") == []
    machine.reconciler.failing = {}
    assert told() == []
    assert told(x="add a") == ["add a"]


@pytest.mark.parametrize("error", [LinkspanError("the store is away"), RuntimeError("a fault")])
def test_what_fails_before_a_look_at_the_kernel_does_not_skip_it(tmp_path: Path, error: Exception) -> None:
    """If facts cannot be read, rules are still repaired; the check is tried again."""
    machine = MemoryMachine()
    machine.reconciler = reconciler = Observed()

    async def fails() -> None:
        raise error

    async def mended() -> None:
        healer = healer_of(machine, tmp_path, fails)
        healer._dirty, wanted = {NftTable}, {NftTable}
        healer._wake.set()
        task = asyncio.create_task(healer._mend())
        await eventually(lambda: len(reconciler.seen) >= 2, "the second look", 10)
        task.cancel()
        assert reconciler.seen[0] == wanted == reconciler.seen[1]

    asyncio.run(mended())


class Silent:
    """Events of a kernel in which nothing happens."""

    actor = ""

    def __init__(self, *_arguments: object) -> None:
        self.socket, self._other = socket.socketpair()

    def dirty(self) -> set[type[State]]:
        """Return no kinds."""
        return set()


class Unasked(NeighbourDriver):
    """Neighbour entries that nobody looks at."""

    def __init__(self) -> None:
        self.own = {}


class Still(LinkDriver):
    """Links of which none is being deleted."""

    def __init__(self) -> None: ...

    @property
    def leaving(self) -> Leaving:
        """Return none."""
        return {}


class Helpers(ProcessDriver):
    """Helpers of which none dies."""

    def __init__(self) -> None:
        self._end, self._other = socket.socketpair()

    def fileno(self) -> int:
        """Return a descriptor that is never readable."""
        return self._end.fileno()


class Watched(MemoryMachine):
    """A machine with what the healer watches."""

    def __init__(self) -> None:
        super().__init__()
        self.links, self.neighbours, self.processes = Still(), Unasked(), Helpers()

    def ports(self) -> frozenset[int]:
        """Return no netlink sockets."""
        return frozenset()


def test_healing_goes_on_after_a_defect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its task is supervised: it begins again, and repairs what was noticed before the defect."""
    monkeypatch.setattr(supervise, "FIRST", 0.01)
    monkeypatch.setattr(healer_module, "RouteEvents", Silent)
    monkeypatch.setattr(healer_module, "NftEvents", Silent)
    defects = [RuntimeError("a defect")]

    async def mended() -> None:
        machine = Watched()
        machine.reconciler = reconciler = Observed()
        healer = healer_of(machine, tmp_path, nothing)
        settle = healer._settle

        async def once() -> None:
            if defects:
                raise defects.pop()
            await settle()

        monkeypatch.setattr(healer, "_settle", once)
        await healer.start()
        healer._dirty = {NftTable}
        healer._wake.set()
        await eventually(lambda: {NftTable} in reconciler.seen, "the look after the defect", 10)
        await healer.stop()
        assert not defects

    asyncio.run(mended())


def test_what_is_imposed_on_containers_is_looked_at_inside_of_them(tmp_path: Path) -> None:
    """Where there is such a state: no event tells of a limit there that is gone."""
    machine = MemoryMachine()
    machine.reconciler = reconciler = Observed()
    healer = healer_of(machine, tmp_path, nothing)
    asyncio.run(healer._see_imposed())
    assert reconciler.seen == []
    states = [TokenBucket("lsp1", 1000, 1000), TokenBucket("eth0", 1000, 1000, 7), Interface(8, "eth0", b"", 1500)]
    reconciler.desired.replace(("test",), states)
    asyncio.run(healer._see_imposed())
    assert (reconciler.seen, reconciler.inside) == ([{TokenBucket}], {7})


def test_what_a_container_does_not_let_impose_is_no_fault_of_its_host(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that renamed its interface, for example: a warning names it, and the host's own failures still count."""
    machine = MemoryMachine()
    healer, reconciler = healer_of(machine, tmp_path, nothing), machine.reconciler
    limits = [TokenBucket("lsp1", 1000, 1000), TokenBucket("eth0", 1000, 1000, 7), TokenBucket("eth0", 1000, 1000, 8)]
    reconciler.desired.replace(("test",), limits)
    monkeypatch.setattr(healer._registry, "inside", lambda netns: {7: "shop", 8: "till"}.get(netns, ""))
    reconciler.failing = {limit.key: KernelError(f"no {limit.device}") for limit in limits}
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            healer.record(Report([], dict(reconciler.failing)))
    told = ["cannot heal: in shop: no eth0", "cannot heal: in till: no eth0", "cannot heal: no lsp1"]
    assert [record.getMessage() for record in caplog.records] == told
    assert drift(reconciler, lambda _key: False) == ["no lsp1"]
