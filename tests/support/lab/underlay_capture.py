"""Eavesdropper on a lab's underlay: checks every frame that passes its switch for clear text."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from collections.abc import Iterable
from itertools import permutations

from linkspan.core.addresses import Prefix, prefix
from linkspan.lab import sockets
from support.lab.packet_sender import KNOWN

_ALL, _IP, _ARP = 0x0003, 0x0800, 0x0806  # linux/if_ether.h
_RCVBUFFORCE = 33  # asm-generic/socket.h
LARGE = b"L" * 48
"""Of the large datagrams that ``sending`` sends."""
PING = bytes.fromhex("6c65616b") * 6
"""Of the pings that are sent with this pattern."""
PATTERN = "6c65616b" * 4


class Capture:
    """Frames on all ports of a namespace's bridges; it begins with its making.

    A frame is in clear where it has a known payload in it, or where an inner address is in an outer header, in an
    ARP message, or beside another inner one anywhere (eight bytes, which chance does not make).
    """

    def __init__(self, namespace: str, pools: Iterable[str], addresses: Iterable[str]) -> None:
        self._pools = [prefix(pool) for pool in pools]
        packed = [prefix(address).packed for address in addresses]
        pairs = (b"".join(pair) for pair in permutations(packed, 2) if len(pair[0]) == len(pair[1]))
        self._marks = (KNOWN, LARGE, PING, *pairs)
        with sockets.inside(namespace):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, 32 << 20)
        self._socket.settimeout(0.2)
        self.frames: list[bytes] = []
        """Those that carry UDP, for replaying some."""
        self.clear: list[str] = []
        self.count = 0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End it, after all that has come so far."""
        self._ending.set()
        self._thread.join()
        self._socket.close()

    def _listen(self) -> None:
        while True:
            try:
                frame = self._socket.recv(1 << 16)
            except TimeoutError:
                if self._ending.is_set():
                    return
                continue
            self._look(frame)
            if self._ending.is_set() and not self._waiting():
                return

    def _waiting(self) -> bool:
        return bool(select.select([self._socket], [], [], 0)[0])

    def _look(self, frame: bytes) -> None:
        self.count += 1
        if len(self.frames) < 20000:
            self.frames.append(frame)
        if any(mark in frame for mark in self._marks) or any(map(self._inner, _addresses(frame))):
            self.clear.append(frame[:120].hex())

    def _inner(self, packed: bytes) -> bool:
        return any(len(pool.packed) == len(packed) and pool.holds(_single(packed)) for pool in self._pools)


def _single(packed: bytes) -> Prefix:
    return Prefix(packed, len(packed) * 8)


def _addresses(frame: bytes) -> Iterable[bytes]:
    """Yield the addresses of the outer header, or of an ARP message."""
    (kind,) = struct.unpack_from("!H", frame, 12) if len(frame) >= 14 else (0,)
    if kind == _IP:
        yield from (frame[26:30], frame[30:34])
    elif kind == _ARP:
        yield from (frame[28:32], frame[38:42])
    elif kind == 0x86DD:
        yield from (frame[22:38], frame[38:54])


class Echoes:
    """The echo requests that come to a container, by their source."""

    def __init__(self, namespace: str) -> None:
        with sockets.inside(namespace):
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self._socket.setblocking(False)
        self.seen: list[str] = []

    def look(self) -> list[str]:
        """Return the sources of all requests so far."""
        with contextlib.suppress(BlockingIOError):
            while True:
                packet, (source, _) = self._socket.recvfrom(1 << 16)
                if packet[(packet[0] & 15) * 4] == 8:
                    self.seen.append(source)
        return self.seen

    def close(self) -> None:
        """Let go."""
        self._socket.close()
