"""ICMP echo without another process: one raw socket per family asks any number of peers, and never waits.

The kernel answers for the peer, so this tests the path, and not whether an agent runs there.
"""

from __future__ import annotations

import os
import socket
import struct
import time

import msgspec

from linkspan.core.errors import of_errno
from linkspan.kernel.io.packets import checksum

_ECHO = {4: (8, 0), 6: (128, 129)}
"""Types of request and reply (RFC 792, RFC 4443 4.1)."""
_HEADER = struct.Struct("!BBHHH")
_SOL_RAW = 255  # linux/socket.h
_ICMP_FILTER = 1  # linux/icmp.h
_ICMPV6_FILTER = 1  # linux/icmpv6.h
_TIMESTAMPS = 35  # SO_TIMESTAMPNS in asm-generic/socket.h, and the type of its control message
_TIME = struct.Struct("@ll")
"""struct timespec."""
_MARK = b"linkspan"
_BURST = 512
"""Replies that are read in one turn of the loop."""


class Reply(msgspec.Struct, frozen=True):
    """An answer: the ``number`` of its request, and when the kernel received it, in seconds since the epoch.

    It waits in the socket until somebody reads it, so the time of the reading would say less about the path.
    """

    number: int
    at: float


class Echo:
    """Sends requests by ``ask``; ``answers`` are the addresses that have answered since."""

    def __init__(self, family: int) -> None:
        """Open the socket in the network namespace of the calling thread. Raises KernelError if it may not."""
        self._family = family
        self._id = int.from_bytes(os.urandom(2), "big")
        request, reply = _ECHO[family]
        self._sum = checksum(_HEADER.pack(request, 0, 0, self._id, 0) + _MARK)
        """Of a request with the number 0."""
        kind, protocol = (
            (socket.AF_INET, socket.IPPROTO_ICMP) if family == 4 else (socket.AF_INET6, socket.IPPROTO_ICMPV6)
        )
        try:
            self._socket = socket.socket(kind, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
            if family == 4:
                wanted = struct.pack("=I", 0xFFFFFFFF & ~(1 << (reply % 32)))
                self._socket.setsockopt(_SOL_RAW, _ICMP_FILTER, wanted)
            else:
                words = [0xFFFFFFFF] * 8
                words[reply // 32] &= ~(1 << (reply % 32))
                self._socket.setsockopt(socket.IPPROTO_ICMPV6, _ICMPV6_FILTER, struct.pack("=8I", *words))
            self._socket.setsockopt(socket.SOL_SOCKET, _TIMESTAMPS, 1)
        except OSError as error:
            raise of_errno(error.errno or 0, f"open a socket for ICMP echo of IPv{family}") from error

    def fileno(self) -> int:
        """Return the descriptor, which is readable when there are answers."""
        return self._socket.fileno()

    def ask(self, address: str, number: int = 0) -> bool:
        """Ask one address; return whether the request was sent, which needs room in the socket's buffer.

        Raises KernelError if the kernel has no route to it.
        """
        request, _ = _ECHO[self._family]
        left = self._sum - number  # the number is one more word of the sum (RFC 1071 section 2)
        check = 0 if self._family == 6 else left if left >= 0 else left + 0xFFFF  # the kernel fills in IPv6's
        head = _HEADER.pack(request, 0, check, self._id, number)
        try:
            self._socket.sendto(head + _MARK, (address, 0))
        except BlockingIOError:
            return False
        except OSError as error:
            raise of_errno(error.errno or 0, f"ping {address}") from error
        return True

    def answers(self) -> dict[str, Reply]:
        """Return the last answer of each address that has answered."""
        found = {}
        for _ in range(_BURST):
            try:
                data, control, _, sender = self._socket.recvmsg(128, socket.CMSG_SPACE(_TIME.size))
            except BlockingIOError:
                break
            except OSError:
                continue  # an ICMP error about an earlier packet
            body = data[(data[0] & 15) * 4 :] if self._family == 4 else data
            if len(body) < _HEADER.size or body[_HEADER.size :] != _MARK:
                continue
            _, _, _, id_, number = _HEADER.unpack_from(body)
            if id_ == self._id:
                found[str(sender[0])] = Reply(number, _received(control))
        return found

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def _received(control: list[tuple[int, int, bytes]]) -> float:
    """Return when the kernel received a packet, from its control messages."""
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == _TIMESTAMPS and len(data) >= _TIME.size:
            seconds, nanoseconds = _TIME.unpack_from(data)
            return float(seconds + nanoseconds / 1e9)
    return time.time()
