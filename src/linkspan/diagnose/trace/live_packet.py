"""Packet of a live trace, and how it and its answer are recognised wherever they are captured.

The packet has a mark: an echo request as its payload, a TCP SYN as its sequence number. The reply has the
same payload, the SYN-ACK or RST acknowledges that number, and address translation changes neither. So whoever
knows the mark before can listen for the packet on another host, or have nftables follow it (``matches``).
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Callable, Container, Iterator
from contextlib import AbstractContextManager

from linkspan.core.addresses import SOCKET_FAMILY
from linkspan.core.errors import of_errno
from linkspan.diagnose.trace.hops import show
from linkspan.diagnose.trace.packet import Packet

MARK = 16
"""Bytes of a mark; TCP has room for the first four."""

_ECHO = {4: (8, 0), 6: (128, 129)}  # request and reply: RFC 792, RFC 4443
_ICMP = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}
_ECHOES, _TCP = frozenset(_ICMP.values()), frozenset({socket.IPPROTO_TCP})
_HEADER = {4: 20, 6: 40}
"""Bytes of an IP header."""
_USUAL = 56
"""Bytes of payload in a usual ping, ping(8)."""
_SYN_SIZE = 40
"""Bytes of Linux's SYN: a header, and options of 20 bytes."""
_MTU_DISCOVER, _MTU_DISCOVER6, _PROBE = 10, 23, 3
"""linux/in.h, in6.h: IP_PMTUDISC_PROBE sends with DF, whatever path MTU is cached."""
_SYN, _RST, _ACK = 0x02, 0x04, 0x10
_REPAIR, _REPAIR_QUEUE, _QUEUE_SEQ, _SEND_QUEUE = 19, 20, 21, 2  # linux/tcp.h
_IPIP, _IPV6_IN = 4, 41  # RFC 2003, RFC 4213
_VXLAN, _TO_INNER = b"\x08\0\0\0", 8 + 8 + 14  # RFC 7348 section 5: flags; UDP, VXLAN and Ethernet headers
_WRAPPED = 3
"""Largest number of IP headers of a packet: its own, a tunnel's, and another tunnel's."""


def new_mark() -> bytes:
    """Return a mark."""
    return os.urandom(MARK)


def way(protocol: str, mark: bytes, frame: bytes) -> int | None:
    """Return 0 for the packet with this mark, 1 for its answer, None for anything else; wrapped or not."""
    return _echo_way(mark, frame) if protocol == "icmp" else _syn_way(mark, frame)


def attempt(frame: bytes) -> int:
    """Return which one of the pings with one mark this is, or the answer to it; 0 if it is no ping."""
    found = _payload(frame, _ECHOES)
    return int.from_bytes(found[6:8], "big") if found else 0


def _echo_way(mark: bytes, frame: bytes) -> int | None:
    found = _payload(frame, _ECHOES)  # an ICMP error quotes the request behind headers of its own
    return None if found is None else _of_echo(mark, found)


def _of_echo(mark: bytes, message: bytes) -> int | None:
    if message[8 : 8 + MARK] != mark:
        return None
    return next((way for kinds in _ECHO.values() for way, k in enumerate(kinds) if k == message[0]), None)


def _syn_way(mark: bytes, frame: bytes) -> int | None:
    segment = _payload(frame, _TCP)
    if segment is None or len(segment) < 14:
        return None
    own, acknowledged = struct.unpack_from("!II", segment, 4)
    flags, wanted = segment[13], _sequence(mark)
    if flags & _SYN and not flags & _ACK:
        return 0 if own == wanted else None
    answer = flags & _ACK and flags & (_SYN | _RST)
    return 1 if answer and acknowledged == (wanted + 1) % 2**32 else None


def _sequence(mark: bytes) -> int:
    return int.from_bytes(mark[:4], "big") or 1  # the kernel would replace 0 by another value


def _payload(frame: bytes, protocols: Container[int]) -> bytes | None:
    """Return an IP packet's payload of one of the protocols, inside any tunnels."""
    for _ in range(_WRAPPED):
        if len(frame) < 20:
            return None
        four = frame[0] >> 4 == 4
        header, protocol = ((frame[0] & 15) * 4, frame[9]) if four else (40, frame[6])
        body = frame[header:]
        if protocol in protocols:
            return body
        if protocol == socket.IPPROTO_UDP and body[8:12] == _VXLAN:
            frame = body[_TO_INNER:]
        elif protocol in (_IPIP, _IPV6_IN):
            frame = body
        else:
            return None
    return None


THERE, BACK = "there", "back"
"""The packet and the answer to it, as ``matches`` names them."""

_Field = tuple[int, int, str]
"""Bytes from the transport header, bits, and the value there as nft writes it."""


def matches(protocol: str, mark: bytes) -> dict[str, tuple[str, ...]]:
    """Return nft expressions that match the packet and its answer, bare or in a tunnel that does not encrypt.

    They use nothing that address translation changes.
    """
    if protocol == "icmp":
        bare, payload = "{ icmp, ipv6-icmp }", (8, 8 * MARK, f"0x{mark.hex()}")
        kinds = (", ".join(str(kinds[way]) for kinds in _ECHO.values()) for way in (0, 1))
        ways: list[tuple[_Field, ...]] = [((0, 8, f"{{ {kind} }}"), payload) for kind in kinds]
    else:
        bare, number = "tcp", _sequence(mark)
        ways = [((4, 32, f"{number}"),), ((8, 32, f"{(number + 1) % 2**32}"),)]
    return {name: tuple(_placed(bare, fields)) for name, fields in zip((THERE, BACK), ways, strict=True)}


def _placed(bare: str, fields: tuple[_Field, ...]) -> Iterator[str]:
    """Yield the match of the packet itself, and behind each header that a tunnel may add."""
    yield _match(bare, 0, fields)
    for header in (20, 40):  # an IP header without options
        yield _match(f"{{ {_IPIP}, {_IPV6_IN} }}", header, fields)
        yield _match("udp", _TO_INNER + header, fields)


def _match(protocol: str, shift: int, fields: tuple[_Field, ...]) -> str:
    raw = " ".join(f"@th,{8 * (shift + at)},{bits} {value}" for at, bits, value in fields)
    return f"meta l4proto {protocol} {raw}"


class Probe:
    """The packet to send from a namespace that ``entered`` enters; it may be sent again.

    ``sockets`` are those that sent it; ``refused`` becomes true if the source's own rules drop it (EPERM),
    ``reset`` if the answer says that nothing listens. ``size`` is the whole packet's, in bytes.
    """

    def __init__(
        self,
        packet: Packet,
        mark: bytes,
        entered: Callable[[], AbstractContextManager[object]],
        size: int = 0,
    ) -> None:
        """Prepare the packet; ``size`` is a ping's, sent unfragmented; 0 is the usual one."""
        self._packet = packet
        self._mark = mark
        self._entered = entered
        self._whole = bool(size)
        usual = _SYN_SIZE if packet.protocol == "tcp" else 8 + _USUAL
        self.size = size or _HEADER[packet.family] + usual
        self.sockets: list[socket.socket] = []
        self.refused = False
        self.reset = False
        self._answered = False
        self._sent = 0
        self._connecting: list[socket.socket] = []

    def close(self) -> None:
        """Close the sockets, whatever the state of the connections."""
        for one in self.sockets:
            one.close()

    def send(self) -> None:
        """Send it from the source's address. Raises KernelError if even that is impossible."""
        with self._entered():
            try:
                if self._packet.protocol == "icmp":
                    self._ask()
                else:
                    self._connect()
            except OSError as error:
                if error.errno == errno.EPERM:
                    self.refused = True
                elif error.errno not in _NO_WAY:  # if the kernel has no route for it, the hops say so
                    raise of_errno(error.errno or 0, f"send a packet to {show(self._packet.target)}") from error

    def way(self, frame: bytes) -> int | None:
        """Return 0 for the packet, 1 for the answer, None for anything else."""
        return way(self._packet.protocol, self._mark, frame)

    def answered(self) -> bool:
        """Return whether an answer has reached the sender, past all rules of its namespace.

        A refused connection counts, because a destination without a listener answers so.
        """
        if self._packet.protocol == "tcp":
            _, connected, _ = select.select([], self._connecting, [], 0)
            for one in connected:
                code = one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                self.reset |= code == errno.ECONNREFUSED
                self._answered |= self.reset or code == 0
        else:
            ready, _, _ = select.select(self.sockets, [], [], 0)
            for one in ready:
                message = one.recv(65535)
                if self._packet.family == 4:  # raw sockets of IPv6 give no header, raw(7)
                    message = message[(message[0] & 15) * 4 :]
                self._answered |= _of_echo(self._mark, message) == 1
        return self._answered

    def _opened(self, kind: int, protocol: int = 0) -> socket.socket:
        found = socket.socket(SOCKET_FAMILY[self._packet.family], kind, protocol)
        self.sockets.append(found)
        found.setblocking(False)
        return found

    def _ask(self) -> None:
        kind = _ECHO[self._packet.family][0]
        self._sent += 1
        # An id of its own: with another probe's id, connection tracking would send this one along the other's
        # path.
        body = struct.pack("!BBH2sH", kind, 0, 0, self._mark[:2], self._sent) + self._mark
        body += bytes(self.size - _HEADER[self._packet.family] - len(body))
        body = body[:2] + struct.pack("!H", _checksum(body)) + body[4:]  # the kernel computes IPv6's again
        raw = self._opened(socket.SOCK_RAW, _ICMP[self._packet.family])
        if self._whole and self._packet.family == 4:
            raw.setsockopt(socket.IPPROTO_IP, _MTU_DISCOVER, _PROBE)
        elif self._whole:
            raw.setsockopt(socket.IPPROTO_IPV6, _MTU_DISCOVER6, _PROBE)
        raw.bind((show(self._packet.source), 0))
        raw.sendto(body, (show(self._packet.target), 0))

    def _connect(self) -> None:
        """Start to connect, with a sequence number of our choice: TCP_REPAIR is used for nothing else."""
        stream = self._opened(socket.SOCK_STREAM)
        stream.setsockopt(socket.IPPROTO_TCP, _REPAIR, 1)
        stream.setsockopt(socket.IPPROTO_TCP, _REPAIR_QUEUE, _SEND_QUEUE)
        stream.setsockopt(socket.IPPROTO_TCP, _QUEUE_SEQ, struct.pack("=I", _sequence(self._mark)))
        stream.setsockopt(socket.IPPROTO_TCP, _REPAIR, 0)
        stream.bind((show(self._packet.source), 0))
        error = stream.connect_ex((show(self._packet.target), self._packet.port))
        if error in (0, errno.EINPROGRESS):
            self._connecting.append(stream)
        elif error:
            raise OSError(error, "connect")


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
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF
