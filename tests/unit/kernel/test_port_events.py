"""Events of bridge ports: which report something new."""

from __future__ import annotations

import struct

from linkspan.kernel.events import Ports
from linkspan.kernel.io.neighbour_messages import AF_BRIDGE
from linkspan.kernel.io.netlink import DELLINK, NEWLINK, attr, attributes, text, u32

STATE, LEARNING, FORWARD_DELAY_TIMER = 1, 8, 22  # IFLA_BRPORT_* in linux/if_link.h


def _told(
    index: int, *, state: int = 3, learning: bool = True, timer: int = 0, flags: int = 1, family: int = 7
) -> bytes:
    head = struct.pack("=BxHiII", family, 1, index, flags, 0)
    port = (
        attr(STATE, bytes([state]))
        + attr(LEARNING, bytes([learning]))
        + attr(FORWARD_DELAY_TIMER, bytes([timer] * 8))
    )
    return head + text(3, f"lsp{index}") + u32(10, 2) + attr(12 | 0x8000, port)


def _as_told(ports: Ports, kind: int, body: bytes) -> bool:
    return ports.as_told(kind, body, attributes(body, 16))


def test_the_end_of_a_bridges_forward_delay_tells_nothing_new() -> None:
    """It is the same message once more, with the timer at zero, and comes for each container."""
    ports = Ports()
    assert not _as_told(ports, NEWLINK, _told(5, timer=9))
    assert _as_told(ports, NEWLINK, _told(5, timer=0))


def test_a_change_of_a_port_is_new_each_time() -> None:
    """A port is changed, repaired, and changed again: both changes are checked."""
    ports = Ports()
    for learning in (True, False, True, False):
        assert not _as_told(ports, NEWLINK, _told(5, learning=learning))
    assert not _as_told(ports, NEWLINK, _told(5, learning=False, flags=0))
    assert not _as_told(ports, NEWLINK, _told(5, learning=False, state=0))


def test_each_port_is_told_of_by_itself() -> None:
    """One port's state says nothing about another's, and nothing about a port that was removed and came back."""
    ports = Ports()
    assert not _as_told(ports, NEWLINK, _told(5))
    assert not _as_told(ports, NEWLINK, _told(6))
    assert not _as_told(ports, DELLINK, _told(5))
    assert not _as_told(ports, NEWLINK, _told(5))


def test_an_event_of_the_link_itself_is_never_left_out() -> None:
    """It has what a port's event lacks: alternative names, the MAC."""
    ports = Ports()
    assert AF_BRIDGE == 7
    assert not any(_as_told(ports, NEWLINK, _told(5, family=0)) for _ in range(2))


def test_after_lost_events_each_port_is_new() -> None:
    """The lost event may have been a change."""
    ports = Ports()
    _as_told(ports, NEWLINK, _told(5))
    ports.clear()
    assert not _as_told(ports, NEWLINK, _told(5))
