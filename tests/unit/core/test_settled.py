"""Settled drivers: what is as it was when all was right is not compared again, and anything else is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import pytest

from linkspan.core.driver_contract import Support
from linkspan.core.errors import KernelError, LinkspanError
from linkspan.core.reconcile import Reconciler
from linkspan.core.states.host import HOST, FdbEntry, Key, Neighbour, Route, State
from linkspan.kernel.kinds import kinds
from support.memory_machine import MemoryDriver

PEER = ("peer", "demo", "h2")
ENTRY, OTHER = (FdbEntry("lsx64", bytes([2, 0, 0, 0, 0, n]), bytes([10, 0, 0, n])) for n in (1, 2))
HOP = Neighbour("lsx64", bytes([10, 9, 0, 1]), ENTRY.mac)


class Kernel:
    """A driver of a kernel with these states, which counts how often it is observed."""

    def __init__(self) -> None:
        self.there: dict[Key, State] = {}
        self.looks = 0
        self.meanwhile: Sequence[State] = ()
        """What another program adds during the next observation, before the driver lists anything."""
        self.refuses = False

    def probe(self) -> Support:
        """Return support."""
        return Support("kernel")

    def stamp(self) -> object:
        """Return all of it."""
        return frozenset(self.there.values())

    def observe(self, netns: int) -> Iterator[State]:
        """Yield what is there."""
        self.looks += 1
        self.there.update((state.key, state) for state in self.meanwhile)
        self.meanwhile = ()
        return iter([*self.there.values()] if netns == HOST else ())

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Put and delete, or refuse all."""
        if self.refuses:
            return {state.key: KernelError("refused") for state in (*put, *delete)}
        self.there |= {state.key: state for state in put}
        for state in delete:
            self.there.pop(state.key, None)
        return {}


@pytest.fixture
def kernel() -> Kernel:
    """Return a kernel without anything."""
    return Kernel()


def settled(kernel: Kernel, wanted: Iterable[State] = (ENTRY, HOP)) -> Reconciler:
    """Return a reconciler that has found all as desired."""
    known = kinds()
    reconciler = Reconciler([(known[FdbEntry], kernel), (known[Neighbour], kernel)])
    reconciler.change(PEER, wanted)
    reconciler.resync()
    kernel.looks = 0
    return reconciler


def test_what_is_right_and_unchanged_is_not_compared_again(kernel: Kernel) -> None:
    """Whichever of the driver's kinds is looked at."""
    reconciler = settled(kernel)
    for some in (None, [FdbEntry], [Neighbour]):
        assert reconciler.resync(some).heals == []
    assert kernel.looks == 0


def test_whether_all_is_settled_is_known_without_a_comparison(kernel: Kernel) -> None:
    """Changes of other programs, failures, and states that nobody has compared need a resync, which repairs them."""
    reconciler = settled(kernel)
    assert reconciler.is_settled([FdbEntry, Neighbour])
    assert kernel.looks == 0
    del kernel.there[HOP.key]
    assert not reconciler.is_settled([FdbEntry])
    assert HOP.key not in kernel.there
    reconciler.resync()
    reconciler.resync()
    assert reconciler.is_settled([FdbEntry, Neighbour])
    kernel.refuses = True
    del kernel.there[ENTRY.key]
    reconciler.resync()
    kernel.there[ENTRY.key] = ENTRY
    assert not reconciler.is_settled([FdbEntry])


def test_a_driver_without_a_stamp_is_never_settled(kernel: Kernel) -> None:
    """Then no stamp is taken either: a resync takes them."""
    known = kinds()
    reconciler = Reconciler([(known[FdbEntry], kernel), (known[Route], MemoryDriver())])
    reconciler.resync()
    reconciler.resync()
    assert reconciler.is_settled([FdbEntry])
    assert not reconciler.is_settled([FdbEntry, Route])


@pytest.mark.parametrize("there", [{}, {ENTRY.key: ENTRY}, {one.key: one for one in (ENTRY, HOP, OTHER)}])
def test_what_another_program_changes_is_found(kernel: Kernel, there: dict[Key, State]) -> None:
    """Lost, partly lost, and added: each is repaired, and then all is settled again."""
    reconciler = settled(kernel)
    right, kernel.there = kernel.there, dict(there)
    assert reconciler.resync().heals
    assert kernel.there == right
    kernel.looks = 0
    assert reconciler.resync().heals == []
    assert kernel.looks == 0


def test_another_desire_is_compared(kernel: Kernel) -> None:
    """Also one that nobody has put, and the end of one that nobody has deleted."""
    reconciler = settled(kernel)
    reconciler.desired.replace(PEER, [ENTRY, HOP, OTHER])
    assert [heal.what for heal in reconciler.resync().heals] == ["added"]
    reconciler.desired.replace(PEER, [ENTRY, HOP])
    assert [heal.what for heal in reconciler.resync().heals] == ["removed"]


def test_a_look_at_one_kind_settles_nothing(kernel: Kernel) -> None:
    """The driver's stamp is of all its kinds."""
    reconciler = settled(kernel)
    del kernel.there[HOP.key]
    assert reconciler.resync([FdbEntry]).heals == []
    assert [heal.kind for heal in reconciler.resync().heals] == ["Neighbour"]


def test_a_change_during_the_look_settles_nothing(kernel: Kernel) -> None:
    """The stamp from before it is of another moment, at which an object was missing: that may come again."""
    reconciler = settled(kernel)
    right, kernel.there = kernel.there, {HOP.key: HOP}
    kernel.meanwhile = [ENTRY]
    assert reconciler.resync().heals == []
    assert kernel.there == right
    del kernel.there[ENTRY.key]
    assert [heal.what for heal in reconciler.resync().heals] == ["added"]


def test_what_fails_is_tried_again(kernel: Kernel) -> None:
    """A failure that another program repairs is forgotten, so it has to be compared."""
    reconciler = settled(kernel)
    kernel.refuses = True
    del kernel.there[ENTRY.key]
    reconciler.resync()
    assert set(reconciler.failing) == {ENTRY.key}
    kernel.there[ENTRY.key] = ENTRY
    reconciler.resync()
    assert not reconciler.failing


def test_what_is_inside_a_container_is_looked_at(kernel: Kernel) -> None:
    """A stamp is of the host alone."""
    reconciler = settled(kernel)
    reconciler.resync(None, [4026532000])
    assert kernel.looks == 2
