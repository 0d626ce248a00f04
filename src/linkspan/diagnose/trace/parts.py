"""What is told of a packet's walk from host to host: where it begins on one, and what that host found."""

from __future__ import annotations

import msgspec

from linkspan.diagnose.trace.hops import OUTSIDE, Hop, Translation, Unknown
from linkspan.diagnose.trace.questions import Outer, Packet

CONTROLLER = "(controller)"
"""Who is asked for the way through an underlay's switches, as if it were a host; no host can have this name."""


class Entry(msgspec.Struct, frozen=True):
    """Where a packet's walk through a host begins.

    In the namespace ``netns``; where that is OUTSIDE, it comes in by ``device``, or (from another host, wrapped
    in ``outer``) by the link of the underlay address ``at``, in a frame with ``macs``: its sender's and for whom it
    is, b'' where that is not known.
    """

    packet: Packet
    netns: int = OUTSIDE
    device: str = ""
    at: bytes = b""
    outer: Outer | None = None
    macs: tuple[bytes, bytes] = (b"", b"")
    translation: Translation = msgspec.field(default_factory=Translation)


class Part(msgspec.Struct, frozen=True, tag="part"):
    """What was found on one host: the packet ended in ``end``, or left by ``exit`` for host ``to``.

    ``broken`` says why it got no further; ``silent`` that it is sent, and nobody is there to take it. ``unknown``
    are the places at which this host cannot tell whether the packet passes. ``macs`` are those
    of the frame that is sent, where the next host is on the same link. ``listens`` tells whether a socket takes the
    connection where it ended, None where that is no question.
    """

    hops: tuple[Hop, ...]
    mtu: int
    end: int
    exit: str
    translation: Translation
    packet: Packet
    to: str = ""
    at: bytes = b""
    outer: Outer | None = None
    macs: tuple[bytes, bytes] = (b"", b"")
    broken: str = ""
    silent: str = ""
    unknown: tuple[Unknown, ...] = ()
    listens: bool | None = None
