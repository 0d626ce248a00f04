"""The look at settings each second: the worker is asked only if something may have to be repaired."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

import pytest

from linkspan.agent.healer import FEW, Healer
from linkspan.agent.metrics import Metrics
from linkspan.core.reconcile import Reconciler, Report
from linkspan.core.states.host import LinkSysctl, State
from linkspan.store.memory import Memory
from support.memory_machine import MemoryDriver, MemoryMachine, registry_of
from support.records.replicas import Member, network


class Asked(Reconciler):
    """A reconciler of which all is settled or not, and which writes down what it is asked."""

    def __init__(self, settled: bool) -> None:
        super().__init__(MemoryDriver().served())
        self.settled = settled
        self.asked: list[str] = []

    def is_settled(self, kinds: Iterable[type[State]]) -> bool:
        """Answer."""
        assert LinkSysctl in set(kinds)
        self.asked.append("settled?")
        return self.settled

    def resync(
        self, kinds: Iterable[type[State]] | None = None, namespaces: Iterable[int] = (), *, log: bool = True
    ) -> Report:
        """Repair nothing."""
        assert not [*namespaces]
        assert log
        assert kinds is not None
        assert LinkSysctl in set(kinds)
        self.asked.append("resync")
        return Report()


async def nothing() -> None:
    """Look at nothing."""


@pytest.mark.parametrize(
    ("containers", "settled", "asked"),
    [
        (FEW, True, ["settled?"]),
        (FEW, False, ["settled?", "resync"]),
        (FEW + 1, True, ["resync"]),
    ],
)
def test_settled_settings_need_no_resync(tmp_path: Path, containers: int, settled: bool, asked: list[str]) -> None:
    """With many containers even the question would stop the loop for too long."""
    machine = MemoryMachine()
    machine.reconciler = reconciler = Asked(settled)
    member = Member(Memory(), tmp_path, "h1")
    for number in range(containers):
        member.holds(network(), f"c{number}", f"10.244.0.{number + 2}/32")
    healer = Healer(registry_of(member, tmp_path, machine), Metrics(), nothing, nothing, nothing, nothing)
    asyncio.run(healer._see_settings())
    assert reconciler.asked == asked
