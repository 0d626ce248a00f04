"""Desired states by source, and by key.

A source is the reason for states: ``("network", "demo")``, ``("attachment", ID, IFNAME)``. Equal states of
several sources merge, and stay until the last source drops them. Different states with one key are a conflict
that names both sources.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import msgspec

from linkspan.core.errors import Conflict
from linkspan.core.states.host import Key, State

Source = tuple[str, ...]


class Change(msgspec.Struct, frozen=True):
    """States to put and to delete, in that order."""

    put: tuple[State, ...]
    delete: tuple[State, ...]


class Desired:
    """States by source, and by key; to replace a source costs only its own size."""

    def __init__(self) -> None:
        self._sources: dict[Source, dict[Key, State]] = {}
        self._states: dict[object, dict[Key, State]] = {}
        """By the kind's name (a key's first part), so that observing a few objects costs nothing for the others."""
        self._shared: dict[Key, int] = {}
        """How many sources want a state, if several do: few are, and with a thousand peers there are 10,000 others."""
        self._changes: defaultdict[type[State], int] = defaultdict(int)
        """By kind: how often its states changed."""

    def replace(self, source: Source, states: Iterable[State]) -> Change:
        """Make these the states of a source, and return what to put and to delete.

        Raises Conflict, and changes nothing, if another source has a different state with the same key.
        """
        new, old = {state.key: state for state in states}, self._sources.get(source, {})
        for key, state in new.items():
            kind = self._states.get(key[0])
            if kind is None or key not in kind or kind[key] == state or (key in old and key not in self._shared):
                continue
            other = next(one for one in self.owners(key) if one != source)
            names = " and ".join(" ".join(s) for s in (source, other))
            raise Conflict(f"{names} disagree on {' '.join(map(str, key))}")
        put = [state for key, state in new.items() if old.get(key) != state] if old else [*new.values()]
        gone = [key for key in old if key not in new]
        for changed in {*map(type, put), *(type(old[key]) for key in gone)}:
            self._changes[changed] += 1
        delete = list[State]()
        for key in gone:
            if (others := self._shared.pop(key, 1) - 1) == 0:
                del self._states[key[0]][key]
                delete.append(old[key])
            elif others > 1:
                self._shared[key] = others
        for key, state in new.items():
            kind = self._states.get(key[0])
            if kind is None:
                kind = self._states[key[0]] = {}
            if key in kind and key not in old:
                self._shared[key] = self._shared.get(key, 1) + 1
            kind[key] = state
        if new:
            self._sources[source] = new
        else:
            self._sources.pop(source, None)
        return Change(tuple(put), tuple(delete))

    def changes(self, kinds: Iterable[type[State]]) -> tuple[int, ...]:
        """Return how often the states of these kinds changed: equal numbers mean equal states."""
        return tuple(self._changes.get(kind, 0) for kind in kinds)

    def states(self, kinds: tuple[type[State], ...] | None = None) -> dict[Key, State]:
        """Return the desired states by key: of these kinds or of all."""
        names = list(self._states) if kinds is None else [kind.__name__ for kind in kinds]
        return {key: state for name in names for key, state in list(self._states.get(name, {}).items())}

    def state(self, key: Key) -> State | None:
        """Return the desired state with this key, None if there is none."""
        return self._states.get(key[0], {}).get(key)

    def unwanted(self, states: Iterable[State]) -> list[State]:
        """Return those of some states whose objects no source wants."""
        return [state for state in states if (key := state.key) not in self._states.get(key[0], ())]

    def sources(self) -> dict[Source, dict[Key, State]]:
        """Return the states of every source."""
        return self._sources

    def is_shared(self, key: Key) -> bool:
        """Return whether several sources want the object with this key."""
        return key in self._shared

    def owners(self, key: Key) -> tuple[Source, ...]:
        """Return the sources that want the object with this key: all sources are searched."""
        return tuple(source for source, states in list(self._sources.items()) if key in states)
