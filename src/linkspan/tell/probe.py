"""The packet that a live trace sends, and how it and its answer are known again wherever they are captured.

The packet bears a mark: an echo request as its payload, a TCP SYN as its sequence number. The reply has the same
payload, the SYN-ACK or RST acknowledges that number, and neither is changed by address translation. So whoever is
told the mark before can listen for the packet on another host.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable
from contextlib import AbstractContextManager

from linkspan.addresses import SOCKET_FAMILY
from linkspan.errors import of_errno
from linkspan.tell.hops import show
from linkspan.tell.questions import Packet

MARK = 16
"""Bytes of a mark; TCP has room for the first four."""

_ECHO = {4: (8, 0), 6: (128, 129)}  # request and reply: RFC 792, RFC 4443
_ICMP = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}
_SYN, _RST, _ACK = 0x02, 0x04, 0x10
_REPAIR, _REPAIR_QUEUE, _QUEUE_SEQ, _SEND_QUEUE = 19, 20, 21, 2  # linux/tcp.h
_IPIP, _IPV6_IN = 4, 41  # RFC 2003, RFC 4213
_VXLAN, _TO_INNER = b"\x08\0\0\0", 8 + 8 + 14  # RFC 7348 section 5: flags; UDP, VXLAN and Ethernet headers
_WRAPPED = 3
"""Headers of IP around a segment, at most: its own, a tunnel's, and another's tunnel."""


def new_mark() -> bytes:
    """Return a mark."""
    return os.urandom(MARK)


def way(protocol: str, mark: bytes, frame: bytes) -> int | None:
    """Return 0 for the packet with this mark, 1 for the answer to it, None for anything else; wrapped or not."""
    return _echo_way(mark, frame) if protocol == "icmp" else _syn_way(mark, frame)


def _echo_way(mark: bytes, frame: bytes) -> int | None:
    at = frame.find(mark)
    if at < 8 or at + MARK != len(frame):  # an ICMP error quotes the request behind headers of its own
        return None
    kind = frame[at - 8]
    return next((way for kinds in _ECHO.values() for way, k in enumerate(kinds) if k == kind), None)


def _syn_way(mark: bytes, frame: bytes) -> int | None:
    segment = _segment(frame)
    if segment is None or len(segment) < 14:
        return None
    own, acknowledged = struct.unpack_from("!II", segment, 4)
    flags, wanted = segment[13], _sequence(mark)
    if flags & _SYN and not flags & _ACK:
        return 0 if own == wanted else None
    answer = flags & _ACK and flags & (_SYN | _RST)
    return 1 if answer and acknowledged == (wanted + 1) % 2**32 else None


def _sequence(mark: bytes) -> int:
    return int.from_bytes(mark[:4], "big") or 1  # for 0 the kernel would choose another


def _segment(frame: bytes) -> bytes | None:
    """Return the TCP segment of an IP packet, through the tunnels that are around it."""
    for _ in range(_WRAPPED):
        if len(frame) < 20:
            return None
        four = frame[0] >> 4 == 4
        header, protocol = ((frame[0] & 15) * 4, frame[9]) if four else (40, frame[6])
        body = frame[header:]
        if protocol == socket.IPPROTO_TCP:
            return body
        if protocol == socket.IPPROTO_UDP and body[8:12] == _VXLAN:
            frame = body[_TO_INNER:]
        elif protocol in (_IPIP, _IPV6_IN):
            frame = body
        else:
            return None
    return None


class Probe:
    """The packet to send from a namespace that ``entered`` enters; it may be sent again."""

    def __init__(
        self, packet: Packet, mark: bytes, entered: Callable[[], AbstractContextManager[object]]
    ) -> None:
        self._packet = packet
        self._mark = mark
        self._entered = entered
        self._sockets: list[socket.socket] = []

    def close(self) -> None:
        """Close the sockets, whatever has become of the connections."""
        for one in self._sockets:
            one.close()

    def send(self) -> None:
        """Send it from the source's address. Raises KernelError where not even that is possible."""
        with self._entered():
            try:
                if self._packet.protocol == "icmp":
                    self._ask()
                else:
                    self._connect()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in _NO_WAY:  # where the kernel has no way for it, the hops say so
                    raise of_errno(error.errno or 0, f"send a packet to {show(self._packet.target)}") from error

    def way(self, frame: bytes) -> int | None:
        """Return 0 for the packet, 1 for the answer, None for anything else."""
        return way(self._packet.protocol, self._mark, frame)

    def _opened(self, kind: int, protocol: int = 0) -> socket.socket:
        found = socket.socket(SOCKET_FAMILY[self._packet.family], kind, protocol)
        self._sockets.append(found)
        found.setblocking(False)
        return found

    def _ask(self) -> None:
        kind = _ECHO[self._packet.family][0]
        body = struct.pack("!BBHHH", kind, 0, 0, os.getpid() & 0xFFFF, 1) + self._mark
        body = body[:2] + struct.pack("!H", _checksum(body)) + body[4:]  # of IPv6 the kernel does it anew
        raw = self._opened(socket.SOCK_RAW, _ICMP[self._packet.family])
        raw.bind((show(self._packet.source), 0))
        raw.sendto(body, (show(self._packet.target), 0))

    def _connect(self) -> None:
        """Begin to connect, with a sequence number of our choice: what else TCP_REPAIR is for is not done."""
        stream = self._opened(socket.SOCK_STREAM)
        stream.setsockopt(socket.IPPROTO_TCP, _REPAIR, 1)
        stream.setsockopt(socket.IPPROTO_TCP, _REPAIR_QUEUE, _SEND_QUEUE)
        stream.setsockopt(socket.IPPROTO_TCP, _QUEUE_SEQ, struct.pack("=I", _sequence(self._mark)))
        stream.setsockopt(socket.IPPROTO_TCP, _REPAIR, 0)
        stream.bind((show(self._packet.source), 0))
        stream.connect((show(self._packet.target), self._packet.port))


_NO_WAY = frozenset(
    {
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.EADDRNOTAVAIL,
        errno.ECONNREFUSED,
        errno.EACCES,
        errno.EINVAL,
    }
)


def _checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF
