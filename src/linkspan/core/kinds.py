"""Kinds: everything linkspan knows of each class of state, in one declaration beside its driver.

A kind of kernel object has two files: its state (``core/states``, or another package) and its driver with the
declaration (``kernel/drivers``). Reconciler, healer, events and plan name no class of state. They ask the
declarations: which link an object is on, what to observe after an event, what a person would type. So a new
kind changes none of them (`tests/unit/core/test_kinds.py` checks that). A declaration has the kind's rank, the links
that it is on and is lost with, the links that it makes, the events after which it is observed again, and the commands
that a person would type.

Links
    linkspan looks at a link, and at an address on it, only if a kind has reserved the link's name (``names``). The
    alternative name says that the link is ours. The rules take the names of our links from the kinds, too: all but
    ``ipsec0`` of strongSwan begin with ``ls``, and packets that come out of a tunnel device go to the chain for
    tunnels. A kind also says how these packets are admitted (``admits``): by the MAC of the peer's VTEP, by their
    mark, or as from any other link.

Marks
    Policy rules, and routes of other tables than the main one, are in containers (tables from 76000 on), where the
    agent removes at its start those that no endpoint wants, and on the host for egress addresses (`core/egress.py`).
    The record of a volatile file says only that it is ours. The group ``linkspan`` is no state: a record in the state
    folder says that linkspan made it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Generic, TypeVar

import msgspec

from linkspan.core.desired import Desired
from linkspan.core.driver_contract import Driver
from linkspan.core.errors import Conflict
from linkspan.core.program import Program
from linkspan.core.shell import Shell
from linkspan.core.states.host import HOST, Key, State
from linkspan.core.wire import Wire

S = TypeVar("S", bound=State)

Link = tuple[int, str]
"""A link: its network namespace (an inode, 0 for the host's own) and its name."""


ALL, BRIDGED = "*", "bridge"
"""Instead of the name of a container's port: all of them, and all on bridges."""


class Event(enum.Enum):
    """A possible change, as far as a notification says: it carries no state."""

    LINK = enum.auto()
    """A link of ours that is no tunnel device."""
    LINK_GONE = enum.auto()
    """Such a link was removed or renamed: what the kernel removes with it may be gone. A new link makes no such event,
    so an attach causes no observation of what is lost only with links."""
    TUNNEL = enum.auto()
    """A tunnel device of ours, with all that is on it."""
    ADDRESS = enum.auto()
    """An address was added or removed; the host may now have another underlay address."""
    ADDRESS_GONE = enum.auto()
    """An address was removed, or the host's own routes changed: states that depend on them may be gone too."""
    ROUTE = enum.auto()
    RULE = enum.auto()
    """A rule of the routing policy with our protocol number."""
    NEIGHBOUR = enum.auto()
    ENTRY = enum.auto()
    """A forwarding entry of a bridge or a VXLAN device."""
    NFT = enum.auto()
    """Another program's transaction of nftables."""
    QDISC = enum.auto()
    SETTING = enum.auto()
    HELPER = enum.auto()
    """A helper program ended."""


class Sort(enum.Enum):
    """The words for one object and for several in counts of objects, in the order of such a count."""

    LINK = "link", "links"
    PLACE = "address, route or neighbour", "addresses, routes and neighbours"
    RULE = "firewall object", "firewall objects"
    SETTING = "kernel setting", "kernel settings"
    PROGRAM = "helper program", "helper programs"
    FILE = "file", "files"
    GROUP = "group", "groups"
    OTHER = "other", "others"


class Admission(enum.Enum):
    """Ways in which rules find out which peer sent a packet from a tunnel device (`ruleset.admission`)."""

    VTEP = enum.auto()
    """By the MAC of the peer's VTEP: nothing else is accepted from the device."""
    MARK = enum.auto()
    """By the packet's mark, because one device serves all peers and the packet has no MAC."""


class Ending(msgspec.Struct, frozen=True, eq=False):
    """A command that a plan has once, after all others; ``state`` is the kind under which the plan shows it.

    ``command`` returns it, given the state folder as the shell reads it.
    """

    state: type[State]
    command: Callable[[str], str]
    purpose: str


def _nothing(_state: Any) -> tuple[Any, ...]:
    return ()


def _unsaid(_state: Any, _shell: Shell) -> tuple[str, ...]:
    return ()


def _never(_state: Any) -> bool:
    return False


def _nobody(_state: Any) -> frozenset[str]:
    return frozenset()


def _as_given(states: Any) -> Any:
    return states


def named(state: Any) -> tuple[Link, ...]:
    """Return the link with a state's name: the one it makes, or (a container's end) is on."""
    return ((netns_of(state), state.name),)


def on_device(state: Any) -> tuple[Link, ...]:
    """Return the link that is a state's device, none if it has none."""
    return ((netns_of(state), state.device),) if state.device else ()


def netns_of(state: State) -> int:
    """Return the network namespace that a state is in."""
    return int(getattr(state, "netns", HOST))


class Kind(msgspec.Struct, Generic[S], frozen=True, kw_only=True, eq=False):
    """One class of state: everything that linkspan knows of it beyond its key and values."""

    state: type[S]
    """The class; its name is the kind's public name (heal log, JSON, metrics)."""
    rank: int
    """Puts go by ascending rank, deletes by descending."""
    known_by: str
    """Mark by which an agent with no memory knows such an object as ours: a row of ARCHITECTURE.md's table."""
    purpose: str
    """What such an object does, in a few words: the plan's reason."""
    sort: Sort = Sort.OTHER
    driver: Callable[[Any], Driver] | None = None
    """Makes the driver from the ``LocalHost``; kinds that name one function share the driver.

    None for kinds on another device, a switch or a router: the controller makes their driver.
    """

    finds: Mapping[type[Program], Callable[[Any, Desired], Program | None]] = {}
    """The programs that may serve it, by their classes: each function looks for one, given the ``LocalHost`` and what
    is desired there, and returns the fact for backends, or None."""

    commands: Callable[[S, Shell], tuple[str, ...]] = _unsaid
    """The command lines that make it, in order; none for kinds that are never desired."""
    typed: Callable[[Sequence[S]], Sequence[S]] = _as_given
    """Returns several states of this kind in the order in which a person types their commands."""
    ending: Ending | None = None

    on: Callable[[S], tuple[Link, ...]] = _nothing
    """The links that it is on: it is put only after them, and a link that was made again may have lost it."""
    makes: Callable[[S], tuple[Link, ...]] = _nothing
    """The links that are made and removed with it; the host's end comes first."""
    merges: bool = False
    """Whether it is not put again when another source wants it, too: in the kernel it is already."""
    falls: bool = False
    """Whether the kernel removes it with its link, and its driver keeps nothing of it: it then needs no delete."""
    late: bool = False
    """Whether its link appears only after a helper has started: states on the link are put after this kind."""
    shut: Callable[[S], S] | None = None
    """For a container's port: returns its state while the container's guard rules are not in force."""
    lost_with: Callable[[S], tuple[Key, ...]] = _nothing
    """Keys of the objects, besides its links, together with which it is lost or changed."""
    takes_along: tuple[type[State], ...] = ()
    """Kinds whose objects on the same link may be lost when one of this kind is removed or replaced."""
    read_by: type[State] | None = None
    """The kind of the helper programs that read it: a change is a reload."""

    part_of: Callable[[S], Key] | None = None
    """The key of the object for which another program fights when it changes this part of it."""
    guards: Callable[[S], frozenset[str]] = _nobody
    """Containers' ports that must be down while it is wrong: names of links, ALL or BRIDGED."""
    contained: Callable[[S], bool] = _never
    """Whether a guard that the kernel refuses leaves closed, or as it was, all that it is about: no port goes down."""

    events: frozenset[Event] = frozenset()
    """Events after which it is observed."""
    poll: bool = False
    """Whether it changes without an event, and is observed every second."""
    alone: Callable[[S], bool] = _never
    """Returns whether an object inside a container is certainly ours: it is removed if no source wants it any more."""
    imposed: bool = False
    """Whether a container may not choose it: it is put back inside containers as well, where no event is seen."""
    counted: bool = True
    """Whether it is a fight if it is wrong again and again. Not for states that are lost when a helper
    program, a switch or a router restarts: those have pauses of their own."""

    names: tuple[str, ...] = ()
    """The names of its links, with ``*`` at the end of a prefix: reserved, so that no two kinds have one
    name. They begin with ``ls``: rules treat all such links as ours. (Only strongSwan's TUN has another name.)
    """
    forms: Mapping[str, frozenset[str]] = {}
    """What its links are called in detail (regular expressions), with the types of link that they are (``ip -d link``):
    a link that lost its alternative name looks like ours by that."""
    grouped: bool = False
    """Whether its links encrypt, and are in GROUP: rules check that, too, because another program's link may
    have the name."""
    admits: Mapping[str, Admission] = {}
    """How packets out of its links are admitted, by the links' names (as in ``names``). From other links they are
    admitted by the link itself or by the peer's MAC, as the backend says."""
    resolves: bool = False
    """Whether its links ask for neighbours' MACs: a permanent entry there was made by somebody."""
    wire: Callable[[S], Wire] | None = None
    """For a tunnel device: what it puts around its packets, for a trace."""

    @property
    def name(self) -> str:
        """Return the kind's name for users."""
        return self.state.__name__


def _meet(one: str, other: str) -> bool:
    """Return whether a link may have a name of both."""
    first, second = one.rstrip("*"), other.rstrip("*")
    return first.startswith(second) or second.startswith(first)


class Kinds:
    """The kinds known on a host, by class of state and in the order of their ranks."""

    def __init__(self, kinds: Iterable[Kind[Any]] = ()) -> None:
        """Check the kinds. Raises Conflict if two have one name, or link names that cannot be distinguished."""
        self._kinds: dict[type[State], Kind[Any]] = {}
        for kind in kinds:
            self._check(kind)
            self._kinds[kind.state] = kind
        self._kinds = dict(sorted(self._kinds.items(), key=lambda item: item[1].rank))
        self._ranks = {state: kind.rank for state, kind in self._kinds.items()}

    def _check(self, new: Kind[Any]) -> None:
        for old in self:
            if old.name == new.name:
                raise Conflict(f"two kinds of state are called {new.name}", "uninstall one of their packages")
            for mine in new.names:
                if clash := next((theirs for theirs in old.names if _meet(mine, theirs)), ""):
                    raise Conflict(
                        f"kind {new.name} calls its links {mine}, and kind {old.name} calls its links {clash}",
                        "uninstall one of their packages",
                    )

    def __iter__(self) -> Iterator[Kind[Any]]:
        return iter(self._kinds.values())

    def of(self, state: State) -> Kind[Any]:
        """Return the kind of a state."""
        return self._kinds[type(state)]

    def __getitem__(self, state: type[State]) -> Kind[Any]:
        return self._kinds[state]

    def __contains__(self, state: type[State]) -> bool:
        return state in self._kinds

    def on(self, state: State) -> tuple[Link, ...]:
        """Return the links that a state is on."""
        return self.of(state).on(state)

    def makes(self, state: State) -> tuple[Link, ...]:
        """Return the links that are made and removed with a state."""
        return self.of(state).makes(state)

    def subject(self, state: State) -> Key:
        """Return the key of the object of a fight, if somebody keeps changing a state."""
        part_of = self.of(state).part_of
        return state.key if part_of is None else part_of(state)

    def guards(self, state: State) -> frozenset[str]:
        """Return the containers' ports that a state guards."""
        return self.of(state).guards(state)

    def contained(self, state: State) -> bool:
        """Return whether no port need be down because the kernel refuses a state, a guard."""
        return self.of(state).contained(state)

    def rank(self, state: State) -> int:
        """Return the rank of a state's kind."""
        return self._ranks[type(state)]

    def after(self, *events: Event) -> frozenset[type[State]]:
        """Return the kinds to observe after one of these events."""
        return frozenset(kind.state for kind in self if not kind.events.isdisjoint(events))

    @cached_property
    def linked(self) -> frozenset[type[State]]:
        """Return the kinds of which a state may make links."""
        return frozenset(kind.state for kind in self if kind.makes is not _nothing)

    @cached_property
    def devices(self) -> frozenset[type[State]]:
        """Return the kinds of tunnels' devices."""
        return frozenset(state for state in self.linked if Event.TUNNEL in self[state].events)

    @cached_property
    def polled(self) -> frozenset[type[State]]:
        """Return the kinds that are observed every second."""
        return frozenset(kind.state for kind in self if kind.poll)

    @cached_property
    def imposed(self) -> tuple[type[State], ...]:
        """Return the kinds that are put back inside containers, too."""
        return tuple(kind.state for kind in self if kind.imposed)

    @cached_property
    def prefixes(self) -> tuple[str, ...]:
        """Return how the names of all our links begin. Others' may begin so, too: the alternative name decides."""
        return tuple(name.rstrip("*") for kind in self for name in kind.names)

    @cached_property
    def resolving(self) -> tuple[str, ...]:
        """Return how the names of our links begin that ask for neighbours' MACs."""
        return tuple(name.rstrip("*") for kind in self if kind.resolves for name in kind.names)

    @cached_property
    def tunnels(self) -> tuple[str, ...]:
        """Return how the names of our tunnel devices begin."""
        return tuple(name.rstrip("*") for name in (*self.plain_tunnels, *self.grouped_tunnels))

    @cached_property
    def plain_tunnels(self) -> tuple[str, ...]:
        """Return the names of our tunnel devices that do not encrypt, as rules have them."""
        return tuple(name for kind in self if kind.wire is not None and not kind.grouped for name in kind.names)

    @cached_property
    def grouped_tunnels(self) -> tuple[str, ...]:
        """Return the names of our tunnel devices that encrypt."""
        return tuple(name for kind in self if kind.wire is not None and kind.grouped for name in kind.names)

    def admitting(self, how: Admission) -> tuple[str, ...]:
        """Return the names of the links whose packets are admitted in this way, as rules have them."""
        return tuple(name for kind in self for name, by in kind.admits.items() if by is how)

    def in_order(self, states: Iterable[State]) -> Callable[[State], tuple[int, bool, int]]:
        """Return a sort key by which no state comes before its link.

        Until then another program's link may have that name. A link that a helper makes comes late.
        """
        late = {link: kind.rank for s in states if (kind := self.of(s)).late for link in kind.makes(s)}

        def place(state: State) -> tuple[int, bool, int]:
            kind = self.of(state)
            after = max((late[link] for link in kind.on(state) if link in late), default=0) if late else 0
            return max(after, kind.rank), bool(after), kind.rank

        return place
