"""Left objects: what the last agent put stays as it is, until a resync replaces all of it in one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from linkspan.core.desired import Change, Desired
from linkspan.core.kinds import Kinds
from linkspan.core.states.host import Key, State


class Left:
    """The kinds whose objects are left as they are, between ``begin`` and ``end``; at first there are none."""

    def __init__(self, kinds: Kinds, desired: Desired) -> None:
        self._all = kinds
        self._desired = desired
        self._kinds: frozenset[type[State]] = frozenset()
        self._there: Mapping[Key, State] = {}
        """What was there of these kinds at the beginning."""
        self._at_once: Callable[[State], bool] = lambda _state: False

    def begin(
        self, kinds: Iterable[type[State]], observed: Iterable[State], at_once: Callable[[State], bool]
    ) -> None:
        """Leave objects of these kinds, except new ones which are ``at_once`` and in objects that are as wanted."""
        self._kinds, self._at_once = frozenset(kinds), at_once
        self._there = {state.key: state for state in observed if type(state) in self._kinds}

    def end(self) -> None:
        """Leave nothing any more."""
        self._kinds, self._there = frozenset(), {}

    def without(self, change: Change) -> Change:
        """Return what of a change does not wait."""
        if not self._kinds:
            return change
        put = (state for state in change.put if type(state) not in self._kinds or self._hurries(state))
        delete = (state for state in change.delete if type(state) not in self._kinds)
        return Change(tuple(put), tuple(delete))

    def _hurries(self, state: State) -> bool:
        """Return whether a state of a kind that is left is put all the same."""
        there = self._there
        if not self._at_once(state) or there.get(state.key) == state:
            return False
        holders = self._all.of(state).lost_with(state)
        return all(key in there and there[key] == self._desired.state(key) for key in holders)
