"""Desired states by source; each key knows its owners.

A source is the reason for states: ``("network", "demo")``, ``("attachment", ID, IFNAME)``. Equal states of
several sources merge, and stay until the last source drops them. Different states with one key are a conflict
that names both sources.
"""

from __future__ import annotations

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
    """States by source, and owners by key; to replace a source costs only its own size."""

    def __init__(self) -> None:
        self._sources: dict[Source, dict[Key, State]] = {}
        self._owners: dict[object, dict[Key, dict[Source, State]]] = {}
        """By the kind's name (a key's first part), so that observing a few objects costs nothing for the others."""

    def replace(self, source: Source, states: Iterable[State]) -> Change:
        """Make these the states of a source, and return what to put and to delete.

        Raises Conflict, and changes nothing, if another source has a different state with the same key.
        """
        new = {state.key: state for state in states}
        for key, state in new.items():
            kind = self._owners.get(key[0])
            if kind is None or key not in kind:  # as most of many new peers' states
                continue
            for other, theirs in kind[key].items():
                if other != source and theirs != state:
                    names = " and ".join(" ".join(s) for s in (source, other))
                    raise Conflict(f"{names} disagree on {' '.join(map(str, key))}")
        old = self._sources.get(source, {})
        put = [state for key, state in new.items() if old.get(key) != state] if old else [*new.values()]
        gone = old.keys() - new.keys() if old else set()
        delete = [state for key, state in old.items() if key in gone and self._of(key).keys() == {source}]
        for key in gone:
            owners = self._of(key)
            del owners[source]
            if not owners:
                del self._owners[key[0]][key]
        for key, state in new.items():
            kind = self._owners.get(key[0])
            if kind is None:
                kind = self._owners[key[0]] = {}
            if key in kind:
                kind[key][source] = state
            else:
                kind[key] = {source: state}
        if new:
            self._sources[source] = new
        else:
            self._sources.pop(source, None)
        return Change(tuple(put), tuple(delete))

    def _of(self, key: Key) -> dict[Source, State]:
        kind = self._owners.get(key[0])
        return {} if kind is None else kind.get(key, {})

    def states(self, kinds: tuple[type[State], ...] | None = None) -> dict[Key, State]:
        """Return the desired states by key: of these kinds or of all."""
        names = list(self._owners) if kinds is None else [kind.__name__ for kind in kinds]
        return {
            key: next(iter(owners.values()))
            for name in names
            for key, owners in list(self._owners.get(name, {}).items())
        }

    def state(self, key: Key) -> State | None:
        """Return the desired state with this key, None if there is none."""
        return next(iter(self._of(key).values()), None)

    def sources(self) -> dict[Source, dict[Key, State]]:
        """Return the states of every source."""
        return self._sources

    def owners(self, key: Key) -> tuple[Source, ...]:
        """Return the sources that want the object with this key."""
        return tuple(self._of(key))
