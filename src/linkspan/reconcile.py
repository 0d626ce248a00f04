"""The reconciler makes observed equal desired. One thread at a time runs it, and nothing else changes a kernel.

A *change* replaces one source's states and applies just the difference: the hot path of attach and detach. A
*resync* observes whole kinds and mends what differs: at start, after a kernel event, by the timer. What is
inside a container's namespace is the container's own: there a resync puts what is missing, and removes nothing but
rules and tables of ours that nobody wants any more.

A pass puts in dependency order, then deletes in reverse, and is repeated at most PASSES times: a value that
cannot be changed in place is replaced by its driver, and what fell with it is found missing in the next pass.
What was refused is left to the next resync: a helper that ends at once would have ended three times.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import msgspec

from linkspan.addresses import Prefix, mac_text
from linkspan.associations import IpsecLink
from linkspan.contracts import Driver
from linkspan.desired import Change, Desired, Source
from linkspan.errors import LinkspanError, NotFound
from linkspan.programs import File, Process, Secret
from linkspan.state import (
    HOST,
    Address,
    Bridge,
    FdbEntry,
    Ipip,
    Key,
    LinkSysctl,
    Neighbour,
    PolicyRule,
    Route,
    State,
    Sysctl,
    Veth,
    Vxlan,
    Wireguard,
)
from linkspan.wireguard import AllowedIp, WireguardKey, WireguardPeer

PASSES = 3

_TUNNELS = Vxlan | Ipip | IpsecLink | Wireguard
_LINKS = Bridge | Veth | _TUNNELS
_ON_LINKS = Address | Route | Neighbour | FdbEntry
"""What falls with its link."""
_IN_DEVICE = WireguardKey | WireguardPeer | AllowedIp

_READ = File | Secret
"""What helper programs read."""


class Heal(msgspec.Struct, frozen=True):
    """One repair: ``what`` is added, changed or removed."""

    at: float
    kind: str
    key: str
    what: str


class Report(msgspec.Struct):
    """What a resync did: repairs, and errors of what could not be mended."""

    heals: list[Heal] = []
    failed: dict[Key, LinkspanError] = {}


class Reconciler:
    """Desired states, the drivers that serve them, and what could not be mended so far."""

    def __init__(self, drivers: Sequence[Driver], release: Callable[[], None] = lambda: None) -> None:
        self.desired = Desired()
        self.drivers = tuple(drivers)
        self.failing: dict[Key, LinkspanError] = {}
        self._release = release
        self._by_kind = {kind: driver for driver in drivers for kind in driver.kinds}

    def change(
        self, source: Source, states: Iterable[State], there: tuple[type[State], ...] = ()
    ) -> dict[Key, LinkspanError]:
        """Replace a source's states and apply the difference; returns errors by key.

        States of the kinds ``there`` are in the kernel as they are given: somebody else made them so.
        Raises Conflict where another source disagrees.
        """
        return self.changes({source: states}, there)

    def changes(
        self, sources: Mapping[Source, Iterable[State]], there: tuple[type[State], ...] = ()
    ) -> dict[Key, LinkspanError]:
        """Replace several sources' states and apply the differences in one batch; returns errors by key.

        Raises Conflict where sources disagree; those before the one it names are replaced, and are applied.
        """
        put: list[State] = []
        delete: list[State] = []
        replaced = False
        try:
            for source, states in sources.items():
                before = self.desired.sources().get(source, {})
                change = self.desired.replace(source, states)
                # One that is new may be what others have waited for.
                replaced |= any(isinstance(s, _TUNNELS) and (s.key in before or self.failing) for s in change.put)
                put += (state for state in change.put if not isinstance(state, there))
                delete += change.delete
        finally:
            failed = self._applied(put, delete, replaced, len(sources) > 1)
        return failed

    def _applied(
        self, put: list[State], delete: list[State], replaced: bool, mixed: bool
    ) -> dict[Key, LinkspanError]:
        if mixed:
            put.sort(key=lambda state: state.rank)
            # What one source let go, another may have taken up since.
            delete = [s for s in delete if not any(self.desired.owners(s.key))]
            delete.sort(key=lambda state: state.rank, reverse=True)
        try:
            failed = self.apply(Change(tuple(put), tuple(delete)))
            if replaced:
                # Its driver may have replaced the device; what fell with it is other sources' too.
                fallen = [k for k in (*_TUNNELS.__args__, LinkSysctl, *_ON_LINKS.__args__) if k in self._by_kind]
                failed |= self.resync(fallen, log=False).failed
            if Process in self._by_kind and any(isinstance(state, _READ) for state in (*put, *delete)):
                failed |= self._read_anew()
            return failed
        finally:
            self._release()

    def unwell(self, source: Source) -> LinkspanError | None:
        """Return why one of a source's states is not in the kernel, None where all are as far as is known."""
        if not self.failing:
            return None
        keys = self.desired.sources().get(source, {})
        return next((error for key, error in list(self.failing.items()) if key in keys), None)

    def _read_anew(self) -> dict[Key, LinkspanError]:
        """Let the programs read what has changed; those that nobody wants (yet) are left alone."""
        change, _ = self.difference((Process,))
        return self.apply(Change(change.put, ()))

    def apply(self, change: Change) -> dict[Key, LinkspanError]:
        """Put in the order given, then delete in the order given; go on past errors and return them."""
        failed: dict[Key, LinkspanError] = {}
        for driver, states in self._grouped(change.put):
            waiting = _without_link(states, self.failing | failed)
            failed.update(waiting)
            failed.update(driver.apply([state for state in states if state.key not in waiting], ()))
        for driver, states in self._grouped(_not_falling(change.delete)):
            failed.update(driver.apply((), states))
        for state in (*change.put, *change.delete) if self.failing else ():
            self.failing.pop(state.key, None)
        self.failing.update(failed)
        return failed

    def _grouped(self, states: Sequence[State]) -> Iterator[tuple[Driver, list[State]]]:
        for driver, group in itertools.groupby(states, lambda state: self._by_kind[type(state)]):
            yield driver, list(group)

    def resync(
        self, kinds: Iterable[type[State]] | None = None, namespaces: Iterable[int] = (), *, log: bool = True
    ) -> Report:
        """Make observed equal desired for the kinds (all of them where None), on the host and in ``namespaces``."""
        report = Report([], {})
        refused: dict[Key, LinkspanError] = {}
        touched = list(self._by_kind) if kinds is None else list(kinds)
        inside = set(namespaces)
        try:
            for _ in range(PASSES):
                change, words = self.difference(touched, inside)
                self._forgive(change, touched, inside)
                put = tuple(state for state in change.put if state.key not in refused)
                if not put and not change.delete:
                    break
                failed = self.apply(Change(put, change.delete))
                report.failed = {**refused, **failed}
                for state in (*put, *change.delete) if log else ():
                    if state.key not in failed:
                        report.heals.append(_heal(state, words[state.key]))
                # What was refused has a second chance where a link has come: it may have waited for that.
                refused = {} if any(isinstance(s, _LINKS) and s.key not in failed for s in put) else report.failed
                # With a link fell its addresses, routes and settings, also those inside the container.
                inside |= {state.peer_netns for state in change.put if isinstance(state, Veth)}
                if any(isinstance(state, _LINKS) for state in change.put):
                    touched = list(self._by_kind)
                elif Process in self._by_kind and any(isinstance(s, _READ) for s in (*change.put, *change.delete)):
                    touched.append(Process)
        finally:
            self._release()
        return report

    def _forgive(self, change: Change, kinds: Iterable[type[State]], inside: set[int]) -> None:
        """Forget that what was looked at has failed, where it is as it should be by now: others may have mended it."""
        if self.failing:
            looked = {key: s for key, s in self.desired.states(tuple(kinds)).items() if _netns(s) in inside | {HOST}}
            for key in self.failing.keys() & looked.keys() - {state.key for state in change.put}:
                del self.failing[key]

    def difference(
        self, kinds: Iterable[type[State]] | None = None, namespaces: Iterable[int] = ()
    ) -> tuple[Change, dict[Key, str]]:
        """Observe, and return what a pass would put and delete, and for each key: added, changed or removed."""
        wanted = tuple(self._by_kind) if kinds is None else tuple(kinds)
        names = {kind.__name__ for kind in wanted}
        inside = set(namespaces)
        known = inside | {HOST}
        desired = {k: s for k, s in self.desired.states(wanted).items() if _netns(s) in known}
        observed: dict[Key, State] = {}
        for driver in self._drivers(wanted):
            observed.update((s.key, s) for s in driver.observe(HOST) if s.key[0] in names)
        extra = [state for key, state in observed.items() if key not in desired]
        for netns in inside:
            try:
                for driver in self._drivers(wanted):
                    there = [s for s in driver.observe(netns) if s.key[0] in names]
                    observed.update((s.key, s) for s in there)
                    extra += [s for s in there if _ours_alone(s) and s.key not in desired]
            except NotFound:  # the container is gone, and all that was in it
                desired = {key: state for key, state in desired.items() if _netns(state) != netns}
        put = [state for key, state in desired.items() if observed.get(key) != state]
        words = {state.key: "changed" if state.key in observed else "added" for state in put}
        words.update((state.key, "removed") for state in extra)
        put.sort(key=behind_links(put))
        extra.sort(key=lambda state: state.rank, reverse=True)
        return Change(tuple(put), tuple(extra)), words

    def _drivers(self, kinds: Iterable[type[State]]) -> list[Driver]:
        return list(dict.fromkeys(self._by_kind[kind] for kind in kinds))

    def missing(self, states: Iterable[State], netns: int) -> list[State]:
        """Return those of the states that are not in the kernel as they are given (CNI's CHECK).

        In a namespace that cannot be entered there are none.
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


def behind_links(put: Iterable[State]) -> Callable[[State], tuple[int, bool, int]]:
    """Return an order in which nothing comes before its link, or it might get to another's of that name.

    A link that a helper makes comes late.
    """
    late = {state.name: state.rank for state in put if isinstance(state, IpsecLink)}

    def place(state: State) -> tuple[int, bool, int]:
        after = max((rank for name, rank in late.items() if name in _stands_on(state, late)), default=0)
        return max(after, state.rank), bool(after), state.rank

    return place


def _without_link(states: Sequence[State], failed: dict[Key, LinkspanError]) -> dict[Key, LinkspanError]:
    """Return what cannot stand, for its link could not be made, with the link's error.

    A link of that name may be another's, who keeps it as it is.
    """
    kinds = {kind.__name__ for kind in _LINKS.__args__}
    links = {str(key[1]): error for key, error in failed.items() if key[0] in kinds}
    if not links:
        return {}
    found: dict[Key, LinkspanError] = {}
    for state in states:
        if _netns(state) == HOST:
            found.update((state.key, links[name]) for name in _stands_on(state, links) if name in links)
    return found


def _stands_on(state: State, links: Iterable[str]) -> list[str]:
    """Return the names of the links, of these, that a state needs."""
    if isinstance(state, LinkSysctl):
        return [name for name in links if f"/{name}/" in state.path]
    if isinstance(state, _ON_LINKS | _IN_DEVICE):
        return [state.device]
    return [state.master] if isinstance(state, Veth) else []


def _not_falling(delete: Sequence[State]) -> list[State]:
    """Leave out what falls with a veth pair or tunnel device that is deleted as well."""
    falling = set()
    for state in delete:
        if isinstance(state, Veth):
            falling |= {(HOST, state.name), (state.peer_netns, state.peer_name)}
        elif isinstance(state, _TUNNELS):
            falling.add((HOST, state.name))
    return [s for s in delete if not (isinstance(s, _ON_LINKS) and (_netns(s), s.device) in falling)]


def _ours_alone(state: State) -> bool:
    """Tell whether an object in a container is nobody's but ours: a rule, or a route of one of our tables.

    Left from an agent that was killed, they would send packets by an interface that is another's by now.
    """
    return isinstance(state, PolicyRule) or (isinstance(state, Route) and bool(state.table))


def _netns(state: State) -> int:
    return int(getattr(state, "netns", HOST))


def _heal(state: State, what: str) -> Heal:
    return Heal(time.time(), type(state).__name__, describe(state), what)


def describe(state: State) -> str:
    """Return the object's key as people write it: addresses as text, no namespace where it is the host's."""
    if isinstance(state, Sysctl | LinkSysctl):
        return state.path
    if isinstance(state, PolicyRule):
        return f"{state.priority} from {state.prefix} lookup {state.table or 'main'}"
    prefix = getattr(state, "prefix", None) or getattr(state, "destination", None)
    if prefix is None:
        return " ".join(map(_word, state.key[1:]))
    where = [getattr(state, name, "") for name in ("chain", "device")]
    table = f"table {state.table}" if isinstance(state, Route) and state.table else ""
    return " ".join(str(part) for part in (prefix, *where, table) if part)


def _word(part: str | int | bytes) -> str:
    """Return a part of a key as people write it: a MAC has 6 bytes, an address 4 or 16."""
    if isinstance(part, bytes):
        return mac_text(part) if len(part) == 6 else Prefix(part, len(part) * 8).address
    return str(part)
