"""Packets made by hand, from the outer IP header on: sent like a host's or a router's, and captured anywhere.

Each ends with a *tail*: bytes common to a whole run of probes, by which the kernel's filter passes only that
run's packets, and bytes that identify one packet. Nothing on the host accepts them except this listener.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
from collections.abc import Iterator

import msgspec

from linkspan.core.addresses import SOCKET_FAMILY
from linkspan.core.errors import of_errno
from linkspan.core.needs import Need
from linkspan.kernel.io import socket_filter

NUMBERS = {"icmp": 1, "ipip": 4, "tcp": 6, "udp": 17, "esp": 50}
"""IANA's protocol numbers, by nft's words."""
COMMON, OWN = 4, 12
TAIL = COMMON + OWN
_IP4, _IP6, _ALL = 0x0800, 0x86DD, 0x0003  # linux/if_ether.h
_OUTGOING = 4  # PACKET_OUTGOING in linux/if_packet.h
_DF, _TTL = 0x4000, 64
_ETHERNET = 6
"""Bytes of a MAC."""
_HEADER = {4: 20, 6: 40}
_RECVERR: dict[int, tuple[int, int]] = {
    socket.AF_INET: (socket.IPPROTO_IP, 11),
    socket.AF_INET6: (socket.IPPROTO_IPV6, 25),
}
"""IP_RECVERR, IPV6_RECVERR in linux/in.h, linux/in6.h."""
_RCVBUFFORCE = 33
_ROOM = 4 << 20
_SYN = 0x5002  # five words of header, SYN (RFC 9293 3.1)
_BURST = 4096


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(~total & 0xFFFF)


def packet(need: Need, size: int, tail: bytes) -> bytes:
    """Return a packet of ``size`` bytes, not to be fragmented."""
    family = 4 if len(need.target) == 4 else 6
    left = size - _HEADER[family]
    number = NUMBERS[need.protocol]
    if need.port:
        head = 20 if need.protocol == "tcp" else 8
        body = _filled(need, left - head, tail)
        body = _ported(need, number, tail, body)
    else:
        body = _filled(need, left, tail)
    if family == 6:
        return struct.pack("!IHBB", 6 << 28, left, number, _TTL) + need.source + need.target + body
    header = struct.pack("!BBHHHBBH", 0x45, 0, size, 0, _DF, _TTL, number, 0) + need.source + need.target
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + body


def _filled(need: Need, left: int, tail: bytes) -> bytes:
    inside = need.inside(left)
    return inside + bytes(max(0, left - len(inside) - len(tail))) + tail


def _ported(need: Need, number: int, tail: bytes, body: bytes) -> bytes:
    source = 0xC000 | int.from_bytes(tail[:2], "big") >> 2  # RFC 6335: a dynamic port
    if need.protocol == "tcp":
        sequence = int.from_bytes(tail[-4:], "big")
        body = struct.pack("!HHIIHHHH", source, need.port, sequence, 0, _SYN, 0xFFFF, 0, 0) + body
        at = 16
    else:
        body = struct.pack("!HHHH", source, need.port, 8 + len(body), 0) + body
        at = 6
    pseudo = need.source + need.target + struct.pack("!II", len(body), number)
    return body[:at] + struct.pack("!H", checksum(pseudo + body) or 0xFFFF) + body[at + 2 :]


class Sender:
    """Sends packets in the network namespace of the calling thread."""

    def __init__(self) -> None:
        self._sockets: dict[int, socket.socket] = {}

    def close(self) -> None:
        """Close the sockets."""
        for one in self._sockets.values():
            one.close()

    def _socket(self, kind: int) -> socket.socket:
        if kind not in self._sockets:
            protocol = 0 if kind == socket.AF_PACKET else socket.IPPROTO_RAW
            type_ = socket.SOCK_DGRAM if kind == socket.AF_PACKET else socket.SOCK_RAW
            made = self._sockets[kind] = socket.socket(kind, type_ | socket.SOCK_CLOEXEC, protocol)
            if kind in _RECVERR:  # otherwise ENOBUFS is not reported (raw_sendmsg)
                made.setsockopt(*_RECVERR[kind], 1)
        return self._sockets[kind]

    def route(self, packet: bytes, target: bytes) -> None:
        """Send by the host's routes and its own firewall. Raises KernelError: EMSGSIZE, EPERM, no route."""
        kind = SOCKET_FAMILY[4 if len(target) == 4 else 6]
        name = socket.inet_ntop(kind, target)
        try:
            self._socket(kind).sendto(packet, (name, 0))
        except OSError as error:
            raise of_errno(error.errno or 0, f"send to {name}") from error

    def hand(self, packet: bytes, device: str, mac: bytes) -> None:
        """Send to a neighbour on a link, like a forwarded packet. Raises KernelError: EMSGSIZE, the link is down."""
        kind = _IP4 if packet[0] >> 4 == 4 else _IP6
        try:
            self._socket(socket.AF_PACKET).sendto(packet, (device, kind, 0, 0, mac))
        except OSError as error:
            raise of_errno(error.errno or 0, f"send on {device}") from error


class Arrival(msgspec.Struct, frozen=True):
    """A received packet: its outer header, link and sender's MAC (b'' if it has none), and its tail's own part."""

    tail: bytes
    source: bytes
    target: bytes
    protocol: int
    size: int
    device: str
    mac: bytes = b""


class Ear:
    """Captures packets on any link with the common part in their tail, before any rule could drop them."""

    def __init__(self, common: bytes) -> None:
        """Listen in the network namespace of the calling thread. Raises KernelError if the process may not."""
        try:
            kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
            self._socket = socket.socket(socket.AF_PACKET, kind, socket.htons(_ALL))
            try:
                self._socket.setblocking(False)
                with contextlib.suppress(PermissionError):
                    self._socket.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, _ROOM)
                _attach(self._socket, common)
            except OSError:
                self._socket.close()
                raise
        except OSError as error:
            raise of_errno(error.errno or 0, "listen for probes") from error

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def heard(self, seconds: float) -> Iterator[Arrival]:
        """Wait for packets, and yield those received."""
        if not select.select([self._socket], [], [], max(seconds, 0))[0]:
            return
        for _ in range(_BURST):
            try:
                data, (device, kind, way, _, sender) = self._socket.recvfrom(65535)
            except BlockingIOError:
                return
            if way == _OUTGOING or kind not in (_IP4, _IP6):
                continue
            if found := _arrival(data, device, sender if len(sender) == _ETHERNET else b""):
                yield found


def _arrival(data: bytes, device: str, sender: bytes) -> Arrival | None:
    if data[0] >> 4 == 4:
        return Arrival(data[-OWN:], data[12:16], data[16:20], data[9], len(data), device, sender)
    if data[0] >> 4 == 6 and len(data) > _HEADER[6]:
        return Arrival(data[-OWN:], data[8:24], data[24:40], data[6], len(data), device, sender)
    return None


def _attach(ear: socket.socket, common: bytes) -> None:
    """Let the kernel pass only packets that have the common part at the start of their tail (linux/bpf_common.h)."""
    program = (
        (0x80, 0, 0, 0),  # A = length of the packet
        (0x14, 0, 0, TAIL),  # A -= TAIL; a shorter one is loaded from nowhere below, and dropped
        (0x07, 0, 0, 0),  # X = A
        (0x40, 0, 0, 0),  # A = the word at X
        (0x15, 0, 1, int.from_bytes(common, "big")),
        (0x06, 0, 0, 0xFFFF),  # pass
        (0x06, 0, 0, 0),  # drop
    )
    socket_filter.attach(ear, program)
