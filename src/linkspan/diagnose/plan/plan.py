"""Plan: states as the commands that a person would type.

Each kind's declaration has the command lines for ``sh`` that make a state. Typed in the order of ``ordered``
on a host without any of it, they make the same objects that the drivers make; a test types them and pings.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping

import msgspec

from linkspan.core.shell import STATE_DIR, Paths, Shell
from linkspan.core.states.host import Key, State
from linkspan.kernel.kinds import kinds


def commands(state: State, paths: Paths, state_dir: str = STATE_DIR) -> tuple[str, ...]:
    """Return the command lines that make the state, in order.

    ``paths`` finds a container's namespace, and ``state_dir`` is the state folder as the shell reads it.
    """
    return kinds().of(state).commands(state, Shell(paths, state_dir, kinds().tunnels))


def ordered(states: Iterable[State]) -> list[State]:
    """Return the states in an order for typing: by rank, and states on a link after it."""
    every = list(states)
    place = kinds().in_order(every)
    groups = itertools.groupby(sorted(every, key=place), lambda state: (place(state), kinds().of(state)))
    return [state for (_, kind), group in groups for state in kind.typed(list(group))]


def endings(states: Iterable[State], state_dir: str = STATE_DIR) -> Iterator[tuple[str, str, str]]:
    """Yield commands to type once, after all states: the kind under which the plan shows each, and its purpose."""
    found = dict.fromkeys(ending for state in states if (ending := kinds().of(state).ending) is not None)
    for ending in found:
        yield ending.state.__name__, ending.command(state_dir), ending.purpose


class Line(msgspec.Struct, frozen=True):
    """One line of a plan, as docs/json.md has it; ``present`` says whether the kernel has the object already."""

    kind: str
    key: str
    command: str
    why: str
    present: bool


def lines(
    states: Iterable[State],
    owners: Mapping[Key, Iterable[tuple[str, ...]]],
    absent: Collection[Key],
    meanwhile: Mapping[Key, str],
    paths: Paths,
    state_dir: str,
) -> Iterator[Line]:
    """Yield the lines of a plan: each state's commands, with the sources that want it, its ``owners``.

    ``absent`` are the states that the kernel does not have. ``meanwhile`` says why some are there while a network
    migrates.
    """
    every = list(states)
    for state in ordered(every):
        reason = f"{purpose(state)}, for {' and '.join(map(why, owners[state.key]))}"
        reason += f" ({meanwhile[state.key]})" if state.key in meanwhile else ""
        for command in commands(state, paths, state_dir):
            yield Line(type(state).__name__, state.label, command, reason, state.key not in absent)
    for kind, command, reason in endings(every, state_dir):
        yield Line(kind, "all", command, reason, not any(key[0] == kind for key in absent))


def concerns(source: tuple[str, ...], network: str) -> bool:
    """Return whether a source is a network's or the host's, by its name; a container's name shows no network."""
    match source:
        case ("host", *_):
            return True
        case ("network" | "peer", name, *_):
            return name == network
        case ("names", *names):
            return network in names
    return False


def why(source: tuple[str, ...]) -> str:
    """Return in a few words the reason for the states of a source."""
    match source:
        case ("network", name):
            return f"network {name}"
        case ("attachment", container, ifname):
            return f"container {container[:12]}, interface {ifname}"
        case ("container", _):
            return "all networks of one container"
        case ("peer", network, host):
            return f"network {network}, to reach host {host}"
        case ("names", network):
            return f"names in network {network}"
        case ("names",):
            return "names for containers in several networks"
        case ("names", *networks):
            return f"names for containers in networks {', '.join(networks[:-1])} and {networks[-1]}"
        case ("host", *_):
            return "this host, for all networks"
    return " ".join(source)


def purpose(state: State) -> str:
    """Return in a few words the purpose of an object of this kind."""
    return kinds().of(state).purpose
