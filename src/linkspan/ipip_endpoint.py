"""IPIP (RFC 2003) in user space, for kernels without the ipip device: a TUN on one side, the wire on the other.

    python -IS ipip_endpoint.py --table FILE [--exits FILE] --device lsipip --local 192.0.2.1

**Outwards** a packet is read from the TUN, the longest prefix of the table that holds its destination gives
the peer's underlay address, and the packet is sent by a raw socket of protocol 4; the kernel puts the outer
header before it. **Inwards** the same socket gives whole packets from the wire; the inner source must lie in
a prefix of the very peer that the outer source is, or the packet is dropped and counted. Both directions are a
process each, for one packet costs 4 us of Python in each direction, and threads would share one core.

**Exits.** A packet to or from the outside has an address in no row. If its other address, the container's, is in a
pool of the second table, the row has the one host to which such packets go, and from which they come.

**The table** is read again whenever it is renamed into its folder (inotify), in a thread that sleeps
otherwise; the loops take the new one with their next packet. What was looked up stays in a dictionary of the
table, so a packet costs one look-up whatever the table's size.

**MTU.** The TUN's is the underlay's minus 20, so the kernel answers what is too big itself. Where a router on
the way takes less, sending fails with EMSGSIZE as soon as the kernel knows of it. An inner packet that may be
fragmented is then sent in fragments; for one that may not (DF), the answer "fragmentation needed" (RFC 1191)
goes back through the TUN. Its source is the address that was not reached: the guard takes no other from here.

**Merged packets.** Network cards' drivers join TCP segments of one stream (GRO), also those inside IPIP, and the
wire's socket then gives 64 KB with the checksum left open. The TUN takes such a packet with a header that says so
(linux/virtio_net.h), and the kernel parts it again where it must.

**Open checksums.** A kernel that encapsulates itself leaves the checksum of a UDP packet open if the underlay's link is
virtual, because nothing on the way can spoil it. The TUN takes it with the same header, and the kernel computes it.

Dropped packets are counted in FILE.drops, which both processes map. Start to end this imports little: it
is 9 MB in memory, once for each direction.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import fcntl
import io
import mmap
import os
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, NoReturn, TypeVar

Way = TypeVar("Way")

DROPS = ("no_peer", "refused", "too_big", "stranger", "malformed")
"""What is counted: no row for the destination; the kernel would not send; answered as too big; an inner
source that is not the sender's; what is no IPv4 packet."""

_COUNT = struct.Struct("=Q")
# RFC 791 section 3.1: an outer header's source; an inner one's protocol and addresses; what tells a merged
# packet, and an open checksum.
_SOURCE, _HEADER = struct.Struct("12x4s"), struct.Struct("9xB2x4s4s")
_TCP, _UDP = struct.Struct("!B5xH4x4H16xH"), struct.Struct("!B5xH4x4H6xH")
# linux/if_tun.h
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x400454CA, 0x0001, 0x1000, 0x4000
# linux/virtio_net.h: flags, GSO type, length of the headers, size of segments, offsets of the checksum
_ABOUT = struct.Struct("=BBHHHH")
_TUN = _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR
_NEEDS_CSUM, _GSO_TCPV4 = 1, 1
PLAIN = bytes(_ABOUT.size)
"""The header of a packet with nothing to be said of it; each that is read has it, for no offload is asked for."""
_SEGMENT = 576
"""Bytes of the packets that a merged one may be parted into: what every host takes (RFC 791 section 3.1)."""
# linux/in.h
_IP_MTU_DISCOVER, _IP_MTU, _DONT, _DO = 10, 14, 0, 2
_RCVBUFFORCE = 33  # asm-generic/socket.h
_ROOM = 8 << 20
"""Bytes of the wire's buffer: 50 ms at 1 Gbit/s, in which Python may be away."""
# linux/inotify.h
_MOVED_TO, _DELETE, _CLOSE_WRITE, _IGNORED = 0x80, 0x200, 0x8, 0x8000
_PDEATHSIG = 1  # linux/prctl.h
KNOWN = 1 << 16
"""Addresses in the cache; beyond that number the cache starts again."""

_libc = ctypes.CDLL(None, use_errno=True)


class Table(Generic[Way]):
    """Prefixes by length, each with the underlay address it lives behind, in the form that a direction wants."""

    def __init__(self, text: str, form: Callable[[bytes], Way]) -> None:
        lengths: dict[int, dict[int, Way]] = {}
        for words in map(str.split, text.splitlines()):
            try:
                target, remote = words
                address, length = target.split("/")
                bits = 32 - int(length)
                value = int.from_bytes(socket.inet_aton(address), "big") >> bits
                lengths.setdefault(bits, {})[value] = form(socket.inet_aton(remote))
            except (ValueError, OSError):
                continue
        self._lengths = sorted(lengths.items())
        self.known: dict[bytes, Way] = {}

    def find(self, address: bytes) -> Way | None:
        """Return what the longest prefix that holds the address leads to, and keep it."""
        value = int.from_bytes(address, "big")
        for bits, ways in self._lengths:
            if (way := ways.get(value >> bits)) is not None:
                if len(self.known) >= KNOWN:
                    self.known.clear()
                self.known[address] = way
                return way
        return None


class Tables(Generic[Way]):
    """The tables as they are now; ``current`` and ``exits`` are replaced when their files are."""

    def __init__(self, path: Path, exits: Path | None, form: Callable[[bytes], Way]) -> None:
        self._path, self._exits, self._form = path, exits, form
        self._inotify = _libc.inotify_init1(os.O_CLOEXEC)
        mask = _MOVED_TO | _DELETE | _CLOSE_WRITE
        if _libc.inotify_add_watch(self._inotify, str(path.parent).encode(), mask) < 0:
            _fail(f"watch {path.parent}", OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno())))
        self.current, self.exits = self._read(path), self._read(exits)
        threading.Thread(target=self._watch, daemon=True).start()

    def _read(self, path: Path | None) -> Table[Way]:
        try:
            text = path.read_text(encoding="ascii", errors="replace") if path else ""
        except FileNotFoundError:
            text = ""
        return Table(text, self._form)

    def out(self, address: bytes) -> Way | None:
        """Return the way between a container and the outside."""
        exits = self.exits
        return exits.known.get(address) or exits.find(address)

    def _watch(self) -> None:
        while True:
            events = os.read(self._inotify, 1 << 16)
            if struct.unpack_from("=iI", events)[1] & _IGNORED:
                os.kill(os.getpid(), signal.SIGTERM)  # the folder is gone: the agent that starts us recreates it
            self.current, self.exits = self._read(self._path), self._read(self._exits)


class Drops:
    """Counters of what was dropped, in a file that both processes share with their readers."""

    def __init__(self, path: Path) -> None:
        with path.open("a+b") as file:
            file.truncate(_COUNT.size * len(DROPS))
            self._counts = mmap.mmap(file.fileno(), 0)

    def add(self, name: str) -> None:
        """Count one."""
        at = DROPS.index(name) * _COUNT.size
        _COUNT.pack_into(self._counts, at, _COUNT.unpack_from(self._counts, at)[0] + 1)


def drops(table: Path) -> dict[str, int]:
    """Return what the endpoint with this table has dropped so far, by reason."""
    try:
        content = table.with_name(f"{table.name}.drops").read_bytes()
    except FileNotFoundError:
        return dict.fromkeys(DROPS, 0)
    return {name: _COUNT.unpack_from(content, n * _COUNT.size)[0] for n, name in enumerate(DROPS)}


def outwards(tun: io.FileIO, wire: socket.socket, tables: Tables[tuple[str, int]], drops: Drops) -> NoReturn:
    """Encapsulate the packets that the kernel routes into the TUN, forever."""
    buffer = bytearray(1 << 16)
    view = memoryview(buffer)[_ABOUT.size :]
    read, send = tun.readinto, wire.sendto
    while True:
        size = read(buffer) - _ABOUT.size
        if view[0] >> 4 != 4:
            continue  # IPv6's own multicast on a link that is up
        table, target = tables.current, bytes(view[16:20])
        way = table.known.get(target) or table.find(target) or tables.out(bytes(view[12:16]))
        if way is None:
            drops.add("no_peer")
            continue
        try:
            send(view[:size], way)
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                _too_big(tun, wire, view[:size], way, drops)
            elif error.errno in (errno.EBADF, errno.ENOTSOCK):
                raise
            else:
                drops.add("refused")


def inwards(tun: io.FileIO, wire: socket.socket, tables: Tables[bytes], drops: Drops) -> NoReturn:
    """Decapsulate the packets of peers, forever."""
    room = bytearray(_ABOUT.size + (1 << 16))
    about = _ABOUT.size
    whole = memoryview(room)
    view = whole[about:]
    receive, write, outer, inner = wire.recv_into, tun.write, _SOURCE.unpack_from, _HEADER.unpack_from
    while True:
        size = receive(view)
        head = (view[0] & 15) << 2
        if size < head + 20 or view[head] >> 4 != 4:
            drops.add("malformed")
            continue
        table, (protocol, source, target) = tables.current, inner(view, head)
        if (table.known.get(source) or table.find(source) or tables.out(target)) != outer(view)[0]:
            drops.add("stranger")
            continue
        # What is said of it takes the place of the outer header's end.
        told = _TOLD.get(protocol)
        whole[head : head + about] = told(view[head:size]) if told else PLAIN
        try:
            write(whole[head : about + size])
        except OSError as error:
            if error.errno == errno.EBADFD:
                raise
            drops.add("malformed")


def about_merged(packet: bytes | memoryview) -> bytes:
    """Return what to say of an IPv4 packet with TCP: PLAIN where it is as it was sent.

    In merged packets the checksum is the pseudo-header's alone (RFC 9293 section 3.1), and there are neither
    options of IP nor fragments. One in 65535 of the others looks the same; then the kernel computes its checksum.
    What size the segments had is not told.
    """
    size = len(packet)
    if size < 40:
        return PLAIN
    start, fragment, *words, check = _TCP.unpack_from(packet)
    if (sum(words) + socket.IPPROTO_TCP + size - 20 - check) % 0xFFFF or start != 0x45 or fragment & 0x3FFF:
        return PLAIN
    headers = 20 + (packet[32] >> 4 << 2)
    return _ABOUT.pack(_NEEDS_CSUM, _GSO_TCPV4, headers, _SEGMENT - headers, 20, 16)


def about_datagram(packet: bytes | memoryview) -> bytes:
    """Return what to say of an IPv4 packet with UDP: PLAIN unless its checksum is the pseudo-header's alone (RFC 768).

    One in 65535 of the others looks the same; then the kernel computes its checksum.
    """
    size = len(packet)
    if size < 28:
        return PLAIN
    start, fragment, *words, check = _UDP.unpack_from(packet)
    if (sum(words) + socket.IPPROTO_UDP + size - 20 - check) % 0xFFFF or start != 0x45 or fragment & 0x3FFF:
        return PLAIN
    return _ABOUT.pack(_NEEDS_CSUM, 0, 0, 0, 20, 6)


_TOLD = {socket.IPPROTO_TCP: about_merged, socket.IPPROTO_UDP: about_datagram}
"""By protocol: what says of an inner packet what the TUN must know."""


def _too_big(tun: io.FileIO, wire: socket.socket, packet: memoryview, way: tuple[str, int], drops: Drops) -> None:
    """Send in fragments what may be fragmented; answer the rest."""
    if not packet[6] & 0x40:  # DF (RFC 791 section 3.1)
        wire.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _DONT)
        try:
            wire.sendto(packet, way)
        except OSError:
            drops.add("refused")
        finally:
            wire.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _DO)
        return
    drops.add("too_big")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.connect((way[0], 9))
        mtu = asking.getsockopt(socket.IPPROTO_IP, _IP_MTU)
    if answer := frag_needed(bytes(packet), mtu - 20):
        tun.write(PLAIN + answer)


def frag_needed(packet: bytes, mtu: int) -> bytes:
    """Return the ICMP answer to a packet that is too big; b'' where none may be given (RFC 1122 section 3.2.2)."""
    head = (packet[0] & 15) << 2
    fragment = int.from_bytes(packet[6:8], "big") & 0x1FFF
    if fragment or (packet[9] == socket.IPPROTO_ICMP and packet[head] not in (0, 8, 13, 14)):
        return b""
    quoted = packet[: 576 - 28]  # RFC 1812 section 4.3.2.3
    icmp = struct.pack("!BBHHH", 3, 4, 0, 0, mtu) + quoted
    icmp = icmp[:2] + _checksum(icmp) + icmp[4:]
    header = struct.pack("!BBHHHBBH", 0x45, 0xC0, 20 + len(icmp), 0, 0, 64, socket.IPPROTO_ICMP, 0)
    header += packet[16:20] + packet[12:16]
    return header[:10] + _checksum(header) + header[12:] + icmp


def _checksum(data: bytes) -> bytes:
    """Return the Internet checksum (RFC 1071)."""
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)


def _fail(what: str, error: OSError) -> NoReturn:
    sys.exit(f"error: {what}: {error.strerror}")


def _open_tun(device: str) -> io.FileIO:
    try:
        socket.if_nametoindex(device)  # opening a TUN that is not there would make one
        tun = io.FileIO("/dev/net/tun", "r+")
        fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", device.encode(), _TUN))
    except OSError as error:
        _fail(f"open TUN {device}", error)
    return tun


def _open_wire(local: str) -> socket.socket:
    try:
        wire = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_IPIP)
        try:
            wire.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, _ROOM)
        except PermissionError:
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _ROOM)
        wire.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _DO)
        wire.bind((local, 0))
    except OSError as error:
        _fail(f"open a socket of protocol 4 at {local}", error)
    return wire


def main() -> NoReturn:
    """Open both sides, then serve each direction in a process; where one ends, the other does."""
    parser = argparse.ArgumentParser(description="IPIP in user space, for kernels without the ipip device")
    parser.add_argument("--table", type=Path, required=True, help="lines PREFIX ADDRESS")
    parser.add_argument("--exits", type=Path, help="lines POOL ADDRESS, in the same folder")
    parser.add_argument("--device", required=True, help="the TUN, which exists")
    parser.add_argument("--local", required=True, help="the underlay address to send from and receive at")
    arguments = parser.parse_args()
    table: Path = arguments.table
    table.parent.mkdir(parents=True, exist_ok=True)
    tun, wire = _open_tun(arguments.device), _open_wire(arguments.local)
    drops = Drops(table.with_name(f"{table.name}.drops"))
    signal.signal(signal.SIGCHLD, lambda *_: sys.exit("error: the other direction ended"))
    parent = os.getpid()
    if os.fork() == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _libc.prctl(_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            sys.exit("error: the other direction ended")
        inwards(tun, wire, Tables(table, arguments.exits, bytes), drops)
    outwards(tun, wire, Tables(table, arguments.exits, lambda remote: (socket.inet_ntoa(remote), 0)), drops)


if __name__ == "__main__":
    main()
