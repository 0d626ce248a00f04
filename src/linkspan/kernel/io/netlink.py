"""Netlink by ``struct``: only what the hot path and the dumps need.

A batch is one ``sendmsg``. An error has the number of its message, and a message without an error succeeded
once the last one is acknowledged. The kernel processes it inside that call, which makes a batch atomic
against a SIGKILL. A dump of 1,000 routes, neighbours and FDB entries decodes in 5 ms.
"""

from __future__ import annotations

import mmap
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence

import msgspec

from linkspan.core.errors import KernelError, of_errno
from linkspan.kernel.io import socket_filter

# linux/netlink.h
ROUTE, NETFILTER, GENERIC = 0, 12, 16  # NETLINK_* in linux/netlink.h
F_REQUEST, F_ACK, F_DUMP, F_REPLACE, F_EXCL, F_CREATE = 0x1, 0x4, 0x300, 0x100, 0x200, 0x400
MSG_ERROR, MSG_DONE = 2, 3
_SOL_NETLINK, _EXT_ACK, _CAP_ACK, _STRICT = 270, 11, 10, 12
NLA_TYPE = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER

# linux/rtnetlink.h
NEWLINK, DELLINK, GETLINK, SETLINK = 16, 17, 18, 19
NEWADDR, DELADDR, GETADDR = 20, 21, 22
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
NEWNEIGH, DELNEIGH, GETNEIGH = 28, 29, 30
NEWRULE, DELRULE, GETRULE = 32, 33, 34
NEWLINKPROP = 108

_SNDBUFFORCE, _RCVBUFFORCE = 32, 33  # asm-generic/socket.h
_ROOM = 16 << 20
"""Buffer size in bytes, a limit and not memory: the notifications of 4,000 peers that appear at once take 12 MB of it
(768 bytes each and more), a transaction with their elements 0.4 MB."""

_HEADER = struct.Struct("=IHHII")
ATTR = struct.Struct("=HH")
_INT = struct.Struct("=i")
BATCH = 500
"""Messages in one send: more would not fit the default socket buffer of 208 KiB (measured with routes)."""


class Message(msgspec.Struct, frozen=True, gc=False):
    """A request without its header; ``what`` describes it for the error, or is called only then."""

    type: int
    flags: int
    body: bytes
    what: str | Callable[[], str]

    def described(self) -> str:
        """Return the request's description."""
        return self.what if isinstance(self.what, str) else self.what()


def attr(kind: int, data: bytes) -> bytes:
    """Pack one attribute, padded to four bytes."""
    return ATTR.pack(4 + len(data), kind) + data + bytes(-len(data) % 4)


def u32(kind: int, value: int) -> bytes:
    """Pack a 32-bit attribute in host order."""
    return attr(kind, struct.pack("=I", value))


def text(kind: int, value: str) -> bytes:
    """Pack a string attribute with its terminating zero."""
    return attr(kind, value.encode(errors="surrogateescape") + b"\0")


def attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """Unpack attributes from ``offset`` on; keep the last of a repeated one."""
    found = {}
    last, unpack = len(data) - 4, ATTR.unpack_from
    while offset <= last:
        length, kind = unpack(data, offset)
        if length < 4:
            break
        found[kind & NLA_TYPE] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def string(data: bytes) -> str:
    """Return a string attribute's text."""
    return data.rstrip(b"\0").decode(errors="surrogateescape")


class _Buffer(threading.local):
    """A thread's buffer for one datagram of any length; only what datagrams have filled is in memory.

    A buffer for each receive would be a mapping each time, which glibc makes and removes: that takes longer than the
    rest of a request, and a container's attach makes twenty.
    """

    def __init__(self) -> None:
        self.room = mmap.mmap(-1, 1 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


_buffer = _Buffer()


class Socket:
    """A netlink socket in the namespace of the thread that makes it; it stays there."""

    def __init__(self, protocol: int = ROUTE, groups: Sequence[int] = ()) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        for option in (_EXT_ACK, _CAP_ACK, _STRICT):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)
        for forced, plain in ((_RCVBUFFORCE, socket.SO_RCVBUF), (_SNDBUFFORCE, socket.SO_SNDBUF)):
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, forced, _ROOM)
            except PermissionError:  # root of a user namespace only: net.core.rmem_max and wmem_max are the limits
                self._socket.setsockopt(socket.SOL_SOCKET, plain, _ROOM)
        self._socket.bind((0, 0))
        for group in groups:
            self.join(group)
        self.port = int(self._socket.getsockname()[0])
        self._sequence = 0

    def join(self, group: int) -> None:
        """Receive this group's messages from now on."""
        self._socket.setsockopt(_SOL_NETLINK, 1, group)  # NETLINK_ADD_MEMBERSHIP

    def only(self, kind: int) -> None:
        """Receive notifications of this type alone from now on."""
        shown = int.from_bytes(struct.pack("=H", kind), "big")  # as the filter loads two bytes of the header
        program = (
            (0x28, 0, 0, 4),  # A = the type of the message (linux/bpf_common.h, struct nlmsghdr)
            (0x15, 0, 1, shown),
            (0x06, 0, 0, 0xFFFFFFFF),  # pass
            (0x06, 0, 0, 0),  # drop
        )
        socket_filter.attach(self._socket, program)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def fileno(self) -> int:
        """Return the descriptor, for a loop to watch."""
        return self._socket.fileno()

    def receive(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield (type, sender's port, body) of all messages of one datagram; raises OSError as recv does."""
        for kind, _, _, port, body in self._messages(self._received(socket.MSG_DONTWAIT)):
            yield kind, port, body

    def batch(self, messages: Sequence[Message]) -> list[KernelError | None]:
        """Send the messages, at most BATCH in one send, and return each one's error or None."""
        results: list[KernelError | None] = []
        for start in range(0, len(messages), BATCH):
            results += self._batch(messages[start : start + BATCH])
        return results

    def request(self, message: Message) -> None:
        """Send one message; raises KernelError."""
        (error,) = self._batch([message])
        if error is not None:
            raise error

    def get(self, message: Message) -> bytes:
        """Send a request with one message as answer, and return its body; raises KernelError."""
        self._sequence += 1
        self._socket.send(self._packed(message, F_REQUEST, self._sequence))
        while True:
            for kind, _, sequence, _, body in self._messages(self._received()):
                if sequence == self._sequence:
                    if kind == MSG_ERROR:
                        raise of_errno(-_INT.unpack_from(body)[0], message.described(), _extended(body))
                    return body

    def dump(self, kind: int, body: bytes, what: str) -> list[bytes]:
        """Return the body of each object in a dump; raises KernelError."""
        self._sequence += 1
        self._socket.send(self._packed(Message(kind, F_DUMP, body, what), F_REQUEST, self._sequence))
        objects: list[bytes] = []
        while True:
            for found, _, sequence, _, payload in self._messages(self._received()):
                if sequence != self._sequence:
                    continue
                if found in (MSG_DONE, MSG_ERROR):
                    failure = _INT.unpack_from(payload)[0] if len(payload) >= 4 else 0
                    if failure:
                        raise of_errno(-failure, what, _extended(payload))
                    return objects
                objects.append(payload)

    def transaction(self, begin: Message, messages: Sequence[Message], end: Message) -> KernelError | None:
        """Send messages as one batch of nfnetlink, which applies all or none; return the first error.

        A batch that does not fit the socket's buffer is an error (EMSGSIZE).
        """
        first = self._sequence + 1
        self._sequence += len(messages) + 2
        parts = [self._packed(begin, F_REQUEST, first)]
        parts += [self._packed(m, F_REQUEST | F_ACK, first + 1 + n) for n, m in enumerate(messages)]
        try:
            self._socket.send(b"".join([*parts, self._packed(end, F_REQUEST, self._sequence)]))
        except OSError as refusal:
            return of_errno(refusal.errno or 0, messages[0].described())
        missing = len(messages)
        error: KernelError | None = None
        while missing > 0:
            for kind, _, sequence, _, body in self._messages(self._received()):
                if kind != MSG_ERROR or not first <= sequence <= self._sequence:
                    continue
                inside = first < sequence < self._sequence
                missing -= 1 if inside else missing  # an answer to the frame is one for all
                if (failure := _INT.unpack_from(body)[0]) and error is None:
                    message = messages[sequence - first - 1] if inside else begin
                    error = of_errno(-failure, message.described(), _extended(body))
        return error

    def _received(self, flags: int = 0) -> bytes:
        """Return the next datagram; raises OSError as recv does."""
        room = _buffer.room
        return room[: self._socket.recv_into(room, 0, flags)]

    def _packed(self, message: Message, flags: int, sequence: int) -> bytes:
        header = _HEADER.pack(16 + len(message.body), message.type, message.flags | flags, sequence, 0)
        return header + message.body + bytes(-len(message.body) % 4)

    def _batch(self, messages: Sequence[Message]) -> list[KernelError | None]:
        """Send messages and return each one's error. Only the last asks for an acknowledgement; errors come unasked."""
        first = self._sequence + 1
        last = self._sequence = self._sequence + len(messages)
        packed = [self._packed(m, F_REQUEST, first + n) for n, m in enumerate(messages[:-1])]
        packed.append(self._packed(messages[-1], F_REQUEST | F_ACK, last))
        self._socket.send(b"".join(packed))
        results: list[KernelError | None] = [None] * len(messages)
        answered = 0
        while answered != last:
            for kind, _, sequence, _, body in self._messages(self._received()):
                if kind != MSG_ERROR or not first <= sequence <= last:
                    continue
                answered = sequence
                if failure := _INT.unpack_from(body)[0]:
                    message = messages[sequence - first]
                    results[sequence - first] = of_errno(-failure, message.described(), _extended(body))
        return results

    @staticmethod
    def _messages(data: bytes) -> Iterator[tuple[int, int, int, int, bytes]]:
        offset = 0
        while offset + 16 <= len(data):
            length, kind, flags, sequence, port = _HEADER.unpack_from(data, offset)
            yield kind, flags, sequence, port, data[offset + 16 : offset + length]
            offset += (length + 3) & ~3


def _extended(body: bytes) -> str:
    """Return the kernel's own words for an error (NLMSGERR_ATTR_MSG), which follow the capped request."""
    found = attributes(body, 20) if len(body) > 20 else {}
    return string(found[1]) if 1 in found else ""
