"""Leftovers of the last agent: one resync replaces its rules, and new elements of its sets do not wait for that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from linkspan.core.errors import LinkspanError
from linkspan.core.reconcile import Reconciler
from linkspan.core.states.host import Key, NftChain, NftElement, NftSet, NftTable, State
from linkspan.kernel.drivers import nftables_objects
from support.memory_machine import MemoryDriver

WHERE = ("inet", "linkspan")
TABLE = NftTable(*WHERE)
SEALED = NftSet(*WHERE, "sealed4", "ipv4_addr", interval=True)
MACS = NftSet(*WHERE, "macs", "ether_addr")
OLD = NftElement(*WHERE, "sealed4", ("10.1.0.0/16",))
NEW = NftElement(*WHERE, "sealed4", ("10.2.0.0/16",))


class Counting(MemoryDriver):
    """A kernel in memory that counts how often it is looked at, and writes down what is put."""

    looks = 0

    def observe(self, netns: int) -> list[State]:
        """Count."""
        self.looks += 1
        return list(super().observe(netns))

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Note the states."""
        self.put = [*put]
        return super().apply(put, delete)


def left(*there: State) -> tuple[Reconciler, Counting]:
    """Return a reconciler that leaves these rules, and their kernel."""
    driver = Counting(there)
    reconciler = Reconciler(driver.served())
    reconciler.leave((kind.state for kind in nftables_objects.KINDS), nftables_objects.alone)
    return reconciler, driver


def chain(*rules: str) -> NftChain:
    """Return the chain of our guard."""
    return NftChain(*WHERE, "guard", "", rules)


def test_a_new_element_of_a_set_that_was_there_does_not_wait() -> None:
    """A network that became encrypted while no agent ran has its guard before its routes."""
    reconciler, driver = left(TABLE, SEALED, OLD, chain("drop"))
    reconciler.change(("rules",), [TABLE, SEALED, chain("drop", "accept")])
    reconciler.change(("network", "demo"), [OLD, NEW])
    assert driver.put == [NEW]
    assert driver.states[chain().key] == chain("drop")
    reconciler.change(("network", "demo"), [NEW])
    assert OLD.key in driver.states
    reconciler.resync(log=False)
    assert driver.states[chain().key] == chain("drop", "accept")
    assert OLD.key not in driver.states


def test_elements_of_new_or_changed_sets_wait_and_so_do_those_of_maps() -> None:
    """A set that is not filled, or a chain that is not there yet, would be in force too early, or be refused."""
    ways = NftSet(*WHERE, "sources4", "ipv4_addr", "verdict", interval=True)
    reconciler, driver = left(TABLE, ways, NftSet(*WHERE, "sealed4", "ipv4_addr"))
    way = NftElement(*WHERE, "sources4", ("10.2.0.0/16",), ("jump from4_24",))
    mac = NftElement(*WHERE, "macs", ("02:00:00:00:00:01",))
    reconciler.change(("rules",), [TABLE, SEALED, MACS, ways])
    reconciler.change(("network", "demo"), [NEW, mac, way])
    assert not driver.states.keys() & {NEW.key, mac.key, way.key}
    reconciler.resync(log=False)
    assert driver.states.keys() >= {NEW.key, mac.key, way.key}


def test_a_resync_of_some_kinds_ends_although_rules_are_left() -> None:
    """Leftovers are no difference: one look is enough."""
    reconciler, driver = left(TABLE)
    reconciler.change(("rules",), [TABLE, SEALED])
    driver.looks = 0
    report = reconciler.resync([NftTable, NftSet], log=False)
    assert not report.failed
    assert driver.looks == 1
    assert SEALED.key not in driver.states
