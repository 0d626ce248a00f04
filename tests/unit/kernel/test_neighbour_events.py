"""Events of neighbours and forwarding entries: which are looked at, also after events were lost."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from typing import ClassVar

import pytest

from linkspan.core.states.host import FdbEntry, Neighbour, State
from linkspan.kernel import events
from linkspan.kernel.events import RouteEvents
from linkspan.kernel.io.link_messages import IFINFO, IFNAME
from linkspan.kernel.io.neighbour_messages import AF_BRIDGE, LLADDR, NDMSG, NOARP, PERMANENT
from linkspan.kernel.io.netlink import NEWNEIGH, attr, text
from linkspan.kernel.kinds import kinds

TUNNEL, BRIDGE = 7, 8
SINGLE, GROUP = bytes([2, 0, 0, 0, 0, 9]), bytes([3, 0, 0, 0, 0, 9])


class Kernel:
    """A netlink socket: ``links`` by index, and what each next ``receive`` yields or raises."""

    links: ClassVar[dict[int, str]] = {}
    coming: ClassVar[list[tuple[int, int, bytes] | OSError]] = []

    def __init__(self, *_options: object) -> None:
        self.port = 1

    def dump(self, *_question: object) -> Iterator[bytes]:
        """Return the links."""
        return (IFINFO.pack(0, 1, index, 0, 0) + text(IFNAME, name) for index, name in self.links.items())

    def receive(self) -> Sequence[tuple[int, int, bytes]]:
        """Return the next message, or raise the next error."""
        if not self.coming:
            raise BlockingIOError
        if isinstance(one := self.coming.pop(0), OSError):
            raise one
        return [one]

    def close(self) -> None:
        """Do nothing."""


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> RouteEvents:
    """Return the events of a host with a bridge."""
    monkeypatch.setattr(events, "Socket", Kernel)
    monkeypatch.setattr(Kernel, "links", {BRIDGE: "ls-demo"})
    monkeypatch.setattr(Kernel, "coming", [])
    return RouteEvents(kinds())


def _new(family: int, index: int, state: int, mac: bytes) -> tuple[int, int, bytes]:
    return NEWNEIGH, 99, NDMSG.pack(family, index, state, 0, 0) + attr(LLADDR, mac)


def test_a_tunnel_of_which_events_were_lost_is_known(found: RouteEvents) -> None:
    """Another program may change its entries right afterwards, and nobody looks at them each second."""
    Kernel.links[TUNNEL] = "lsx64"
    Kernel.coming.append(OSError(errno.ENOBUFS, "overrun"))
    assert {FdbEntry, Neighbour} <= found.dirty()
    Kernel.coming.append(_new(AF_BRIDGE, TUNNEL, 0, SINGLE))
    assert FdbEntry in found.dirty()


@pytest.mark.parametrize(
    ("state", "mac", "kind"),
    [
        (PERMANENT, SINGLE, {Neighbour}),
        (PERMANENT, GROUP, {Neighbour}),
        (NOARP, SINGLE, {Neighbour}),
        (NOARP, GROUP, set()),
        (0, SINGLE, set()),
    ],
)
def test_a_neighbour_that_lasts_is_looked_at(
    found: RouteEvents, state: int, mac: bytes, kind: set[type[State]]
) -> None:
    """Also a permanent one that leads to a group; the kernel itself makes groups' entries that are not permanent."""
    Kernel.coming.append(_new(2, BRIDGE, state, mac))
    assert found.dirty() == kind
