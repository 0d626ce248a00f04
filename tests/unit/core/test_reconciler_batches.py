"""Batches of the reconciler: many sources cost each driver one call, and a disagreement concerns one source."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pytest

from linkspan.core.driver_contract import Support
from linkspan.core.errors import Conflict, KernelError, LinkspanError
from linkspan.core.reconcile import Reconciler
from linkspan.core.states.host import Bridge, Key, NftChain, State
from linkspan.kernel.kinds import kinds

MANY = 1000


class Counting:
    """A driver that writes down its calls, and refuses what is called ``br7``."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def probe(self) -> Support:
        """Return support."""
        return Support("kernel")

    def observe(self, netns: int) -> Iterable[State]:
        """Return nothing."""
        return []

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Note the numbers of states."""
        self.calls.append((len(put), len(delete)))
        return {s.key: KernelError("it is refused") for s in put if "br7" in s.key}


def bridge(number: int, mtu: int = 1500) -> Bridge:
    """Return the N-th bridge."""
    return Bridge(f"br{number}", bytes(6), mtu)


def source(number: int) -> tuple[str, ...]:
    """Return the source of the N-th peer."""
    return ("peer", "demo", str(number))


def test_each_driver_is_called_once_however_many_sources_there_are() -> None:
    """Both where they come and where they go; what the kernel refuses is known by its source."""
    driver = Counting()
    reconciler = Reconciler([(kinds()[Bridge], driver)])
    assert reconciler.each({source(n): [bridge(n)] for n in range(MANY)}) == {}
    assert driver.calls == [(MANY, 0)]
    assert [n for n in range(MANY) if reconciler.unwell(source(n))] == [7]
    driver.calls.clear()
    assert reconciler.each({source(n): [] for n in range(MANY)}) == {}
    assert driver.calls == [(0, MANY)]
    assert not reconciler.failing


def test_a_source_that_disagrees_is_named_and_the_others_are_applied() -> None:
    """It has no states afterwards, also none of those that it had before."""
    driver = Counting()
    reconciler = Reconciler([(kinds()[Bridge], driver)])
    reconciler.change(("other",), [bridge(2)])
    reconciler.each({source(1): [bridge(1)]})
    driver.calls.clear()
    wanted = {source(0): [bridge(0)], source(1): [bridge(1), bridge(2, mtu=9000)], source(3): [bridge(3)]}
    refused = reconciler.each(wanted)
    assert list(refused) == [source(1)]
    assert "other" in refused[source(1)].message
    assert reconciler.desired.sources().keys() == {("other",), source(0), source(3)}
    assert driver.calls == [(2, 0), (0, 1)]
    assert reconciler.desired.owners(bridge(2).key) == (("other",),)


def test_one_source_that_disagrees_stops_no_change_of_the_others() -> None:
    """It keeps what it has: fewer rules could be a hole."""
    driver = Counting()
    reconciler = Reconciler([(kinds()[Bridge], driver)])
    reconciler.changes({("other",): [bridge(2)], source(1): [bridge(1)]})
    driver.calls.clear()
    with pytest.raises(Conflict, match=r"peer demo 1 and other disagree on Bridge br2"):
        reconciler.changes({source(1): [bridge(2, mtu=9000)], source(3): [bridge(3)]})
    assert reconciler.desired.sources().keys() == {("other",), source(1), source(3)}
    assert reconciler.desired.owners(bridge(1).key) == (source(1),)
    assert driver.calls == [(1, 0)]


def test_what_moves_from_one_source_to_another_in_a_batch_is_not_deleted() -> None:
    """The one that drops it comes first: otherwise the two would disagree."""
    driver = Counting()
    reconciler = Reconciler([(kinds()[Bridge], driver)])
    reconciler.each({source(1): [bridge(1)]})
    driver.calls.clear()
    assert reconciler.each({source(1): [], source(2): [bridge(1, mtu=1400)]}) == {}
    assert driver.calls == [(1, 0)]


def test_a_chain_that_another_source_has_is_not_put_again() -> None:
    """It would be emptied and filled. One that was refused is tried again; the last source takes it away."""
    driver = Counting()
    reconciler = Reconciler([(kinds()[NftChain], driver)])
    chain, refused = (NftChain("inet", "linkspan", name, "", ("accept",)) for name in ("one", "br7"))
    for number in (1, 2):
        reconciler.change(source(number), [chain, refused])
    assert driver.calls == [(2, 0), (1, 0)]
    driver.calls.clear()
    reconciler.change(source(1), [])
    assert driver.calls == []
    reconciler.change(source(2), [])
    assert driver.calls == [(0, 2)]
