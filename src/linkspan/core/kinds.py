"""Kinds: what linkspan knows of each class of state, in one declaration beside the driver that serves it.

A kind of kernel object has two files: its state (``core/states``, or a package of somebody else's) and its driver with
the declaration (``kernel/drivers``). Reconciler, healer, events and plan name no class of state. They ask the
declarations: which link an object is on, what is looked at after an event, what a person would type. So a new kind
changes none of them.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Generic, TypeVar

import msgspec

from linkspan.core.contracts import Driver
from linkspan.core.desired import Desired
from linkspan.core.errors import Conflict
from linkspan.core.shell import Shell
from linkspan.core.states.host import HOST, Key, State
from linkspan.core.states.programs import Program
from linkspan.core.wire import Wire

S = TypeVar("S", bound=State)

Link = tuple[int, str]
"""A link by its network namespace (an inode, 0 for the host's own) and its name."""


ALL, BRIDGED = "*", "bridge"
"""Instead of the name of a container's port: all of them, and all on bridges."""


class Event(enum.Enum):
    """What may have changed, as far as a notification tells: it carries no state."""

    LINK = enum.auto()
    """A link of ours that is no tunnel device."""
    TUNNEL = enum.auto()
    """A tunnel device of ours, with all that is on it."""
    ADDRESS = enum.auto()
    """An address came or went; the host may be reached by another one."""
    ADDRESS_GONE = enum.auto()
    """An address went, or the host's own routes changed: what follows from them may have gone too."""
    ROUTE = enum.auto()
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
    """What people call an object, and several, where objects are counted, in the order of the count."""

    LINK = "link", "links"
    PLACE = "address, route or neighbour", "addresses, routes and neighbours"
    RULE = "firewall object", "firewall objects"
    SETTING = "kernel setting", "kernel settings"
    PROGRAM = "helper program", "helper programs"
    FILE = "file", "files"
    GROUP = "group", "groups"
    OTHER = "other", "others"


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
    """Return the link with a state's name: what it makes, or (a container's end) is on."""
    return ((netns_of(state), state.name),)


def on_device(state: Any) -> tuple[Link, ...]:
    """Return the link that is a state's device, none where it has none."""
    return ((netns_of(state), state.device),) if state.device else ()


def netns_of(state: State) -> int:
    """Return the network namespace that a state is in."""
    return int(getattr(state, "netns", HOST))


class Kind(msgspec.Struct, Generic[S], frozen=True, kw_only=True, eq=False):
    """One class of state: everything that linkspan knows of it beyond its key and values."""

    state: type[S]
    """The class; its name is the kind's name for users (heal log, JSON, metrics)."""
    rank: int
    """Puts go by ascending rank, deletes by descending."""
    known_by: str
    """How an agent with no memory knows such an object as ours: a row of ARCHITECTURE.md's table."""
    purpose: str
    """What such an object does, in a few words: the plan's reason."""
    sort: Sort = Sort.OTHER
    driver: Callable[[Any], Driver] | None = None
    """Makes the driver from the ``LocalHost``; kinds that name one function share the driver.

    None for what is on a device apart, a switch or a router: the controller makes its driver.
    """

    finds: Mapping[type[Program], Callable[[Any, Desired], Program | None]] = {}
    """The programs that may serve it, by their classes: each function looks for one, given the ``LocalHost`` and what
    is desired there, and returns the fact for backends, or None."""

    commands: Callable[[S, Shell], tuple[str, ...]] = _unsaid
    """The command lines that make it, in order; none for what is never desired."""
    typed: Callable[[Sequence[S]], Sequence[S]] = _as_given
    """The order in which a person types several of this kind."""
    ending: Ending | None = None

    on: Callable[[S], tuple[Link, ...]] = _nothing
    """The links that it is on: it is put only once they are there, and a link that was made anew may have lost it."""
    makes: Callable[[S], tuple[Link, ...]] = _nothing
    """The links that come and go with it; the host's end comes first."""
    falls: bool = False
    """Whether the kernel removes it with its link, and its driver remembers nothing of it: it needs no delete then."""
    late: bool = False
    """Whether its link comes only once a helper has started: what is on the link is put after this kind."""
    shut: Callable[[S], S] | None = None
    """Of a container's port: returns it as it is while the rules that guard the container do not hold."""
    lost_with: Callable[[S], tuple[Key, ...]] = _nothing
    """Keys of the objects, besides its links, with which it is lost or changed."""
    takes_along: tuple[type[State], ...] = ()
    """Kinds of which objects on the same link may be lost when one of this kind is removed or replaced."""
    read_by: type[State] | None = None
    """The kind of the helper programs that read it: a change is a reload."""

    part_of: Callable[[S], Key] | None = None
    """The key of the object for which another program fights when it changes this part of it."""
    guards: Callable[[S], frozenset[str]] = _nobody
    """The containers' ports that must be down while it is wrong: names of links, ALL or BRIDGED."""

    events: frozenset[Event] = frozenset()
    """What it is looked at after."""
    poll: bool = False
    """Whether it changes without an event, and is looked at every second."""
    alone: Callable[[S], bool] = _never
    """Tells of an object inside a container whether it is nobody's but ours: removed where nobody wants it any more."""
    counted: bool = True
    """Whether it is a fight if it is wrong again and again. Not what goes with a helper program, a switch or a router
    that starts anew: that has pauses of its own."""

    names: tuple[str, ...] = ()
    """What its links are called, with ``*`` at the end where something follows: reserved, so that no two kinds have one
    name. They begin with ``ls``: rules take all such links for ours. (Only the TUN of strongSwan's has another name.)
    """
    forms: Mapping[str, frozenset[str]] = {}
    """What its links are called in detail (regular expressions), with the types of link that they are (``ip -d link``):
    a link that lost its alternative name looks like ours by that."""
    grouped: bool = False
    """Whether its links encrypt, and bear GROUP: rules know them by that, too, because another's may have the name."""
    resolves: bool = False
    """Whether its links ask for neighbours' MACs: what is not checked there any more was put by somebody."""
    wire: Callable[[S], Wire] | None = None
    """Of a tunnel device: what it puts around its packets, for a trace."""

    @property
    def name(self) -> str:
        """The kind's name for users."""
        return self.state.__name__


def _meet(one: str, other: str) -> bool:
    """Tell whether a link may have a name of both."""
    first, second = one.rstrip("*"), other.rstrip("*")
    return first.startswith(second) or second.startswith(first)


class Kinds:
    """The kinds that are known on a host, by their classes of state and in the order of their ranks."""

    def __init__(self, kinds: Iterable[Kind[Any]] = ()) -> None:
        """Raises Conflict where two have one name, or names of links that cannot be told apart."""
        self._kinds: dict[type[State], Kind[Any]] = {}
        for kind in kinds:
            self._check(kind)
            self._kinds[kind.state] = kind
        self._kinds = dict(sorted(self._kinds.items(), key=lambda item: item[1].rank))

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
        """Return the links that come and go with a state."""
        return self.of(state).makes(state)

    def subject(self, state: State) -> Key:
        """Return the key of what is fought for where somebody keeps changing a state."""
        part_of = self.of(state).part_of
        return state.key if part_of is None else part_of(state)

    def guards(self, state: State) -> frozenset[str]:
        """Return the containers' ports that a state guards."""
        return self.of(state).guards(state)

    def rank(self, state: State) -> int:
        """Return the rank of a state's kind."""
        return self.of(state).rank

    def after(self, *events: Event) -> frozenset[type[State]]:
        """Return the kinds to look at after one of these events."""
        return frozenset(kind.state for kind in self if not kind.events.isdisjoint(events))

    @cached_property
    def polled(self) -> frozenset[type[State]]:
        """The kinds that are looked at every second."""
        return frozenset(kind.state for kind in self if kind.poll)

    @cached_property
    def prefixes(self) -> tuple[str, ...]:
        """How the names of all links of ours begin; others' may begin so, too: an alternative name tells."""
        return tuple(name.rstrip("*") for kind in self for name in kind.names)

    @cached_property
    def resolving(self) -> tuple[str, ...]:
        """How the names of our links begin that ask for neighbours' MACs."""
        return tuple(name.rstrip("*") for kind in self if kind.resolves for name in kind.names)

    @cached_property
    def tunnels(self) -> tuple[str, ...]:
        """How the names of our tunnel devices begin."""
        return tuple(name.rstrip("*") for name in (*self.plain_tunnels, *self.grouped_tunnels))

    @cached_property
    def plain_tunnels(self) -> tuple[str, ...]:
        """The names of our tunnel devices that encrypt nothing, as rules have them."""
        return tuple(name for kind in self if kind.wire is not None and not kind.grouped for name in kind.names)

    @cached_property
    def grouped_tunnels(self) -> tuple[str, ...]:
        """The names of our tunnel devices that encrypt."""
        return tuple(name for kind in self if kind.wire is not None and kind.grouped for name in kind.names)

    def in_order(self, states: Iterable[State]) -> Callable[[State], tuple[int, bool, int]]:
        """Return a key by which states are sorted so that none comes before its link.

        A link of another's may have that name until then. A link that a helper makes comes late.
        """
        late = {link: kind.rank for s in states if (kind := self.of(s)).late for link in kind.makes(s)}

        def place(state: State) -> tuple[int, bool, int]:
            kind = self.of(state)
            after = max((late[link] for link in kind.on(state) if link in late), default=0) if late else 0
            return max(after, kind.rank), bool(after), kind.rank

        return place
