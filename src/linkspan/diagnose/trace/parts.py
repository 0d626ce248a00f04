"""Parts of a packet's walk: where it begins on a host, and what that host found."""

from __future__ import annotations

import msgspec

from linkspan.diagnose.trace.hops import OUTSIDE, Hop, Translation, Unknown
from linkspan.diagnose.trace.packet import Outer, Packet


class Entry(msgspec.Struct, frozen=True):
    """The begin of a packet's walk through a host.

    It begins in the namespace ``netns``. If that is OUTSIDE, the packet comes in by ``device``, or (from
    another host, wrapped in ``outer``) by the link of the underlay address ``at``, in a frame with ``macs``:
    source and destination, b'' if unknown.
    """

    packet: Packet
    netns: int = OUTSIDE
    device: str = ""
    at: bytes = b""
    outer: Outer | None = None
    macs: tuple[bytes, bytes] = (b"", b"")
    translation: Translation = msgspec.field(default_factory=Translation)


class Part(msgspec.Struct, frozen=True, tag="part"):
    """The findings on one host: the packet ended in ``end``, or left by ``exit`` for host ``to``.

    ``broken`` says why it got no further. ``silent``: it is sent, but nobody is there to receive it.
    ``unknown`` are the places where this host cannot decide whether the packet passes. ``macs`` are those of
    the sent frame, if the next host is on the same link. ``listens``: a socket accepts the connection at the
    end, None if that is no question.
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
