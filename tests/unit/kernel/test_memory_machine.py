"""The kernel in memory below many unit tests (tests/support/memory_machine.py)."""

from __future__ import annotations

from linkspan.core.states.host import Veth
from support import driver_contract
from support.memory_machine import MemoryMachine

PAIR = Veth("lsp1", bytes(6), 1500, "", 4026532000, "eth0")


def test_the_kernel_in_memory_holds_the_contract_of_drivers() -> None:
    """As the real one does (tests/netns/test_driver_contract.py)."""
    driver_contract.holds(MemoryMachine().reconciler)


def test_it_has_what_a_test_gives_it() -> None:
    """States from the beginning are observed, and differ from an empty wish."""
    machine = MemoryMachine([PAIR])
    assert machine.reconciler.observed((Veth,)) == [PAIR]
    assert machine.reconciler.difference()[0].delete == (PAIR,)
