"""Frames of a live trace, as the devices saw them, and all of them in one pcapng file: pure but for reading a socket.

A frame begins with a cooked header (SLL2), because the devices of a path differ in their link layer, and the
kernel describes each of them in this way. The file has one interface for each device of the path, named
HOST/NAMESPACE/DEVICE, in the path's order. Its frames are in the path's order, too: the hosts' clocks differ.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from linkspan.diagnose.trace.hops import Hop

Device = tuple[str, str]
"""A namespace's name and a device in it."""
Place = tuple[str, str, str]
"""A host's name, and a device there."""

SNAP = 512
"""Bytes that are kept of a packet: a usual ping has 84, and no tunnel adds more than 100."""
MOST_HOPS = 256
"""Hops of each way that count: other hosts say what they are, and a packet passes 64 routers at most."""
LONGEST_NAME = 255
"""Bytes of an interface's name in the file: its parts are what other hosts say."""
MOST = 64
"""Frames that a host keeps of one trace: they are an answer to another host's question, through the store."""

_TIMESTAMPS = 35  # SO_TIMESTAMPNS, asm-generic/socket.h
_TIMESPEC = struct.Struct("@qq")
_COOKED = struct.Struct("!HHIHBB8s")
"""LINKTYPE_LINUX_SLL2: protocol, reserved, interface, ARPHRD type, packet type, length of an address, address."""
_LINKTYPE = 276
_OUTGOING = 4  # PACKET_OUTGOING, linux/if_packet.h
_ALL = 0x0003  # ETH_P_ALL, linux/if_ether.h


class Received(NamedTuple):
    """A frame from a packet socket, without its link header, and what the kernel says about it."""

    data: bytes
    at: int = 0  # nanoseconds since the epoch
    address: tuple[Any, ...] = ()  # packet(7)


class Frame(msgspec.Struct, frozen=True):
    """A packet that a device saw, with its cooked header, at most SNAP bytes of it.

    ``back`` is true for the answer, ``at`` in nanoseconds since the epoch by that host's clock, ``size`` the
    whole packet's with the header. The packet is sent again while other hosts do not listen yet: ``attempt``
    says which one this is, 0 if the packet does not say.
    """

    device: Device
    back: bool
    at: int
    size: int
    data: bytes
    attempt: int = 0


def ear(device: str) -> socket.socket:
    """Return a packet socket that listens at a device of this namespace. Raises OSError."""
    found = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
    try:
        found.setsockopt(socket.SOL_SOCKET, _TIMESTAMPS, 1)
        found.bind((device, _ALL))
    except OSError:
        found.close()
        raise
    return found


def received(listening: socket.socket) -> Received:
    """Return the next frame; an empty one if the device went down or away, which the kernel reports once."""
    try:
        data, ancillary, _, address = listening.recvmsg(65535, 64)
    except OSError as error:
        if error.errno != errno.ENETDOWN:
            raise
        return Received(b"")
    times = (_TIMESPEC.unpack(value[: _TIMESPEC.size]) for _, kind, value in ancillary if kind == _TIMESTAMPS)
    return Received(data, next((seconds * 10**9 + rest for seconds, rest in times), 0), address)


class Recorder:
    """Keeps the frames of one trace if they are ``wanted``."""

    def __init__(self, *, wanted: bool) -> None:
        self._wanted = wanted
        self._frames: list[Frame] = []

    def add(self, device: Device, frame: Received, *, back: bool, attempt: int) -> None:
        """Keep a frame, unless there are too many."""
        if not self._wanted or len(self._frames) >= MOST:
            return
        _, protocol, kind, link, address = frame.address
        # The index is of another namespace, and the file's interface says which device it is.
        header = _COOKED.pack(protocol, 0, 0, link, kind, min(len(address), 8), address[:8])
        size = len(header) + len(frame.data)
        self._frames.append(Frame(device, back, frame.at, size, (header + frame.data)[:SNAP], attempt))

    def frames(self) -> tuple[Frame, ...]:
        """Return what was kept."""
        return tuple(self._frames)


def pcapng(there: Sequence[Hop], back: Sequence[Hop], frames: Mapping[str, Sequence[Frame]]) -> bytes:
    """Return a pcapng file (draft-ietf-opsawg-pcapng) of the frames that each host saw at the hops' devices.

    Other hosts' frames are what those say, so of each host at most MOST count, and only those at devices of the path.
    Of several attempts the file has the one that came farthest.
    """
    there, back = there[:MOST_HOPS], back[:MOST_HOPS]
    places = _path(there, back)
    numbers = {place: number for number, place in enumerate(places)}
    blocks = [_block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1) + _options((4, b"linkspan")))]
    for place in places:
        name = "/".join(place).encode()[:LONGEST_NAME].decode(errors="ignore").encode()
        blocks.append(_block(1, struct.pack("<HHI", _LINKTYPE, 0, SNAP) + _options((2, name), (9, b"\x09"))))
    steps = (numbers, {place: step for step, place in enumerate(_path(back, there))})
    found = []
    for host, frame in _farthest([*_counted(frames)]):
        place = (host, *frame.device)
        if place in numbers:
            found.append(((frame.back, steps[frame.back][place], frame.at), numbers[place], frame))
    found.sort(key=lambda one: one[0])
    blocks += [_packet(number, frame) for _, number, frame in found]
    return b"".join(blocks)


def _path(hops: Sequence[Hop], others: Sequence[Hop]) -> list[Place]:
    """Return the devices of one way in order, with those that only the other way names: a packet enters by them.

    Each of these is behind the device that precedes it on the other way, seen from its end, and before the next device
    of its host.
    """
    found = list(dict.fromkeys(_place(hop) for hop in hops if hop.device))
    last = -1
    for place in (_place(hop) for hop in reversed(others) if hop.device):
        if place not in found:
            same_host = (step for step in range(last + 1, len(found)) if found[step][0] == place[0])
            found.insert(next(same_host, last + 1), place)
        last = found.index(place)
    return found


def _place(hop: Hop) -> Place:
    return hop.host, hop.namespace, hop.port or hop.device


def _counted(frames: Mapping[str, Sequence[Frame]]) -> Iterator[tuple[str, Frame]]:
    for host, seen in frames.items():
        for frame in seen[:MOST]:
            if _COOKED.size <= len(frame.data) <= SNAP and 0 <= frame.at < 2**63:
                yield host, frame


def _farthest(frames: Sequence[tuple[str, Frame]]) -> list[tuple[str, Frame]]:
    """Leave out the attempts that fewer devices saw, of those the later ones."""
    seen = Counter(one[-1] for one in {(host, one.device, one.back, one.attempt) for host, one in frames})
    best = max(sorted(seen), key=lambda attempt: seen[attempt], default=0)
    return [(host, frame) for host, frame in frames if frame.attempt == best]


def _packet(number: int, frame: Frame) -> bytes:
    size = min(max(frame.size, len(frame.data)), 0xFFFF + _COOKED.size)
    outgoing = frame.data[10] == _OUTGOING
    head = struct.pack("<IIIII", number, frame.at >> 32, frame.at & 0xFFFFFFFF, len(frame.data), size)
    words = (1, b"the answer" if frame.back else b"the packet"), (2, struct.pack("<I", 2 if outgoing else 1))
    return _block(6, head + _padded(frame.data) + _options(*words))


def _block(kind: int, body: bytes) -> bytes:
    length = struct.pack("<I", len(body) + 12)
    return struct.pack("<I", kind) + length + body + length


def _options(*options: tuple[int, bytes]) -> bytes:
    found = b"".join(struct.pack("<HH", code, len(value)) + _padded(value) for code, value in options)
    return found + bytes(4)


def _padded(value: bytes) -> bytes:
    return value + bytes(-len(value) % 4)
