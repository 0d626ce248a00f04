"""Reconciler: makes observed equal desired. One thread at a time runs it.

Nothing else changes objects of the kernel that a state describes. Probes send packets (an announcement of an
address) and remove entries of connection tracking.

A *change* replaces one source's states and applies only the difference: the hot path of attach and detach. A
*resync* observes whole kinds and repairs what differs: at start, after a kernel event, by the timer. The
inside of a container's namespace belongs to the container. A resync looks there only when it is told to: at the
agent's start, and for limits of bandwidth. It adds what is missing, and removes only rules and tables of ours that
no source wants any more.

Objects that another program keeps changing stay wrong for a while, and a container whose guards are not in
force is cut off (``fights.py``, ``judging.py``). Only a resync counts that, and only for objects that are wrong by
themselves: not for those that were lost with a link, a table or a setting.

A pass puts in dependency order, then deletes in reverse order. It is repeated at most PASSES times: the
driver replaces an object if a value cannot be changed in place, and the next pass finds what was lost with
it. What the kernel refused is left to the next resync: a helper that ends at once would otherwise end three
times.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import msgspec

from linkspan.core.desired import Change, Desired, Source
from linkspan.core.driver_contract import Driver
from linkspan.core.errors import Conflict, LinkspanError, NotFound
from linkspan.core.fights import Contested, Fights
from linkspan.core.judgement import Judgement, Ports
from linkspan.core.kinds import Event, Kind, Kinds, Link, netns_of
from linkspan.core.left import Left
from linkspan.core.settled import Settled
from linkspan.core.states.host import HOST, Key, State

PASSES = 3


class Heal(msgspec.Struct, frozen=True):
    """One repair: ``what`` is added, changed or removed, in the namespace with the inode ``netns``."""

    at: float
    kind: str
    key: str
    what: str
    netns: int = HOST


class Report(msgspec.Struct):
    """Result of a resync: repairs, the number of further repairs in fights, and what could not be repaired."""

    heals: list[Heal] = []
    failed: dict[Key, LinkspanError] = {}
    fought: list[str] = []
    """The kind of each repair that is not in ``heals``, because its fight has been reported."""

    def add(self, state: State, what: str, *, fought: bool) -> None:
        """Record a repair; ``fought``: of an object in a fight, its own or that of what it is lost with."""
        if fought:
            self.fought.append(type(state).__name__)
        else:
            self.heals.append(Heal(time.time(), type(state).__name__, state.label, what, netns_of(state)))


class Reconciler:
    """Desired states, their drivers, and what could not be repaired so far."""

    def __init__(
        self,
        served: Iterable[tuple[Kind[Any], Driver]],
        release: Callable[[], None] = lambda: None,
        before: Callable[[Iterable[State]], None] = lambda _states: None,
        one_look: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        """Take the kinds, each with the driver that serves it here, as ``served``.

        ``release`` is called after each run, and ``before`` with the states that are about to be put. All
        drivers observe the host within ``one_look``.
        """
        self.desired = Desired()
        self.failing: Mapping[Key, LinkspanError] = {}
        """What could not be repaired. It is replaced and never changed, because the event loop iterates over
        it meanwhile."""
        self._release = release
        self._before = before
        self._one_look = one_look
        self._by_kind = {kind.state: (kind, driver) for kind, driver in served}
        self._settled = Settled(self._by_kind.values(), self.desired)
        self.kinds = Kinds(kind for kind, _ in self._by_kind.values())
        self._merging = frozenset(kind.state for kind in self.kinds if kind.merges)
        self.fights = Fights(self.kinds)
        self._ports = Ports(self.kinds, self.fights, self.desired)
        self._left = Left(self.kinds, self.desired)

    def leave(self, kinds: Iterable[type[State]], at_once: Callable[[State], bool]) -> None:
        """Leave objects of these kinds as they are until the next resync of all kinds.

        That resync puts all of them in one batch for their driver. The kinds must have one driver. Objects which
        are ``at_once`` do not wait for it if all that they are in is there as wanted.
        """
        left = tuple(kinds)
        there = (state for driver in self._drivers(left) for state in driver.observe(HOST))
        self._left.begin(left, there, at_once)

    def change(
        self, source: Source, states: Iterable[State], there: tuple[type[State], ...] = ()
    ) -> dict[Key, LinkspanError]:
        """Replace a source's states and apply the difference; return errors by key.

        States of the kinds ``there`` are in the kernel already as given, because somebody else made them.
        Raises Conflict if another source disagrees.
        """
        return self.changes({source: states}, there)

    def changes(
        self, sources: Mapping[Source, Iterable[State]], there: tuple[type[State], ...] = ()
    ) -> dict[Key, LinkspanError]:
        """Replace several sources' states and apply the differences in one batch; return errors by key.

        Raises Conflict for the first source that disagrees with another one. Such a source keeps its states; all others
        are replaced and applied.
        """
        batch = _Batch()
        refused: list[Conflict] = []
        try:
            for source, states in sources.items():
                try:
                    self._replace(batch, source, states, there)
                except Conflict as error:
                    refused.append(error)
        finally:
            failed = self._applied(batch)
        if refused:
            raise refused[0]
        return failed

    def each(self, sources: Mapping[Source, Iterable[State]]) -> dict[Source, Conflict]:
        """Replace the states of independent sources, and apply the differences in one batch.

        However many sources there are, each driver is called as often as for one. Return the sources that
        disagree with another one: they have no states afterwards. What the kernel refuses is in ``failing``.
        """
        batch = _Batch()
        refused: dict[Source, Conflict] = {}
        try:
            for source, states in sources.items():
                try:
                    self._replace(batch, source, states)
                except Conflict as error:
                    refused[source] = error
                    self._replace(batch, source, ())
        finally:
            self._applied(batch)
        return refused

    def _replace(
        self, batch: _Batch, source: Source, states: Iterable[State], there: tuple[type[State], ...] = ()
    ) -> None:
        """Replace a source's desired states, and add the difference to the batch. Raises Conflict."""
        before = self.desired.sources().get(source, {})
        change = self.desired.replace(source, states)
        if not self.kinds.devices.isdisjoint(map(type, change.put)):
            # Other states may have waited for a new one.
            devices = [s for s in change.put if type(s) in self.kinds.devices and self.kinds.makes(s)]
            batch.replaced |= any(s.key in before or self.failing for s in devices)
        put = [s for s in change.put if not isinstance(s, there)] if there else change.put
        if not self._merging.isdisjoint(map(type, put)):
            put = [state for state in put if not self._merged(state)]
        batch.put += put
        batch.delete += change.delete
        batch.sources += 1

    def _merged(self, state: State) -> bool:
        """Return whether another source has had a state put that has just become desired."""
        shared = type(state) in self._merging and self.desired.is_shared(state.key)
        return shared and state.key not in self.failing

    def _applied(self, batch: _Batch) -> dict[Key, LinkspanError]:
        put, delete = batch.put, batch.delete
        put.sort(key=self.kinds.rank)
        if batch.sources > 1:  # another source may want by now what one source dropped
            delete = self.desired.unwanted(delete)
        delete.sort(key=self.kinds.rank, reverse=True)
        try:
            failed = self.apply(Change(tuple(put), tuple(delete)))
            if batch.replaced:
                # Its driver may have replaced the device, and with it other sources' states were lost.
                fallen = self.kinds.after(Event.TUNNEL, Event.ADDRESS_GONE)
                failed |= self.resync(fallen, log=False).failed
            if readers := self._readers((*put, *delete)):
                failed |= self._read_anew(readers)
            return failed
        finally:
            self._release()

    def unwell(self, source: Source) -> LinkspanError | None:
        """Return why one of a source's states is not in the kernel, None if all are, as far as known."""
        if not self.failing:
            return None
        keys = self.desired.sources().get(source, {})
        return next((error for key, error in self.failing.items() if key in keys), None)

    def imposed_on(self, key: Key) -> int:
        """Return the namespace of the container on which a desired state is imposed, HOST if it is not such a state."""
        state = self.desired.state(key)
        return netns_of(state) if state is not None and self.kinds.of(state).imposed else HOST

    def _readers(self, states: Iterable[State]) -> set[type[State]]:
        """Return the kinds of the helper programs that read one of these states."""
        found = {self.kinds[kind].read_by for kind in set(map(type, states))}
        return {kind for kind in found if kind is not None and kind in self.kinds}

    def _read_anew(self, readers: Iterable[type[State]]) -> dict[Key, LinkspanError]:
        """Reload the programs that read the changes, except those that nobody wants (yet)."""
        change, _ = self.difference(readers)
        return self.apply(Change(change.put, ()))

    def apply(self, change: Change) -> dict[Key, LinkspanError]:
        """Put in the order given, then delete in the order given; continue past errors and return them."""
        change = self._left.without(change)
        put, failed = self._ports.shut(change.put)
        self._before(put)
        for driver, states in self._grouped(put):
            if waiting := self._without_link(states, {**self.failing, **failed}):
                failed.update(waiting)
                states = [state for state in states if state.key not in waiting]
            failed.update(driver.apply(states, ()))
        for driver, states in self._grouped(self._not_falling(change.delete)):
            failed.update(driver.apply((), states))
        tried = (*change.put, *change.delete)
        if failed or (self.failing and any(state.key in self.failing for state in tried)):
            keys = {state.key for state in tried}
            self.failing = {key: error for key, error in self.failing.items() if key not in keys} | failed
        return failed

    def _grouped(self, states: Sequence[State]) -> Iterator[tuple[Driver, list[State]]]:
        """Yield batches for one driver: in a batch no state is on a link of the same batch."""
        group: list[State] = []
        links: set[Link] = set()
        of: Driver | None = None
        for type_, run in itertools.groupby(states, type):
            kind, driver = self._by_kind[type_]
            if of is not None and driver is not of:
                yield of, group
                group, links = [], set()
            of = driver
            if not links and type_ not in self.kinds.linked:
                group += run
                continue
            for state in run:
                if not links.isdisjoint(kind.on(state)):
                    yield of, group
                    group, links = [], set()
                group.append(state)
                links.update(kind.makes(state))
        if of is not None:
            yield of, group

    def _without_link(self, states: Sequence[State], failed: Mapping[Key, LinkspanError]) -> dict[Key, LinkspanError]:
        """Return the states that are impossible because their link could not be made, with the link's error.

        A link of that name may belong to another program, which keeps it unchanged.
        """
        links: dict[Link, LinkspanError] = {}
        for key, error in failed.items():
            state = self.desired.state(key)
            if state is not None and not (isinstance(error, Contested) and error.there):
                links.update((link, error) for link in self.kinds.makes(state) if link[0] == HOST)
        if not links:
            return {}
        return {s.key: links[link] for s in states for link in self.kinds.on(s) if link in links}

    def _not_falling(self, delete: Sequence[State]) -> list[State]:
        """Leave out states that are lost with a link that is deleted as well."""
        makers = (state for state in delete if type(state) in self.kinds.linked)
        if not (falling := {link for state in makers for link in self.kinds.makes(state)}):
            return list(delete)
        return [s for s in delete if not (self.kinds.of(s).falls and falling.intersection(self.kinds.on(s)))]

    def resync(
        self, kinds: Iterable[type[State]] | None = None, namespaces: Iterable[int] = (), *, log: bool = True
    ) -> Report:
        """Make observed equal desired for the kinds (None: all of them), on the host and in ``namespaces``."""
        if kinds is None:
            self._left.end()
        report = Report()
        refused: dict[Key, LinkspanError] = {}
        touched = list(self._by_kind) if kinds is None else list(kinds)
        inside = set(namespaces)
        judgement = Judgement(self.kinds, self.fights, self.desired)
        told: set[Key] = set()
        try:
            for _ in range(PASSES):
                change, words, seen = self.compared(touched, inside, guarded=True)
                change = self._left.without(change)
                self._forgive(change, touched, inside)
                shut = self.fights.closed()
                held, left = judgement.held(change, seen, touched) if log else ({}, set())
                refused |= held
                put = tuple(state for state in change.put if state.key not in refused and state.key not in left)
                delete = tuple(state for state in change.delete if state.key not in held and state.key not in left)
                self.failing = {**self.failing, **held}
                failed = self.apply(Change(put, delete)) if put or delete else {}
                report.failed = {**refused, **failed}
                if log:
                    fought = judgement.fought((*put, *delete))
                    for state in (*put, *delete):
                        judgement.note(state, seen.get(state.key), failed.get(state.key))
                        if state.key not in failed and state.key not in told:
                            told.add(state.key)
                            report.add(state, words[state.key], fought=state.key in fought)
                if self.fights.closed() - shut:  # guards are not in force: ports go down
                    touched = list(self._by_kind)
                    continue
                if not put and not delete:
                    break
                made = {s.key: links for s in put if (links := self.kinds.makes(s))}
                # Retry failures after a link appeared: they may depend on it.
                refused = held if made.keys() - failed.keys() else report.failed
                # A link's addresses, routes and settings were lost with it, also those inside the container.
                inside |= {netns for links in made.values() for netns, _ in links if netns != HOST}
                if made:
                    touched = list(self._by_kind)
                    continue
                touched.extend(self._readers((*put, *delete)))
                along = {kind for s in (*put, *delete) for kind in self.kinds.of(s).takes_along}
                touched.extend(kind for kind in along if kind in self.kinds)
        finally:
            self._release()
        return report

    def is_settled(self, kinds: Iterable[type[State]]) -> bool:
        """Return whether a resync of these kinds on the host has nothing to compare, and nothing waits to be repaired.

        If it has, another thread's ``resync`` finds out what: this is quick, and repairs nothing.
        """
        if self.failing or self.fights.closed() or self.fights.kinds():
            return False
        with self._one_look():
            return self._settled.hold(self._drivers(kinds))

    def _forgive(self, change: Change, kinds: Iterable[type[State]], inside: set[int]) -> None:
        """Forget failures of observed objects that are right by now: another program may have repaired them."""
        if self.failing:
            looked = {key: s for key, s in self.desired.states(tuple(kinds)).items() if netns_of(s) in inside | {HOST}}
            names = {kind.__name__ for kind in kinds}
            # What was superfluous is not desired. It is left wrong only in a fight.
            left = {k for k, error in self.failing.items() if isinstance(error, Contested) and k[0] in names}
            wrong = {state.key for state in (*change.put, *change.delete)}
            right = (self.failing.keys() & looked.keys() | left) - wrong
            self.failing = {key: error for key, error in self.failing.items() if key not in right}

    def difference(
        self, kinds: Iterable[type[State]] | None = None, namespaces: Iterable[int] = ()
    ) -> tuple[Change, dict[Key, str]]:
        """Observe, and return what a pass would put and delete, and for each key: added, changed or removed."""
        change, words, _ = self.compared(kinds, namespaces)
        return change, words

    def compared(
        self, kinds: Iterable[type[State]] | None, namespaces: Iterable[int], *, guarded: bool = False
    ) -> tuple[Change, dict[Key, str], dict[Key, State]]:
        """Return the difference and what is observed of it; ``guarded``: ports with broken guards should be down.

        Of what is as desired nothing is kept: with 1,000 peers these are 10,000 states, and all others are few. Drivers
        that are settled are not observed at all.
        """
        wanted = tuple(self._by_kind) if kinds is None else tuple(kinds)
        inside = set(namespaces)
        with self._one_look():
            plain = not (inside or self.failing or self.fights.closed())
            marks = {driver: self._settled.mark(driver) for driver in self._drivers(wanted) if plain}
            settled = {driver for driver, mark in marks.items() if self._settled.holds(driver, mark)}
            wanted = tuple(kind for kind in wanted if self._by_kind[kind][1] not in settled)
            if not wanted:
                return Change((), ()), {}, {}
            names = {kind.__name__ for kind in wanted}
            known = inside | {HOST}
            desired = {k: s for k, s in self.desired.states(wanted).items() if netns_of(s) in known}
            waiting: Mapping[Key, LinkspanError] = {}
            if guarded and self.fights.closed():
                shut, waiting = self._ports.shut(list(desired.values()))
                desired = {state.key: state for state in shut}
            missing, wrong = dict(desired), dict[Key, State]()
            for driver in self._drivers(wanted):
                for state in driver.observe(HOST):
                    key = state.key
                    if key[0] in names and key not in waiting:
                        _compare(key, state, desired.get(key), missing, wrong)
        observed = {driver: mark for driver, mark in marks.items() if driver not in settled}
        self._settled.note(observed, wanted, {str(key[0]) for key in (*missing, *wrong)})
        extra = [state for key, state in wrong.items() if key not in desired]
        for netns in inside:
            try:
                for driver in self._drivers(wanted):
                    for state in driver.observe(netns):
                        key = state.key
                        if key[0] in names:
                            _compare(key, state, desired.get(key), missing, wrong)
                            if key not in desired and self.kinds.of(state).alone(state):
                                extra.append(state)
            except NotFound:  # the container is gone, with everything in it
                missing = {key: state for key, state in missing.items() if netns_of(state) != netns}
        put = list(missing.values())
        words = {key: "changed" if key in wrong else "added" for key in missing}
        words.update((state.key, "removed") for state in extra)
        put.sort(key=self.kinds.in_order(put))
        extra.sort(key=self.kinds.rank, reverse=True)
        return Change(tuple(put), tuple(extra)), words, wrong

    def observed(self, kinds: tuple[type[State], ...], netns: int = HOST) -> list[State]:
        """Return the observed states of these kinds in a namespace that are ours. Raises NotFound if it is gone."""
        return [s for driver in self._drivers(kinds) for s in driver.observe(netns) if isinstance(s, kinds)]

    def _drivers(self, kinds: Iterable[type[State]]) -> list[Driver]:
        return list(dict.fromkeys(self._by_kind[kind][1] for kind in kinds))

    def missing(self, states: Iterable[State], netns: int) -> list[State]:
        """Return those of the states that are not in the kernel as given (CNI's CHECK).

        A namespace that cannot be entered has none.
        """
        wanted = {state.key: state for state in states}
        drivers = self._drivers({type(state) for state in wanted.values()})
        observed: dict[Key, State] = {}
        try:
            for place in dict.fromkeys((HOST, netns)):
                with contextlib.suppress(NotFound):
                    for driver in drivers:
                        observed.update((state.key, state) for state in driver.observe(place) if state.key in wanted)
        finally:
            self._release()
        return [state for key, state in wanted.items() if observed.get(key) != state]


def _compare(
    key: Key, state: State, desired: State | None, missing: dict[Key, State], wrong: dict[Key, State]
) -> None:
    """Take an observed state out of what is ``missing`` if it is as desired, and note it as ``wrong`` if it is not.

    If a driver reports two objects with one key, the last one counts.
    """
    if state == desired:
        missing.pop(key, None)
        wrong.pop(key, None)
        return
    wrong[key] = state
    if desired is not None:
        missing[key] = desired


class _Batch(msgspec.Struct):
    """Differences of several sources: what is put and deleted, and whether a tunnel's device may be replaced."""

    put: list[State] = []
    delete: list[State] = []
    replaced: bool = False
    sources: int = 0
