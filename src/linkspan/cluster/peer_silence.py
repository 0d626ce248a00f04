"""Events about peers that stop to answer pings, and that answer again; pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

import msgspec

from linkspan.core.errors import first_of

NAMED = 3
"""Hosts that one event names; it counts the others."""

Pair = tuple[str, str]


class SilenceChange(msgspec.Struct, frozen=True):
    """A sentence for the log of events, and what it is about."""

    what: str
    about: dict[str, str]


def changes(
    before: Collection[Pair], silent: Mapping[Pair, str], known: Collection[Pair], name: Callable[[str], str]
) -> Iterator[SilenceChange]:
    """Yield at most two changes, however many peers are concerned: those that are silent now, and those that answer.

    ``before`` and ``silent`` are the (network, host) pairs that did not answer, and do not now, with the reason. A pair
    that is not ``known`` any more does not answer again: it is gone. ``name`` returns a host's name.
    """
    lost = [pair for pair in silent if pair not in before]
    back = [pair for pair in before if pair not in silent and pair in known]
    if lost:
        yield _change(lost, "does not answer pings", "do not answer pings", f": {silent[lost[0]]}", name)
    if back:
        yield _change(back, "answers pings again", "answer pings again", "", name)


def _change(pairs: Collection[Pair], one: str, many: str, why: str, name: Callable[[str], str]) -> SilenceChange:
    hosts = sorted({name(host) for _, host in pairs})
    if len(hosts) == 1:
        networks = ", ".join(sorted({network for network, _ in pairs}))
        return SilenceChange(
            f"host {hosts[0]} {one} in network {networks}{why}", {"host": hosts[0], "network": networks}
        )
    return SilenceChange(f"{len(hosts)} hosts {many}: {first_of(hosts, NAMED)}", {"hosts": str(len(hosts))})
