"""Judgement: what of a resync's repairs may be done now, while other programs fight for objects (``fights``)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from linkspan.core.desired import Change, Desired
from linkspan.core.errors import LinkspanError
from linkspan.core.fights import Contested, Fight, Fights
from linkspan.core.kinds import Kind, Kinds, Link, netns_of
from linkspan.core.states.host import HOST, Key, State

_NEVER = object()


class Judgement:
    """The faults that one resync finds: each object counts once, however many passes there are."""

    def __init__(self, kinds: Kinds, fights: Fights, desired: Desired) -> None:
        self._kinds = kinds
        self._fights = fights
        self._desired = desired
        self._judged: dict[Key, Fight | None] = {}
        """By subject: the fight because of which it stays wrong."""
        self._repaired: dict[Key, State | None] = {}
        """By subject: the wrong state."""
        self._parents: set[Key] = set()

    def held(
        self, change: Change, seen: Mapping[Key, State], kinds: Sequence[type[State]]
    ) -> tuple[dict[Key, LinkspanError], set[Key]]:
        """Return what must not be put back now, with the reason, and what the next resync repairs.

        The latter is wrong again, exactly as before this resync put it back.
        """
        states = [*change.put, *change.delete]
        self._parents.update(name for state in states for name in self._names(state))
        held: dict[Key, LinkspanError] = {}
        left: set[Key] = set()
        contested = self._contested()
        for state in states:
            key = self._kinds.subject(state)
            falls = any(p in self._parents or (p in contested and p != key) for p in self._lost_with(state))
            if falls or netns_of(state) != HOST or not self._kinds.of(state).counted:
                continue
            if key not in self._judged:
                self._judged[key] = self._fights.wrong(state, seen.get(state.key))
                if self._fights.fought(state):
                    contested |= {key, *self._kinds.makes(state)}
            if (fight := self._judged[key]) is not None:
                held[state.key] = Contested(fight.message, state.key in seen)
            elif not self._kinds.guards(state) and self._repaired.get(key, _NEVER) == seen.get(state.key):
                left.add(state.key)
        self._fights.right(kinds, {self._kinds.subject(state) for state in states})
        gone = {link for s in states if s.key in left and s.key not in seen for link in self._kinds.makes(s)}
        left |= {state.key for state in states if not gone.isdisjoint(self._kinds.on(state))}
        return held, left

    def fought(self, states: Iterable[State]) -> set[Key]:
        """Return the keys of the states that a fight is about, or what they are lost with."""
        contested = self._contested()
        return {
            state.key
            for state in states
            if self._fights.fought(state) or not contested.isdisjoint(self._lost_with(state))
        }

    def note(self, state: State, seen: State | None, error: LinkspanError | None) -> None:
        """Record that a state was put back or deleted, ``seen`` being what was there; or the kernel's ``error``.

        A guard that cannot be put is not in force. What cannot be deleted, a chain that is in use, leaves all in force.
        """
        key = self._kinds.subject(state)
        if key not in self._judged:
            return
        if error is not None:
            if self._desired.state(state.key) is None and self._kinds.guards(state):
                return
            self._fights.failed(state, error.message)
        elif key not in self._repaired:
            self._repaired[key] = seen
            self._fights.repaired(state, seen)

    def _contested(self) -> set[Key]:
        """Return the fights, by the names that ``_lost_with`` gives."""
        found: set[Key] = set()
        for fight in self._fights.open():
            found.add(fight.key)
            found.update(self._kinds.makes(self._desired.state(fight.key) or fight.state))
        return found

    def _names(self, state: State) -> Iterator[Key]:
        """Yield the names that ``_lost_with`` uses for a state, and what is lost with it."""
        kind = self._kinds.of(state)
        yield state.key
        yield from kind.makes(state)
        yield from ((other.__name__, *link) for other in kind.takes_along for link in kind.on(state))

    def _lost_with(self, state: State) -> Iterator[Key]:
        """Yield what an object is lost with, or changed with."""
        kind = self._kinds.of(state)
        yield from kind.lost_with(state)
        for link in kind.on(state):
            yield link
            yield (kind.name, *link)


class Ports:
    """Containers' ports: they are down while a fight keeps the guards of their container out of force."""

    def __init__(self, kinds: Kinds, fights: Fights, desired: Desired) -> None:
        self._kinds = kinds
        self._fights = fights
        self._desired = desired

    def shut(self, states: Sequence[State]) -> tuple[list[State], dict[Key, LinkspanError]]:
        """Return the states that may be put, with unguarded ports down, and why the others may not be put."""
        if not self._fights.closed():
            return list(states), {}
        closing = dict(self._closing())
        put: list[State] = []
        refused: dict[Key, LinkspanError] = {}
        for state in states:
            kind = self._kinds.of(state)
            if kind.shut is not None and self._guarding(kind, state) is not None:
                put.append(kind.shut(state))
            elif kind.falls and (fights := [closing[link] for link in kind.on(state) if link in closing]):
                refused[state.key] = Contested(fights[0].message, there=False)
            else:
                put.append(state)
        return put, refused

    def _guarding(self, kind: Kind[Any], state: State) -> Fight | None:
        """Return the fight because of which a container's port is down."""
        return self._fights.closing(kind.makes(state)[0][1], bridged=bool(kind.on(state)))

    def _closing(self) -> Iterator[tuple[Link, Fight]]:
        """Yield the links of the ports that are down, each with the fight because of which it stays empty."""
        for kind in self._kinds:
            for state in self._desired.states((kind.state,)).values() if kind.shut is not None else ():
                if (fight := self._guarding(kind, state)) is not None:
                    yield kind.makes(state)[0], fight
