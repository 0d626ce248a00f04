"""Failures of the reconciler are replaced and never changed: the loop reads them while the worker works."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from linkspan.core.driver_contract import Support
from linkspan.core.errors import KernelError, LinkspanError
from linkspan.core.reconcile import Reconciler
from linkspan.core.states.host import HOST, Bridge, Key, State
from linkspan.kernel.kinds import kinds


class Refusing:
    """A driver of bridges that refuses those in ``refused``."""

    def __init__(self) -> None:
        self.refused: set[str] = set()
        self.there: dict[Key, State] = {}

    def probe(self) -> Support:
        """Return support."""
        return Support("kernel")

    def observe(self, netns: int) -> Iterable[State]:
        """Return the bridges."""
        return list(self.there.values()) if netns == HOST else []

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Make and remove bridges."""
        for state in delete:
            self.there.pop(state.key, None)
        refused = {state.key for state in put if state.key[1] in self.refused}
        self.there.update((state.key, state) for state in put if state.key not in refused)
        return {key: KernelError("it is refused") for key in refused}


def test_failures_that_were_told_stay_as_they_were() -> None:
    """One fails again, one is repaired, and one is no longer wanted."""
    driver = Refusing()
    reconciler = Reconciler([(kinds()[Bridge], driver)])
    driver.refused = {"br1", "br2"}
    states = [Bridge(f"br{number}", bytes(6), 1500) for number in (1, 2, 3)]
    reconciler.change(("network", "demo"), states)
    seen = [(reconciler.failing, {("Bridge", "br1"), ("Bridge", "br2")})]
    driver.refused = {"br2", "br3"}
    driver.there.clear()
    reconciler.resync(log=False)
    seen.append((reconciler.failing, {("Bridge", "br2"), ("Bridge", "br3")}))
    driver.there = {state.key: state for state in states}
    reconciler.resync(log=False)
    seen.append((reconciler.failing, set()))
    assert [(set(failing), wanted) for failing, wanted in seen] == [(wanted, wanted) for _, wanted in seen]
    assert reconciler.desired.owners(("Bridge", "br1")) == (("network", "demo"),)
