"""Looks of the reconciler: what is observed is compared one by one, and only what differs is kept."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable, Iterator, Mapping, Sequence

from linkspan.core.driver_contract import Support
from linkspan.core.errors import LinkspanError
from linkspan.core.reconcile import Reconciler
from linkspan.core.states.host import HOST, FdbEntry, Key, State
from linkspan.kernel.kinds import kinds


def entry(number: int, remote: int = 1) -> FdbEntry:
    """Return the entry of a peer."""
    return FdbEntry("lsx64", number.to_bytes(6, "big"), bytes([10, 0, 0, remote]))


class Dump:
    """A driver that reports ``there``."""

    def __init__(self, there: Iterable[FdbEntry]) -> None:
        self.there = there

    def probe(self) -> Support:
        """Return support."""
        return Support("kernel")

    def observe(self, netns: int) -> Iterator[State]:
        """Yield the entries."""
        return iter(self.there if netns == HOST else ())

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Take everything."""
        return {}


def looking(desired: Iterable[FdbEntry], there: Iterable[FdbEntry]) -> Reconciler:
    """Return a reconciler with a driver that reports ``there``."""
    reconciler = Reconciler([(kinds()[FdbEntry], Dump(there))])
    reconciler.desired.replace(("peer", "demo", "h2"), desired)
    return reconciler


def test_a_look_tells_what_is_added_changed_and_removed() -> None:
    """And nothing of what is as desired."""
    right, missing, other, extra = entry(1), entry(2), entry(3), entry(4)
    change, words = looking([right, missing, other], [right, entry(3, 9), extra]).difference()
    assert set(change.put) == {missing, other}
    assert change.delete == (extra,)
    assert words == {missing.key: "added", other.key: "changed", extra.key: "removed"}


def test_of_two_objects_with_one_key_the_last_one_counts() -> None:
    """A driver may report such: the kernel has both, and what comes first is used by nobody."""
    wanted, other = entry(1), entry(1, 9)
    change, words = looking([wanted], [wanted, other]).difference()
    assert (change.put, change.delete, words) == ((wanted,), (), {wanted.key: "changed"})
    change, words = looking([wanted], [other, wanted]).difference()
    assert (change.put, change.delete, words) == ((), (), {})


def test_a_look_at_what_is_as_desired_keeps_no_second_copy_of_it() -> None:
    """A host with 1,000 peers has 10,000 objects for them, and looks at all of them each minute."""
    numbers = range(5000)
    reconciler = looking(map(entry, numbers), (entry(number) for number in numbers))
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        change, _ = reconciler.difference()
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert not change.put
    assert not change.delete
    assert peak / len(numbers) < 250
