"""The reconciler makes observed equal desired. One thread at a time runs it, and nothing else changes a kernel.

A *change* replaces one source's states and applies just the difference: the hot path of attach and detach. A
*resync* observes whole kinds and mends what differs: at start, after a kernel event, by the timer. What is
inside a container's namespace is the container's own: there a resync puts what is missing, and removes nothing but
rules and tables of ours that nobody wants any more.

What another program keeps changing is left wrong for a while, and a container whose guards do not hold is cut off
(``fights.py``); a resync alone counts that, and only for objects that are wrong by themselves: not for what fell with a
link, a table or a setting.

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

from linkspan.core.addresses import Prefix, mac_text
from linkspan.core.contracts import Driver
from linkspan.core.desired import Change, Desired, Source
from linkspan.core.errors import LinkspanError, NotFound
from linkspan.core.fights import Contested, Fight, Fights, guards, subject
from linkspan.core.states.host import (
    HOST,
    Address,
    Bridge,
    FdbEntry,
    ForeignQdisc,
    Ipip,
    Key,
    LinkSysctl,
    Neighbour,
    NftChain,
    NftElement,
    NftSet,
    PolicyRule,
    Route,
    State,
    Sysctl,
    TokenBucket,
    Veth,
    Vxlan,
    Wireguard,
)
from linkspan.core.states.ipsec import IpsecChild, IpsecConnection, IpsecCredential, IpsecLink
from linkspan.core.states.openflow import Flow, RouterRoute
from linkspan.core.states.programs import File, LearntRoutes, Process, Secret
from linkspan.core.states.wireguard import AllowedIp, WireguardKey, WireguardPeer

PASSES = 3

_TUNNELS = Vxlan | Ipip | IpsecLink | Wireguard
_LINKS = Bridge | Veth | _TUNNELS
_ON_LINKS = Address | Route | Neighbour | FdbEntry
"""What falls with its link."""
_WITH_ADDRESS = Route | Neighbour
"""What may fall with an address of its link that is removed, or replaced.

The kernel drops the routes that have it as their source and, with a link's last IPv4 address, all of its neighbours.
"""
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
    """What a resync did: repairs, how many more there were of what is fought for, and what could not be mended."""

    heals: list[Heal] = []
    failed: dict[Key, LinkspanError] = {}
    fought: list[str] = []
    """The kind of each repair that is not in ``heals``, for its fight has been told."""


class Reconciler:
    """Desired states, the drivers that serve them, and what could not be mended so far."""

    def __init__(self, drivers: Sequence[Driver], release: Callable[[], None] = lambda: None) -> None:
        self.desired = Desired()
        self.drivers = tuple(drivers)
        self.failing: Mapping[Key, LinkspanError] = {}
        """What could not be mended. It is replaced and never changed: the loop walks over it while the worker works."""
        self.fights = Fights()
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
        return next((error for key, error in self.failing.items() if key in keys), None)

    def _read_anew(self) -> dict[Key, LinkspanError]:
        """Let the programs read what has changed; those that nobody wants (yet) are left alone."""
        change, _ = self.difference((Process,))
        return self.apply(Change(change.put, ()))

    def apply(self, change: Change) -> dict[Key, LinkspanError]:
        """Put in the order given, then delete in the order given; go on past errors and return them."""
        put, failed = self._shut(change.put)
        for driver, states in self._grouped(put):
            waiting = _without_link(states, {**self.failing, **failed})
            failed.update(waiting)
            failed.update(driver.apply([state for state in states if state.key not in waiting], ()))
        for driver, states in self._grouped(_not_falling(change.delete)):
            failed.update(driver.apply((), states))
        tried = (*change.put, *change.delete)
        if failed or (self.failing and any(state.key in self.failing for state in tried)):
            keys = {state.key for state in tried}
            self.failing = {key: error for key, error in self.failing.items() if key not in keys} | failed
        return failed

    def _grouped(self, states: Sequence[State]) -> Iterator[tuple[Driver, list[State]]]:
        for driver, group in itertools.groupby(states, lambda state: self._by_kind[type(state)]):
            yield driver, list(group)

    def resync(
        self, kinds: Iterable[type[State]] | None = None, namespaces: Iterable[int] = (), *, log: bool = True
    ) -> Report:
        """Make observed equal desired for the kinds (all of them where None), on the host and in ``namespaces``."""
        report = Report()
        refused: dict[Key, LinkspanError] = {}
        touched = list(self._by_kind) if kinds is None else list(kinds)
        inside = set(namespaces)
        judged = _Judged()
        try:
            for _ in range(PASSES):
                change, words, seen = self._compared(touched, inside, guarded=True)
                self._forgive(change, touched, inside)
                shut = self.fights.closed()
                held, left = self._held(change, seen, touched, judged) if log else ({}, set())
                refused |= held
                put = tuple(state for state in change.put if state.key not in refused and state.key not in left)
                delete = tuple(state for state in change.delete if state.key not in held and state.key not in left)
                self.failing = {**self.failing, **held}
                failed = self.apply(Change(put, delete)) if put or delete else {}
                report.failed = {**refused, **failed}
                contested, ends = self._contested(), self._other_ends()
                for state in (*put, *delete) if log else ():
                    fought = self.fights.fought(state) or _place(state) in ends
                    fought = fought or not contested.isdisjoint(_parents(state))
                    self._note(state, words[state.key], seen, failed, judged, report, fought=fought)
                if self.fights.closed() - shut:  # guards do not hold: ports go down
                    touched = list(self._by_kind)
                    continue
                if not put and not delete:
                    break
                # What was refused has a second chance where a link has come: it may have waited for that.
                refused = held if any(isinstance(s, _LINKS) and s.key not in failed for s in put) else report.failed
                # With a link fell its addresses, routes and settings, also those inside the container.
                inside |= {state.peer_netns for state in put if isinstance(state, Veth)}
                if any(isinstance(state, _LINKS) for state in put):
                    touched = list(self._by_kind)
                    continue
                if Process in self._by_kind and any(isinstance(s, _READ) for s in (*put, *delete)):
                    touched.append(Process)
                if any(isinstance(s, Address) for s in (*put, *delete)):
                    touched += (kind for kind in _WITH_ADDRESS.__args__ if kind in self._by_kind)
        finally:
            self._release()
        return report

    def _held(
        self, change: Change, seen: Mapping[Key, State], kinds: Sequence[type[State]], judged: _Judged
    ) -> tuple[dict[Key, LinkspanError], set[Key]]:
        """Return what must not be put back now, with the reason, and what the next resync will see to.

        The last is wrong again, just as it was before this resync put it back.
        """
        states = [*change.put, *change.delete]
        judged.parents |= {_name(state) for state in states}
        held: dict[Key, LinkspanError] = {}
        left: set[Key] = set()
        contested = self._contested()
        for state in states:
            key = subject(state)
            falls = any(p in judged.parents or (p in contested and p != key) for p in _parents(state))
            if falls or not _counts(state):
                continue
            if key not in judged.by:
                judged.by[key] = self.fights.wrong(state, seen.get(state.key), describe(state))
                if self.fights.fought(state):
                    contested.add(_name(state) if isinstance(state, _LINKS) else key)
            if (fight := judged.by[key]) is not None:
                held[state.key] = Contested(fight.message, state.key in seen)
            elif not guards(state) and judged.repaired.get(key, _NEVER) == seen.get(state.key):
                left.add(state.key)
        self.fights.right(kinds, {subject(state) for state in states})
        gone = {(HOST, s.name) for s in states if s.key in left and isinstance(s, _LINKS) and s.key not in seen}
        gone |= {(s.peer_netns, s.peer_name) for s in states if isinstance(s, Veth) and (HOST, s.name) in gone}
        left |= {state.key for state in states if gone and _place(state) in gone}
        return held, left

    def _contested(self) -> set[Key]:
        """Return what is fought for, by the names that ``_parents`` gives."""
        links = _LINKS.__args__
        return {("link", f.key[1]) if issubclass(f.kind, links) else f.key for f in self.fights.open()}

    def _other_ends(self) -> set[tuple[int, str]]:
        """Return the containers' ends of the pairs that are fought for."""
        pairs = (self.desired.state(fight.key) for fight in self.fights.open())
        return {(pair.peer_netns, pair.peer_name) for pair in pairs if isinstance(pair, Veth)}

    def _note(
        self,
        state: State,
        what: str,
        seen: Mapping[Key, State],
        failed: Mapping[Key, LinkspanError],
        judged: _Judged,
        report: Report,
        *,
        fought: bool,
    ) -> None:
        """Take in what became of a repair of an object that is ``fought`` for, it or what it is lost with."""
        if state.key in failed:
            if subject(state) in judged.by:
                self.fights.failed(state, failed[state.key].message)
            return
        if subject(state) in judged.by and subject(state) not in judged.repaired:
            judged.repaired[subject(state)] = seen.get(state.key)
            self.fights.repaired(state, seen.get(state.key))
        if state.key in judged.told:
            return
        judged.told.add(state.key)
        if fought:
            report.fought.append(type(state).__name__)
        else:
            report.heals.append(_heal(state, what))

    def _shut(self, states: Sequence[State]) -> tuple[list[State], dict[Key, LinkspanError]]:
        """Return the states that may be put, with ports down whose guards do not hold, and why the others may not."""
        if not self.fights.closed():
            return list(states), {}
        put: list[State] = []
        refused: dict[Key, LinkspanError] = {}
        for state in states:
            if isinstance(state, Veth) and self.fights.closing(state.name, bool(state.master)):
                put.append(msgspec.structs.replace(state, up=False))
            elif fight := self._closing(state):
                refused[state.key] = Contested(fight.message, there=False)
            else:
                put.append(state)
        return put, refused

    def _closing(self, state: State) -> Fight | None:
        """Return the fight because of which the port is down that an address, route or entry stands on."""
        if not isinstance(state, _ON_LINKS) or _netns(state) != HOST:
            return None
        veth = self.desired.state(("Veth", state.device))
        return self.fights.closing(veth.name, bool(veth.master)) if isinstance(veth, Veth) else None

    def _forgive(self, change: Change, kinds: Iterable[type[State]], inside: set[int]) -> None:
        """Forget that what was looked at has failed, where it is as it should be by now: others may have mended it."""
        if self.failing:
            looked = {key: s for key, s in self.desired.states(tuple(kinds)).items() if _netns(s) in inside | {HOST}}
            names = {kind.__name__ for kind in kinds}
            # What was superfluous is not desired; only what is fought for is left so.
            left = {k for k, error in self.failing.items() if isinstance(error, Contested) and k[0] in names}
            wrong = {state.key for state in (*change.put, *change.delete)}
            right = (self.failing.keys() & looked.keys() | left) - wrong
            self.failing = {key: error for key, error in self.failing.items() if key not in right}

    def difference(
        self, kinds: Iterable[type[State]] | None = None, namespaces: Iterable[int] = ()
    ) -> tuple[Change, dict[Key, str]]:
        """Observe, and return what a pass would put and delete, and for each key: added, changed or removed."""
        change, words, _ = self._compared(kinds, namespaces)
        return change, words

    def _compared(
        self, kinds: Iterable[type[State]] | None, namespaces: Iterable[int], *, guarded: bool = False
    ) -> tuple[Change, dict[Key, str], dict[Key, State]]:
        """Return the difference, and what was observed; ``guarded``: ports whose guards do not hold should be down."""
        wanted = tuple(self._by_kind) if kinds is None else tuple(kinds)
        names = {kind.__name__ for kind in wanted}
        inside = set(namespaces)
        known = inside | {HOST}
        desired = {k: s for k, s in self.desired.states(wanted).items() if _netns(s) in known}
        observed: dict[Key, State] = {}
        for driver in self._drivers(wanted):
            observed.update((s.key, s) for s in driver.observe(HOST) if s.key[0] in names)
        if guarded and self.fights.closed():
            put, waiting = self._shut(list(desired.values()))
            desired = {state.key: state for state in put}
            observed = {key: state for key, state in observed.items() if key not in waiting}
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
        return Change(tuple(put), tuple(extra)), words, observed

    def observed(self, kinds: tuple[type[State], ...], netns: int = HOST) -> list[State]:
        """Return what is in a namespace now of these kinds and is ours. Raises NotFound where it is gone."""
        return [s for driver in self._drivers(kinds) for s in driver.observe(netns) if isinstance(s, kinds)]

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


def _without_link(states: Sequence[State], failed: Mapping[Key, LinkspanError]) -> dict[Key, LinkspanError]:
    """Return what cannot stand, for its link could not be made, with the link's error.

    A link of that name may be another's, who keeps it as it is.
    """
    kinds = {kind.__name__ for kind in _LINKS.__args__}
    links = {
        str(key[1]): error
        for key, error in failed.items()
        if key[0] in kinds and not (isinstance(error, Contested) and error.there)
    }
    if not links:
        return {}
    found: dict[Key, LinkspanError] = {}
    for state in states:
        if _netns(state) == HOST:
            found.update((state.key, links[name]) for name in _stands_on(state, links) if name in links)
    return found


class _Judged(msgspec.Struct):
    """What one resync found wrong: each object counts once in it, however many passes there are."""

    by: dict[Key, Fight | None] = {}
    """By subject: the fight because of which it is left wrong."""
    repaired: dict[Key, State | None] = {}
    """By subject: what was there instead."""
    parents: set[Key] = set()
    told: set[Key] = set()


_NEVER = object()


_OF_HELPERS = Process | LearntRoutes | IpsecLink | IpsecCredential | IpsecConnection | IpsecChild | _IN_DEVICE
"""What goes with its helper program, which has pauses of its own."""
_OF_DEVICES = Flow | RouterRoute
"""What goes with a restart of a switch or router."""


def _counts(state: State) -> bool:
    """Tell whether it is a fight if the object is wrong again and again."""
    return _netns(state) == HOST and not isinstance(state, _OF_HELPERS | _OF_DEVICES)


def _name(state: State) -> Key:
    """Return by what ``_parents`` names a state."""
    if isinstance(state, Address):
        return ("addresses", state.netns, state.device)
    return ("link", state.name) if isinstance(state, _LINKS) else state.key


def _place(state: State) -> tuple[int, str]:
    """Return the namespace and the link that an object is on, or is the container's end of."""
    if isinstance(state, LinkSysctl):
        return state.netns, state.path.split("/")[3]
    return _netns(state), str(getattr(state, "device", "") or getattr(state, "name", ""))


def _parents(state: State) -> Iterator[Key]:
    """Yield what an object on the host is lost with, or changed with."""
    match state:
        case NftSet(family, table) | NftChain(family, table):
            yield ("NftTable", family, table)
        case NftElement(family, table, set_):
            yield ("NftTable", family, table)
            yield ("NftSet", family, table, set_)
        case LinkSysctl(path) if path.endswith("/forwarding"):
            yield ("Sysctl", HOST, _FORWARDING[path.split("/")[1]])
            yield ("link", path.split("/")[3])
        case LinkSysctl(path):
            yield ("link", path.split("/")[3])
        case Veth() if state.master:
            yield ("link", state.master)
        case Route() | Neighbour():
            yield ("link", state.device)
            yield ("addresses", HOST, state.device)
        case Address() | FdbEntry() | TokenBucket() | ForeignQdisc():
            yield ("link", state.device)


_FORWARDING = {"ipv4": "net/ipv4/ip_forward", "ipv6": "net/ipv6/conf/all/forwarding"}
"""What sets the forwarding of every link."""


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
