"""Settled drivers: all that they observe on the host is as desired, and neither has changed since that was found.

A host looks at its settings each second, because they have no events, and each minute at everything: among 1,000 others
that is 10,000 objects. To find out that the kernel reports what it reported before takes much less than to compare.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from linkspan.core.desired import Desired
from linkspan.core.driver_contract import Driver, Stamped
from linkspan.core.kinds import Kind
from linkspan.core.states.host import State

Mark = tuple[object, object]
"""A driver's stamp, and the number of changes of what is desired of its kinds."""


class Settled:
    """The drivers of which all was as desired when they were compared last, each with its mark then."""

    def __init__(self, served: Iterable[tuple[Kind[Any], Driver]], desired: Desired) -> None:
        self._desired = desired
        self._stamps: dict[Driver, Callable[[], object]] = {}
        self._kinds: dict[Driver, set[type[State]]] = {}
        """The kinds of each driver with a stamp."""
        for kind, driver in served:
            if isinstance(driver, Stamped):
                self._stamps[driver] = driver.stamp
                self._kinds.setdefault(driver, set()).add(kind.state)
        self._marks: dict[Driver, Mark] = {}

    def mark(self, driver: Driver) -> Mark | None:
        """Return the driver's mark now, None if it has no stamp. Raises what ``observe`` raises."""
        if (stamp := self._stamps.get(driver)) is None:
            return None
        return stamp(), self._desired.changes(self._kinds[driver])

    def hold(self, drivers: Collection[Driver]) -> bool:
        """Return whether all of these drivers are settled now. Raises what ``observe`` raises."""
        return self._marks.keys() >= {*drivers} and all(self.holds(driver, self.mark(driver)) for driver in drivers)

    def holds(self, driver: Driver, mark: Mark | None) -> bool:
        """Return whether a driver that has this mark now is settled."""
        return mark is not None and self._marks.get(driver) == mark

    def note(self, marks: Mapping[Driver, Mark | None], compared: Iterable[type[State]], wrong: set[str]) -> None:
        """Record the result for drivers that were observed, by their marks before that.

        All objects of the kinds ``compared`` are as desired but those of the kinds with the names ``wrong``. A driver
        that has another mark by now is not settled: it may have observed more than one moment.
        """
        there = set(compared)
        for driver, mark in marks.items():
            if mark is None:
                continue
            kinds = self._kinds[driver]
            self._marks.pop(driver, None)
            if kinds <= there and wrong.isdisjoint(kind.__name__ for kind in kinds) and self.mark(driver) == mark:
                self._marks[driver] = mark
