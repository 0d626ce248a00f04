"""ARP and neighbour solicitation: ask on a link whether addresses are there now.

The neighbour table cannot answer that: for half a minute it believes what it heard last.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Mapping
from typing import Protocol

_ARP = 0x0806  # linux/if_ether.h
_REQUEST, _REPLY = 1, 2
_BROADCAST = b"\xff" * 6
_SOLICITATION, _ADVERTISEMENT = 135, 136  # RFC 4861 4.3, 4.4
_HOPS, _INT = 255, struct.Struct("=i")
"""The hop limit of neighbour discovery, which no router leaves as it is (RFC 4861 7.1.2), and its form here."""
_TARGET_MAC = b"\x02\x01"  # RFC 4861 4.6.1: type, and length in units of 8 bytes
_SOLICITED = bytes.fromhex("ff0200000000000000000001ff")
TRIES = 3
WAIT = 0.4
"""Seconds for each try."""
BURST, PAUSE = 10, 0.05
"""Requests at a time, and seconds between: 200 a second, which no segment minds, though they are broadcasts."""


def answers(device: str, source: bytes, address: bytes) -> bool:
    """Return whether somebody on the device's link answers for the address, in the calling thread's namespace.

    A link without MACs has nobody to ask: packets there arrive or not.
    """
    return address in answering(device, {address: source})


def answering(
    device: str, asked: Mapping[bytes, bytes], tries: int = TRIES, wait: float = WAIT, burst: int = BURST
) -> dict[bytes, bytes]:
    """Return which of the addresses answer, each with its MAC (b'' on a link without MACs).

    ``asked`` has the source address for each request; 0.0.0.0 is that of a host without an address (RFC 5227). Takes
    no longer than ``tries`` times ``wait`` (seconds) for silent ones, and PAUSE for every ``burst`` requests.
    """
    found: dict[bytes, bytes] = {}
    for source in dict.fromkeys(asked.values()):
        addresses = {address for address, one in asked.items() if one == source}
        with (
            contextlib.suppress(OSError),
            contextlib.ExitStack() as stack,
        ):  # the device was removed, or is down
            link = stack.enter_context(
                socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 0)
            )
            link.bind((device, _ARP))
            mac: bytes = link.getsockname()[4]
            if len(mac) != 6:
                found |= dict.fromkeys(addresses, b"")
            elif len(source) == 4:
                found |= _asked(_Arp(link, device, mac, source), addresses, tries, wait, burst)
            else:
                way = _Solicitation(device, mac, source)
                stack.callback(way.socket.close)
                found |= _asked(way, addresses, tries, wait, burst)
    return found


class _Way(Protocol):
    socket: socket.socket

    def ask(self, address: bytes) -> object:
        """Send one request."""

    def receive(self) -> bytes:
        """Return the next message, b'' for one that cannot be from this link."""

    def heard(self, message: bytes) -> tuple[bytes, bytes] | None:
        """Return the address that an answer is for, and its MAC; None for anything else."""


class _Arp:
    """ARP (RFC 826)."""

    def __init__(self, link: socket.socket, device: str, mac: bytes, source: bytes) -> None:
        self.socket = link
        self._device = device
        self._head = struct.pack("!HHBBH", 1, 0x0800, 6, 4, _REQUEST) + mac + source + bytes(6)

    def ask(self, address: bytes) -> object:
        """Ask everybody on the link."""
        return self.socket.sendto(self._head + address, (self._device, _ARP, 0, 0, _BROADCAST))

    def receive(self) -> bytes:
        """Return the next message: no router forwards ARP."""
        return self.socket.recv(2048)

    def heard(self, message: bytes) -> tuple[bytes, bytes] | None:
        """Read a reply."""
        return (message[14:18], message[8:14]) if message[6:8] == struct.pack("!H", _REPLY) else None


class _Solicitation:
    """Neighbour discovery (RFC 4861)."""

    def __init__(self, device: str, mac: bytes, source: bytes) -> None:
        self._index = socket.if_nametoindex(device)
        self._mac = mac
        self.socket = socket.socket(
            socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_ICMPV6
        )
        try:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, _HOPS)
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
            self.socket.bind((socket.inet_ntop(socket.AF_INET6, source), 0, 0, self._index))
        except OSError:
            self.socket.close()
            raise

    def ask(self, address: bytes) -> object:
        """Ask the address's solicited-node group."""
        message = struct.pack("!BBHI", _SOLICITATION, 0, 0, 0) + address + b"\x01\x01" + self._mac
        group = socket.inet_ntop(socket.AF_INET6, _SOLICITED + address[-3:])
        return self.socket.sendto(message, (group, 0, 0, self._index))

    def receive(self) -> bytes:
        """Return the next message; a raw socket gets those, too, that routers forwarded, and anybody may send such."""
        message, about, *_ = self.socket.recvmsg(2048, socket.CMSG_SPACE(_INT.size))
        hops = [_INT.unpack_from(data)[0] for _, kind, data in about if kind == socket.IPV6_HOPLIMIT]
        return message if hops == [_HOPS] else b""

    def heard(self, message: bytes) -> tuple[bytes, bytes] | None:
        """Read an advertisement; one to a multicast request has the MAC (RFC 4861 4.4)."""
        if message[:1] != bytes([_ADVERTISEMENT]):
            return None
        return message[8:24], message[26:32] if message[24:26] == _TARGET_MAC else b""


def _asked(way: _Way, addresses: set[bytes], tries: int, wait: float, burst: int) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for _ in range(tries):
        for number, address in enumerate(sorted(addresses - found.keys()), 1):
            with contextlib.suppress(BlockingIOError):
                way.ask(address)
            if number % burst == 0:
                _listen(way, addresses, found, PAUSE)
        _listen(way, addresses, found, wait)
        if len(found) == len(addresses):
            break
    return found


def _listen(way: _Way, addresses: set[bytes], found: dict[bytes, bytes], seconds: float) -> None:
    """Collect answers, until all have answered or the time is over."""
    end = time.monotonic() + seconds
    while len(found) < len(addresses):
        left = end - time.monotonic()
        if left <= 0 or not select.select([way.socket], [], [], left)[0]:
            return
        heard = way.heard(way.receive())
        if heard is not None and heard[0] in addresses:
            found[heard[0]] = heard[1]
