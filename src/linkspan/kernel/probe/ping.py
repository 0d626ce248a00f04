"""ICMP echo without another process: one raw socket per family asks any number of peers, and never waits.

The kernel answers for the peer, so this tests the path, and not whether an agent runs there.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct

from linkspan.core.errors import KernelError, of_errno
from linkspan.kernel.io.packets import checksum

_ECHO = {4: (8, 0), 6: (128, 129)}
"""Types of request and reply (RFC 792, RFC 4443 4.1)."""
_HEADER = struct.Struct("!BBHHH")
_SOL_RAW = 255  # linux/socket.h
_ICMP_FILTER = 1  # linux/icmp.h
_ICMPV6_FILTER = 1  # linux/icmpv6.h
_MARK = b"linkspan"
_BURST = 512
"""Replies that are read in one turn of the loop."""


class Echo:
    """Sends requests by ``ask``; ``answers`` are the addresses that have answered since."""

    def __init__(self, family: int) -> None:
        """Open the socket in the network namespace of the calling thread. Raises KernelError if it may not."""
        self._family = family
        self._id = int.from_bytes(os.urandom(2), "big")
        request, reply = _ECHO[family]
        head = _HEADER.pack(request, 0, 0, self._id, 0)
        if family == 4:  # the kernel fills in IPv6's checksum
            head = _HEADER.pack(request, 0, checksum(head + _MARK), self._id, 0)
        self._packet = head + _MARK
        """The same for all: the answer's address says who has answered."""
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
        except OSError as error:
            raise of_errno(error.errno or 0, f"open a socket for ICMP echo of IPv{family}") from error

    def fileno(self) -> int:
        """Return the descriptor, which is readable when there are answers."""
        return self._socket.fileno()

    def ask(self, address: str) -> None:
        """Ask one address. Raises KernelError if the kernel has no route to it."""
        try:
            self._socket.sendto(self._packet, (address, 0))
        except BlockingIOError:
            return  # its buffer is full: the next round asks again
        except OSError as error:
            raise of_errno(error.errno or 0, f"ping {address}") from error

    def answers(self) -> set[str]:
        """Return the addresses that have answered."""
        found = set()
        with contextlib.suppress(BlockingIOError, KernelError):
            for _ in range(_BURST):
                try:
                    data, sender = self._socket.recvfrom(128)
                except OSError as error:
                    if isinstance(error, BlockingIOError):
                        raise
                    continue  # an ICMP error about an earlier packet
                body = data[(data[0] & 15) * 4 :] if self._family == 4 else data
                ours = len(body) >= _HEADER.size and body[_HEADER.size :] == _MARK
                if ours and _HEADER.unpack_from(body)[3] == self._id:
                    found.add(str(sender[0]))
        return found

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
