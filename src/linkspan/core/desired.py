"""Desired states by source; each key knows its owners.

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


class _Owned(msgspec.Struct, frozen=True, gc=False):
    """A desired state with its sources; those of one source share its tuple, because there are thousands."""

    state: State
    sources: tuple[Source, ...]


class Desired:
    """States by source, and owners by key; to replace a source costs only its own size."""

    def __init__(self) -> None:
        self._sources: dict[Source, dict[Key, State]] = {}
        self._owners: dict[object, dict[Key, _Owned]] = {}
        """By the kind's name (a key's first part), so that observing a few objects costs nothing for the others."""
        self._changes: defaultdict[type[State], int] = defaultdict(int)
        """By kind: how often its states changed."""

    def replace(self, source: Source, states: Iterable[State]) -> Change:
        """Make these the states of a source, and return what to put and to delete.

        Raises Conflict, and changes nothing, if another source has a different state with the same key.
        """
        new = {state.key: state for state in states}
        for key, state in new.items():
            kind = self._owners.get(key[0])
            if kind is None or key not in kind:  # as most of many new peers' states
                continue
            for other in kind[key].sources:
                if other != source and kind[key].state != state:
                    names = " and ".join(" ".join(s) for s in (source, other))
                    raise Conflict(f"{names} disagree on {' '.join(map(str, key))}")
        old = self._sources.get(source, {})
        put = [state for key, state in new.items() if old.get(key) != state] if old else [*new.values()]
        gone = [key for key in old if key not in new]
        for changed in {*map(type, put), *(type(old[key]) for key in gone)}:
            self._changes[changed] += 1
        delete, alone = list[State](), (source,)
        for key in gone:
            kind = self._owners[key[0]]
            owned = kind[key]
            if owned.sources == alone:
                del kind[key]
                delete.append(old[key])
            else:
                kind[key] = _Owned(owned.state, tuple(one for one in owned.sources if one != source))
        for key, state in new.items():
            kind = self._owners.get(key[0])
            if kind is None:
                kind = self._owners[key[0]] = {}
            if key not in kind:
                kind[key] = _Owned(state, alone)
                continue
            sources = kind[key].sources
            kind[key] = _Owned(state, sources if source in sources else sources + alone)
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
        names = list(self._owners) if kinds is None else [kind.__name__ for kind in kinds]
        return {
            key: owned.state for name in names for key, owned in list(self._owners.get(name, {}).items())
        }

    def state(self, key: Key) -> State | None:
        """Return the desired state with this key, None if there is none."""
        owned = self._of(key)
        return None if owned is None else owned.state

    def unwanted(self, states: Iterable[State]) -> list[State]:
        """Return those of some states whose objects no source wants."""
        return [state for state in states if (key := state.key) not in self._owners.get(key[0], ())]

    def sources(self) -> dict[Source, dict[Key, State]]:
        """Return the states of every source."""
        return self._sources

    def owners(self, key: Key) -> tuple[Source, ...]:
        """Return the sources that want the object with this key."""
        owned = self._of(key)
        return () if owned is None else owned.sources

    def _of(self, key: Key) -> _Owned | None:
        return self._owners.get(key[0], {}).get(key)
