"""DNS answers made by hand, sound ones and others; and a resolver that gives them."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from support.agent.traffic import inside
from support.dns_queries import read_name

A, CNAME, AAAA = 1, 5, 28


class Record(NamedTuple):
    """A record; the data of an alias is a name."""

    owner: str
    kind: int
    ttl: int
    data: bytes | str


def wire(name: str) -> bytes:
    """Return a name as labels, without compression."""
    return b"".join(bytes([len(one)]) + one for one in name.encode().split(b".")) + b"\0"


def reply(query: bytes, records: Sequence[Record], code: int = 0, flags: int = 0) -> bytes:
    """Return an answer to a question."""
    _, end = read_name(query, 12)
    found = query[:2] + struct.pack("!5H", 0x8180 | code | flags, 1, len(records), 0, 0) + query[12 : end + 4]
    for one in records:
        data = wire(one.data) if isinstance(one.data, str) else one.data
        found += wire(one.owner) + struct.pack("!HHIH", one.kind, 1, one.ttl, len(data)) + data
    return found


def addresses(name: str, ttl: int, *texts: str) -> list[Record]:
    """Return the records of a name's addresses."""
    families = [(AAAA, socket.AF_INET6) if ":" in text else (A, socket.AF_INET) for text in texts]
    return [
        Record(name, kind, ttl, socket.inet_pton(of, text)) for (kind, of), text in zip(families, texts, strict=True)
    ]


@contextlib.contextmanager
def resolving(netns: str, address: str, zone: Mapping[str, Sequence[Record]]) -> Iterator[None]:
    """Answer questions in a namespace, while the block lasts, with what ``zone`` has then by name.

    A name that it does not have does not exist. Of a name's records those of the asked type and aliases are given.
    """
    with inside(netns):
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        tcp = socket.create_server((address, 53))
    udp.bind((address, 53))
    ended = threading.Event()

    def answer(query: bytes) -> bytes:
        name, end = read_name(query, 12)
        (kind,) = struct.unpack_from("!H", query, end)
        records = zone.get(name.lower())
        given = [one for one in records or () if one.kind in (kind, CNAME)]
        return reply(query, given, 3 if records is None else 0)

    def serve() -> None:
        while not ended.is_set():
            for one in select.select([udp, tcp], [], [], 0.01)[0]:
                if one is udp:
                    query, peer = udp.recvfrom(4096)
                    udp.sendto(answer(query), peer)
                    continue
                with tcp.accept()[0] as connection, contextlib.suppress(OSError):
                    said = answer(connection.recv(4096)[2:])
                    connection.sendall(struct.pack("!H", len(said)) + said)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        udp.close()
        tcp.close()
