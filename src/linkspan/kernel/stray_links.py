"""Stray links: links of ours without their alternative name, recognised by their other marks.

One command removes an alternative name (`ip link property del`), and some network managers do so. Two marks
then still suggest that a link is ours: the form of its name together with its kind, and its MAC. Either may
be chance. So one more mark must confirm it: our rules name it as a container's, routes of our protocol use
it, its group, a link of ours is its port, a row of the journal. The latter alone prove nothing, because the
underlay's own link has routes of ours, too. A link that only looks like ours is reported, and left alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any

import msgspec

from linkspan.core.addresses import derived_mac
from linkspan.core.errors import LinkspanError
from linkspan.core.kinds import Kind, Kinds
from linkspan.core.states.host import GROUP, HOST, NftElement, Route, State, Veth
from linkspan.kernel.drivers.links import Removal
from linkspan.kernel.io.link_messages import Link
from linkspan.kernel.io.sockets import Sockets

_GUARD = ("macs", "senders4", "senders6", "internal_links")
"""Sets that name only links of ours."""


class Stray(msgspec.Struct, frozen=True):
    """A link without our alternative name that looks like ours, with its ``marks`` in words."""

    index: int
    name: str
    marks: tuple[str, ...]

    @property
    def ours(self) -> bool:
        """Return whether it is certain enough to be removed."""
        return len(self.marks) > 1


def find(
    sockets: Sockets, kinds: Kinds, observed: Iterable[State], journalled: Collection[str], networks: Iterable[str]
) -> list[Stray]:
    """Return the host's links that look like ours, and do not have our alternative name.

    ``observed`` are our routes and elements on the host, ``journalled`` host ends in the journal,
    ``networks`` the networks whose MACs are known.
    """
    found = {link.number: link for link in sockets.links(HOST)}
    hosts_own = {derived_mac(word, name) for name in networks for word in ("bridge", "gateway")}
    ours = {index for index, link in found.items() if link.ours}
    ports = {index for index, link in found.items() if _looks_like(kinds[Veth], link)}
    bridges = {found[index].master for index in ours | ports}
    named = {s.parts[0] for s in observed if isinstance(s, NftElement) and s.set in _GUARD}
    routed = {s.device for s in observed if isinstance(s, Route) and s.device}
    strays = []
    for index in found.keys() - ours:
        link = found[index]
        name, kind = link.name, link.kind
        looks = {
            f"it is a {kind} and has a name like ours": any(_looks_like(one, link) for one in kinds),
            "its MAC is one that linkspan assigns": kind in ("veth", "bridge")
            and link.mac in {derived_mac("port", name), *hosts_own},
        }
        says = {
            "its name ends in a digest": index in ports,
            f"its group is {GROUP}": link.group == GROUP,
            "linkspan's guard knows it": name in named,
            "routes of protocol 76 use it": name in routed,
            "a link of linkspan's is its port": index in bridges,
            "it is a port of linkspan's bridge": link.master in ours,
            "the journal has it": name in journalled,
        }
        if any(looks.values()):
            marks = tuple(words for words, holds in (looks | says).items() if holds)
            strays.append(Stray(index, name, marks))
    return strays


def _looks_like(kind: Kind[Any], link: Link) -> bool:
    """Return whether a link has the type and the form of name of one of our kinds."""
    name, type_ = link.name, link.kind
    return any(re.fullmatch(pattern, name) and type_ in types for pattern, types in kind.forms.items())


def remove(strays: Iterable[Stray]) -> list[LinkspanError]:
    """Remove these links; one that is gone counts as removed. Return the errors."""
    removal = Removal(threads=1)
    try:
        return list(removal.remove({one.index: (("Stray", one.name), one.name) for one in strays}).values())
    finally:
        removal.close()
