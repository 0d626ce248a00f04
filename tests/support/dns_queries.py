"""DNS questions as a container asks them: made by hand, so that a test sees exactly what comes back."""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
from typing import NamedTuple

A, PTR, TXT, AAAA = 1, 12, 16, 28
IN = 1
REFUSED, NXDOMAIN, NOERROR = 5, 3, 0


class Answer(NamedTuple):
    """An answer: the code, and the records' data of the requested type, in order."""

    code: int
    data: list[str]


def question(name: str, kind: int, number: int = 0x1234, klass: int = IN) -> bytes:
    """Return a query, recursion desired (RFC 1035 section 4.1)."""
    labels = b"".join(bytes([len(label)]) + label for label in name.encode().split(b".") if label)
    return struct.pack("!6H", number, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", kind, klass)


def reverse(address: str) -> str:
    """Return the name under which an address is looked up."""
    return ipaddress.ip_address(address).reverse_pointer


def ask(server: str, name: str, kind: int = A, seconds: float = 2.0, tcp: bool = False) -> Answer:
    """Ask one question. Raises OSError where nobody answers in time, or refuses."""
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM) as way:
        way.settimeout(seconds)
        way.connect((server, 53))
        query = question(name, kind)
        way.sendall(struct.pack("!H", len(query)) + query if tcp else query)
        return parsed(_whole(way) if tcp else way.recv(65535), kind)


def _whole(way: socket.socket) -> bytes:
    data = way.recv(65535)
    while len(data) < 2 or len(data) < 2 + struct.unpack_from("!H", data)[0]:
        data += way.recv(65535)
    return data[2:]


def parsed(data: bytes, kind: int) -> Answer:
    """Read an answer."""
    _, flags, questions, answers, *_ = struct.unpack_from("!6H", data)
    at, found = 12, []
    for _ in range(questions):
        at = read_name(data, at)[1] + 4
    for _ in range(answers):
        _, at = read_name(data, at)
        one, _, _, size = struct.unpack_from("!2HIH", data, at)
        at += 10
        if one == kind:
            found.append(_text(data, at, size, kind))
        at += size
    return Answer(flags & 15, found)


def _text(data: bytes, at: int, size: int, kind: int) -> str:
    if kind == PTR:
        return read_name(data, at)[0]
    if kind == TXT:
        return data[at + 1 : at + size].decode()
    return str(ipaddress.ip_address(data[at : at + size]))


def read_name(data: bytes, at: int) -> tuple[str, int]:
    """Return the name at that offset, and the offset behind it."""
    labels, end = [], 0
    while size := data[at]:
        if size >= 0xC0:  # a pointer (RFC 1035 section 4.1.4)
            end = end or at + 2
            at = struct.unpack_from("!H", data, at)[0] & 0x3FFF
            continue
        labels.append(data[at + 1 : at + 1 + size].decode())
        at += size + 1
    return ".".join(labels), end or at + 1


if __name__ == "__main__":  # inside a container: SERVER NAME A|AAAA|PTR [tcp]
    server, name, kind, *more = sys.argv[1:]
    try:
        answer = ask(server, name, {"A": A, "AAAA": AAAA, "PTR": PTR}[kind], tcp="tcp" in more)
        sys.stdout.write(" ".join([str(answer.code), *answer.data]))
    except OSError as error:
        sys.stdout.write(f"silent {error}")
