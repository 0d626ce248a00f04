"""A BGP peer that says what it is told to, also what no router would: for tests of how one takes it.

It listens in a namespace, answers OPEN, keeps the session alive, and notes what it hears. It is no router: nothing
is chosen, and nothing goes to a kernel.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterable, Sequence

from linkspan.core.addresses import Prefix, prefix
from linkspan.lab.sockets import inside

OPEN, UPDATE, NOTIFICATION, KEEPALIVE = 1, 2, 3, 4
ORIGIN, AS_PATH, NEXT_HOP, MP_REACH, MP_UNREACH = 1, 2, 3, 14, 15
WELL_KNOWN, OPTIONAL, EXTENDED = 0x40, 0x80, 0x10
_SEQUENCE = 2
_UNICAST = {4: (1, 1), 6: (2, 1)}
_AS_TRANS = 23456
_HEADER = 19
_LARGEST = 4096  # RFC 4271 section 4.1


def message(kind: int, body: bytes = b"") -> bytes:
    """Return a whole message (RFC 4271 section 4.1)."""
    return b"\xff" * 16 + struct.pack("!HB", _HEADER + len(body), kind) + body


def attribute(flags: int, code: int, value: bytes) -> bytes:
    """Return a path attribute, with an extended length where it needs one."""
    if len(value) > 255 or flags & EXTENDED:
        return struct.pack("!BBH", flags | EXTENDED, code, len(value)) + value
    return struct.pack("!BBB", flags, code, len(value)) + value


def as_path(numbers: Sequence[int]) -> bytes:
    """Return AS_PATH: one sequence of four-byte numbers (RFC 6793)."""
    value = struct.pack("!BB", _SEQUENCE, len(numbers)) + b"".join(struct.pack("!I", n) for n in numbers)
    return attribute(WELL_KNOWN, AS_PATH, value if numbers else b"")


def nlri(prefixes: Iterable[str]) -> bytes:
    """Return prefixes as they go into a message."""
    found = []
    for text in prefixes:
        one = prefix(text)
        found.append(bytes([one.length]) + one.packed[: (one.length + 7) // 8])
    return b"".join(found)


def update(attributes: bytes = b"", announced: bytes = b"", withdrawn: bytes = b"") -> bytes:
    """Return the body of an UPDATE (RFC 4271 section 4.3)."""
    return (
        struct.pack("!H", len(withdrawn))
        + withdrawn
        + struct.pack("!H", len(attributes))
        + attributes
        + announced
    )


def _plain(next_hop: str, path: Sequence[int]) -> bytes:
    return (
        attribute(WELL_KNOWN, ORIGIN, b"\0")
        + as_path(path)
        + attribute(WELL_KNOWN, NEXT_HOP, prefix(next_hop).packed)
    )


def _malformed(target: str, hop: str, asn: int) -> dict[str, bytes]:
    """Return UPDATEs that are wrong, each in one way, about a prefix."""
    one, good = nlri([target]), _plain(hop, [asn])
    origin, path, next_hop = (
        attribute(WELL_KNOWN, ORIGIN, b"\0"),
        as_path([asn]),
        attribute(WELL_KNOWN, NEXT_HOP, prefix(hop).packed),
    )
    return {
        "attributes longer than the message": struct.pack("!HH", 0, 4000) + good + one,
        "withdrawn routes longer than the message": struct.pack("!H", 4000) + one,
        "prefix of 33 bits": update(good, b"\x21" + bytes(5)),
        "prefix cut off": update(good, one[:-1]),
        "origin 7": update(attribute(WELL_KNOWN, ORIGIN, b"\7") + path + next_hop, one),
        "no next hop": update(origin + path, one),
        "next hop of three bytes": update(origin + path + attribute(WELL_KNOWN, NEXT_HOP, b"\1\2\3"), one),
        "path segment of kind 9": update(
            origin + attribute(WELL_KNOWN, AS_PATH, b"\x09\x01\0\0\0\1") + next_hop, one
        ),
        "path segment cut off": update(
            origin + attribute(WELL_KNOWN, AS_PATH, b"\x02\x09\0\0\0\1") + next_hop, one
        ),
        "origin twice": update(origin + good, one),
        "well-known attribute that nobody knows": update(good + attribute(WELL_KNOWN, 99, b""), one),
        "flags of next hop wrong": update(
            origin + path + attribute(OPTIONAL, NEXT_HOP, prefix(hop).packed), one
        ),
    }


class RawPeer:
    """A peer at an address of a namespace, of whoever calls, or of ``only`` one address.

    ``heard`` are the prefixes that the other side announces now.
    """

    def __init__(
        self,
        netns: str,
        address: str,
        asn: int,
        *,
        only: str = "",
        hold: int = 90,
        families: Sequence[int] = (4, 6),
    ) -> None:
        self.address, self.asn, self.hold, self.families = address, asn, hold, tuple(families)
        self._only = only
        self.opens = 0
        self.heard: set[str] = set()
        self.notifications: list[tuple[int, int]] = []
        self._up = threading.Event()
        self._stream: socket.socket | None = None
        self._closed = False
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with inside(netns):
            self._server = socket.create_server((address, 179), family=family)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    # What a test says

    def established(self, seconds: float = 60.0) -> bool:
        """Wait for the session; return whether it is up."""
        return self._up.wait(seconds)

    def send(self, kind: int, body: bytes = b"") -> None:
        """Send any message, right or wrong."""
        assert self._stream is not None
        self._stream.sendall(message(kind, body))

    def announce(
        self, prefixes: Iterable[str], next_hop: str = "", path: Sequence[int] | None = None
    ) -> None:
        """Announce prefixes of one family, in as few messages as they fit in."""
        hop, numbers = next_hop or self.address, [self.asn] if path is None else path
        for chunk in _chunks([*prefixes]):
            if ":" in chunk[0]:
                start = struct.pack("!HBB", *_UNICAST[6], 16) + prefix(hop).packed + b"\0"
                attributes = attribute(WELL_KNOWN, ORIGIN, b"\0") + as_path(numbers)
                self.send(UPDATE, update(attributes + attribute(OPTIONAL, MP_REACH, start + nlri(chunk))))
            else:
                self.send(UPDATE, update(_plain(hop, numbers), nlri(chunk)))

    def withdraw(self, prefixes: Iterable[str]) -> None:
        """Take prefixes of one family back."""
        for chunk in _chunks([*prefixes]):
            if ":" in chunk[0]:
                gone = attribute(OPTIONAL, MP_UNREACH, struct.pack("!HB", *_UNICAST[6]) + nlri(chunk))
                self.send(UPDATE, update(gone))
            else:
                self.send(UPDATE, update(withdrawn=nlri(chunk)))

    def malformed(self, target: str) -> dict[str, bytes]:
        """Return bodies of UPDATEs about a prefix that are wrong in one way each, by what is wrong."""
        return _malformed(target, self.address, self.asn)

    def close(self) -> None:
        """End the session without a word, and listen no more."""
        self._closed = True
        for one in (self._server, self._stream):
            if one is not None:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                one.close()
        self._thread.join(5)

    # The session

    def _serve(self) -> None:
        while not self._closed:
            try:
                stream, caller = self._server.accept()
            except OSError:
                return
            if self._only not in ("", caller[0]):
                stream.close()
                continue
            self._stream = stream
            with stream, contextlib.suppress(OSError, EOFError):
                self._session(stream)
            self._up.clear()
            self.heard.clear()

    def _session(self, stream: socket.socket) -> None:
        self.opens += 1
        stream.sendall(message(OPEN, self._open()))
        beat = min(self.hold / 3, 1.0) if self.hold else 1.0
        last = time.monotonic()
        kept = b""
        stream.settimeout(beat)
        while True:
            with contextlib.suppress(TimeoutError):
                some = stream.recv(65536)
                if not some:
                    return
                kept = self._taken(stream, kept + some)
            if self._up.is_set() and time.monotonic() - last >= beat:
                last = time.monotonic()
                stream.sendall(message(KEEPALIVE))

    def _open(self) -> bytes:
        capabilities = [(1, struct.pack("!HBB", _UNICAST[f][0], 0, 1)) for f in self.families]
        capabilities.append((65, struct.pack("!I", self.asn)))
        text = b"".join(bytes([code, len(value)]) + value for code, value in capabilities)
        short = self.asn if self.asn < 1 << 16 else _AS_TRANS
        identifier = bytes([10, 255, 255, self.asn % 255 or 1])
        return (
            struct.pack("!BHH", 4, short, self.hold)
            + identifier
            + bytes([len(text) + 2, 2, len(text)])
            + text
        )

    def _taken(self, stream: socket.socket, data: bytes) -> bytes:
        """Take whole messages off the data; return what is left."""
        while len(data) >= _HEADER and len(data) >= (length := struct.unpack_from("!H", data, 16)[0]):
            kind, body = data[18], data[_HEADER:length]
            data = data[length:]
            if kind == OPEN:
                stream.sendall(message(KEEPALIVE))
            elif kind == KEEPALIVE:
                self._up.set()
            elif kind == NOTIFICATION:
                self.notifications.append((body[0], body[1]))
            elif kind == UPDATE:
                self._hear(body)
        return data

    def _hear(self, body: bytes) -> None:
        gone = struct.unpack_from("!H", body)[0]
        self.heard -= set(_prefixes(body[2 : 2 + gone], 4))
        size = struct.unpack_from("!H", body, 2 + gone)[0]
        start = 4 + gone
        self.heard |= set(_prefixes(body[start + size :], 4))
        attributes = body[start : start + size]
        while attributes:
            flags, code = attributes[0], attributes[1]
            head, length = (
                (4, struct.unpack_from("!H", attributes, 2)[0]) if flags & EXTENDED else (3, attributes[2])
            )
            value, attributes = attributes[head : head + length], attributes[head + length :]
            if code == MP_REACH and value[:3] == struct.pack("!HB", *_UNICAST[6]):
                self.heard |= set(_prefixes(value[5 + value[3] :], 6))
            elif code == MP_UNREACH and value[:3] == struct.pack("!HB", *_UNICAST[6]):
                self.heard -= set(_prefixes(value[3:], 6))


def _chunks(prefixes: list[str]) -> list[list[str]]:
    size = (_LARGEST - 200) // 17
    return [prefixes[at : at + size] for at in range(0, len(prefixes), size)]


def _prefixes(data: bytes, family: int) -> Iterable[str]:
    size = 4 if family == 4 else 16
    while data:
        count = (data[0] + 7) // 8
        yield str(Prefix(data[1 : 1 + count].ljust(size, b"\0"), data[0]))
        data = data[1 + count :]
