"""Path MTU: how large a packet passes to an address and back now, by one volley of pings with DF.

Routers on the path may be silent, so only an answer proves anything, and an ICMP error from a router gives
the reason.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import select
import socket
import struct
import time
from collections.abc import Iterable

import msgspec

WAIT = 0.6
"""Seconds for the answers; after WAIT_MORE without a new one, stop waiting for the rest."""
WAIT_MORE = 0.15
# linux/in.h, in6.h, errqueue.h; by the family: level, MTU_DISCOVER, RECVERR
_OPTIONS = {4: (socket.IPPROTO_IP, 10, 11), 6: (socket.IPPROTO_IPV6, 23, 25)}
_PROBE = 3  # IP_PMTUDISC_PROBE: DF is set, and what is known of the path's MTU is not looked at
_EXTENDED = struct.Struct("=IBBBBII")
_ECHO = {4: (8, 0), 6: (128, 129)}  # RFC 792, RFC 4443
_PROTOCOL = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}
_HEADERS = {4: 28, 6: 48}
_WORDS = {
    4: {(3, 0): "network unreachable", (3, 1): "host unreachable", (3, 4): "too large", (3, 13): "prohibited"},
    6: {(1, 0): "no route", (1, 1): "prohibited", (1, 3): "address unreachable", (2, 0): "too large"},
}
"""ICMP errors by type and code."""


class Passed(msgspec.Struct, frozen=True):
    """The ``largest`` size that was answered, 0 if none was; ``said`` is a router's message about one."""

    largest: int = 0
    said: str = ""


def passing(source: bytes, target: bytes, sizes: Iterable[int]) -> Passed:
    """Ping with packets of these sizes (bytes, IP header included), in the calling thread's namespace."""
    family = 4 if len(target) == 4 else 6
    level, discover, errors = _OPTIONS[family]
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    wanted = {number: size for number, size in enumerate(sorted(set(sizes)), 1) if size >= _HEADERS[family]}
    answered, said = 0, ""
    with socket.socket(kind, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _PROTOCOL[family]) as raw:
        raw.setsockopt(level, discover, _PROBE)
        raw.setsockopt(level, errors, 1)
        raw.setblocking(False)
        mark = os.urandom(2)
        try:
            raw.bind((str(ipaddress.ip_address(source)), 0))
            raw.connect((str(ipaddress.ip_address(target)), 0))
        except OSError:
            return Passed()
        for number, size in wanted.items():
            with contextlib.suppress(OSError):  # larger than the link
                raw.send(_request(family, mark, number, size - _HEADERS[family]))
        deadline = time.monotonic() + WAIT
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([raw], [], [], left)[0]:
                break
            said = _error(raw, family) or said
            number = _answer(raw, family, mark)
            if number in wanted:
                answered = max(answered, wanted[number])
                deadline = min(deadline, time.monotonic() + WAIT_MORE)
                if answered == max(wanted.values()):
                    break
    return Passed(answered, said)


def _request(family: int, mark: bytes, number: int, length: int) -> bytes:
    body = struct.pack("!BBH2sH", _ECHO[family][0], 0, 0, mark, number) + bytes(length)
    if family == 6:  # the kernel fills the checksum in
        return body
    total: int = sum(struct.unpack(f"!{len(body) // 2}H", body[: len(body) // 2 * 2])) + (body[-1] << 8) * (
        len(body) % 2
    )
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return body[:2] + struct.pack("!H", total ^ 0xFFFF) + body[4:]


def _answer(raw: socket.socket, family: int, mark: bytes) -> int:
    """Return the number of the ping that an answer belongs to, 0 for anything else."""
    try:
        data = raw.recv(65535)
    except OSError:
        return 0
    body = data[(data[0] & 15) * 4 :] if family == 4 else data
    if len(body) < 8 or body[0] != _ECHO[family][1] or body[4:6] != mark:
        return 0
    return int.from_bytes(body[6:8], "big")


def _error(raw: socket.socket, family: int) -> str:
    """Return a router's message, with its address, or ''."""
    try:
        _, ancillary, _, _ = raw.recvmsg(2048, 1024, socket.MSG_ERRQUEUE)
    except OSError:
        return ""
    for _, _, data in ancillary:
        if len(data) < _EXTENDED.size + 8:
            continue
        _, origin, kind, code, _, mtu, _ = _EXTENDED.unpack_from(data)
        words = _WORDS[family].get((kind, code), f"ICMP {kind}/{code}")
        if origin in (2, 3):  # SO_EE_ORIGIN_ICMP, ICMP6; other origins are this host itself
            at = data[_EXTENDED.size :]
            who = ipaddress.ip_address(at[4:8] if family == 4 else at[8:24])
            return f"{who} says: {words}" + (f", at most {mtu} bytes" if mtu else "")
    return ""
