"""A stranger on the underlay who puts on the wire what was heard there."""

from __future__ import annotations

import socket
from collections.abc import Iterable


def replay(wire: socket.socket, frames: Iterable[bytes]) -> None:
    """Send frames as they were heard, but for UDP's checksum.

    A virtual link's sender leaves that to the device, which never fills it in: sent so, a frame would be dropped for
    its checksum alone, at any receiver. Zero means that there is none (RFC 768).
    """
    for frame in frames:
        udp = frame[12:14] == b"\x08\x00" and frame[23] == socket.IPPROTO_UDP
        wire.send(frame[:40] + bytes(2) + frame[42:] if udp else frame)
