"""nflog: packets that rules log to a group, as the kernel copies them to whoever listens (nfnetlink_log).

While nobody listens, the kernel copies nothing. One process at a time listens to a group of a network namespace.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator

import msgspec

from linkspan.core import icmp
from linkspan.core.addresses import BITS, Prefix
from linkspan.core.errors import KernelError
from linkspan.kernel.io.netlink import NETFILTER, Message, Socket, attr, attributes, string
from linkspan.kernel.probe.conntrack import PROTOCOL_NAMES, PROTOCOLS, Flow

# linux/netfilter/nfnetlink_log.h
_PACKET, _CONFIG = 4 << 8, 4 << 8 | 1  # NFNL_SUBSYS_ULOG
_HEADER, _PREFIX, _PAYLOAD = 1, 10, 9  # NFULA_*
_LOCAL_IN = b"\1"  # NF_INET_LOCAL_IN in linux/netfilter.h
_CFG_CMD, _CFG_MODE, _CFG_TIMEOUT, _CFG_AT_ONCE = 1, 2, 4, 5  # NFULA_CFG_*
_BIND, _COPY_PACKET = 1, 2
_DELAY = 20
"""Hundredths of a second after which the kernel passes on what it has collected."""
_LENGTH = 128
"""Bytes of a packet that are copied: its headers."""
_EXTENSIONS = (0, 43, 60)  # RFC 8200: hop-by-hop, routing, destination options
_FRAGMENT = 44


class Logged(msgspec.Struct, frozen=True):
    """A packet's flow, and the prefix that the rule gave it; ``to_host``: it came to the host itself."""

    prefix: str
    flow: Flow
    to_host: bool = False


class Nflog:
    """Listens to one group in the calling thread's namespace."""

    def __init__(self, group: int, length: int = _LENGTH, *, at_once: bool = False) -> None:
        """Listen to the first ``length`` bytes of packets. Raises KernelError if it cannot.

        ``at_once``: the kernel passes on each packet by itself, and does not wait for more.
        """
        self._socket = Socket(NETFILTER)
        body = struct.pack("!BBH", socket.AF_UNSPEC, 0, group) + attr(_CFG_CMD, bytes([_BIND]))
        body += attr(_CFG_MODE, struct.pack("!IBx", length, _COPY_PACKET))
        body += attr(_CFG_TIMEOUT, struct.pack("!I", _DELAY))
        body += attr(_CFG_AT_ONCE, struct.pack("!I", 1)) if at_once else b""
        try:
            self._socket.request(Message(_CONFIG, 0, body, f"listen to nflog group {group}"))
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()

    def fileno(self) -> int:
        """Return the descriptor, for a loop to watch."""
        return self._socket.fileno()

    def read(self) -> Iterator[Logged]:
        """Yield the flows of the packets that are there now; what was too much for the socket's buffer is lost."""
        for found in self._receive():
            if flow := flow_of(found.get(_PAYLOAD, b"")):
                hook = found.get(_HEADER, b"")[2:3]
                yield Logged(string(found.get(_PREFIX, b"")), flow, to_host=hook == _LOCAL_IN)

    def packets(self) -> Iterator[bytes]:
        """Yield the packets that are there now, each from its IP header on."""
        for found in self._receive():
            yield found.get(_PAYLOAD, b"")

    def _receive(self) -> Iterator[dict[int, bytes]]:
        """Yield the attributes of each message that is there now."""
        while True:
            try:
                messages = list(self._socket.receive())
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                continue
            yield from (attributes(body, 4) for kind, _, body in messages if kind == _PACKET)


def available(group: int) -> bool:
    """Return whether the kernel has nflog; asking loads its module. A group that another process has is no reason."""
    try:
        Nflog(group).close()
    except KernelError as error:
        return error.errno in (errno.EPERM, errno.EBUSY, errno.EEXIST)
    return True


def flow_of(packet: bytes) -> Flow | None:
    """Return the flow of an IP packet, whose end may be missing; None for bytes that are none."""
    match packet[0] >> 4 if packet else 0:
        case 4 if len(packet) >= 20:
            number, header = packet[9], (packet[0] & 15) * 4
            later = int.from_bytes(packet[6:8], "big") & 0x1FFF
            ends = packet[12:16], packet[16:20]
        case 6 if len(packet) >= 40:
            ends = packet[8:24], packet[24:40]
            number, header, later = _transport(packet)
        case _:
            return None
    named = PROTOCOL_NAMES.get(number, str(number))
    family = 4 if len(ends[0]) == 4 else 6
    port, bits = 0, BITS[family]
    if named in PROTOCOLS and not later:
        port = int.from_bytes(packet[header + 2 : header + 4], "big")
    elif named == "icmp" and not later:
        port = icmp.request(family, int.from_bytes(packet[header : header + 1], "big"))
    return Flow(Prefix(ends[0], bits), Prefix(ends[1], bits), named, port)


def carried(packet: bytes) -> tuple[Flow, bytes] | None:
    """Return the flow of a UDP or TCP packet and what it carries behind that header; None of any other packet."""
    found = flow_of(packet)
    if found is None or found.protocol not in ("tcp", "udp"):
        return None
    if packet[0] >> 4 == 4:
        header, later = (packet[0] & 15) * 4, int.from_bytes(packet[6:8], "big") & 0x1FFF
    else:
        _, header, later = _transport(packet)
    length = 8 if found.protocol == "udp" else (packet[header + 12 : header + 13] or b"\0")[0] >> 4 << 2
    return None if later else (found, packet[header + length :])


def _transport(packet: bytes) -> tuple[int, int, int]:
    """Return an IPv6 packet's protocol, where its header begins, and its offset as a fragment (0: it has a header)."""
    number, offset, later = packet[6], 40, 0
    while number in (*_EXTENSIONS, _FRAGMENT) and offset + 8 <= len(packet):
        length = 8 if number == _FRAGMENT else (packet[offset + 1] + 1) * 8
        if number == _FRAGMENT:
            later = int.from_bytes(packet[offset + 2 : offset + 4], "big") >> 3
        number, offset = packet[offset], offset + length
    return number, offset, later
