"""Difference between two regimes: the effect of a change of policies on rules and elements."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import msgspec

from linkspan.policy.judge import Section
from linkspan.policy.model import DIRECTIONS, Direction
from linkspan.policy.readings import readings
from linkspan.policy.regime import Regime


class Part(msgspec.Struct, frozen=True):
    """A policy's part of the rules, in one reading and direction: all that its own sets and chains follow from."""

    reading: str
    direction: Direction
    section: Section

    @property
    def name(self) -> tuple[str, ...]:
        """Return a name that no other part of a regime has."""
        return self.reading, self.direction, self.section.called

    @property
    def way(self) -> tuple[object, ...]:
        """Return what the chains of endpoints that it is about follow from."""
        one = self.section
        return one.subject, one.tier, one.order, bool(one.clauses), one.isolates, one.passes


@functools.lru_cache(2)
def parts(regime: Regime) -> Mapping[tuple[str, ...], Part]:
    """Return the parts of a regime, by name; those of the last two are kept, which changes compare."""
    every = (
        Part(reading.name, direction, section)
        for reading in readings(regime)
        for direction in DIRECTIONS
        for section in reading.judge.sections[direction]
    )
    return {part.name: part for part in every}


class Difference(msgspec.Struct, frozen=True):
    """The effect of a change of policies on rules and elements; everything else stays.

    ``put`` are new and changed parts, ``gone`` the names of former ones. ``concerned`` are the digests of selectors of
    either regime: what they select on this host may need other elements. ``gained`` and ``lost`` are those of peers,
    the only ones that matter for other hosts' endpoints.
    """

    put: tuple[Part, ...]
    gone: tuple[tuple[str, ...], ...]
    concerned: frozenset[str]
    gained: frozenset[str]
    lost: frozenset[str]


def difference(before: Regime, after: Regime) -> Difference:
    """Return what differs between two regimes."""
    if before is after:
        return Difference((), (), frozenset(), frozenset(), frozenset())
    old, new = parts(before), parts(after)
    put = tuple(part for name, part in new.items() if old.get(name) != part)
    gone = tuple(name for name in old if name not in new)
    gained, lost = after.peers - before.peers, before.peers - after.peers
    found = set(gained | lost | (before.askers ^ after.askers))
    for direction in DIRECTIONS:
        found |= before.watched[direction] ^ after.watched[direction]
    for name in (*gone, *(part.name for part in put)):
        both = [part for part in (old.get(name), new.get(name)) if part is not None]
        if len(both) == 1 or both[0].way != both[1].way:  # otherwise only the rules in its own chains differ
            found |= {part.section.subject for part in both}
    return Difference(put, gone, frozenset(found), gained, lost)
