"""Name lookup: a name server's answers by UDP and TCP, and what is none."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

from linkspan.agent import name_lookup
from linkspan.core.errors import Unavailable
from linkspan.kernel.io.dns_messages import A
from support.dns_records import addresses, reply
from support.netns.machine_fixtures import fresh_namespace, inside

NAME = "api.example.com"
RECORDS = addresses(NAME, 60, "192.0.2.7")
Said = Callable[[bytes], bytes]


@contextlib.contextmanager
def server(by_udp: Said, by_tcp: Said | None = None) -> Iterator[int]:
    """Answer one question by UDP, and one by TCP, at a port of loopback in a namespace; give the port."""
    with fresh_namespace() as netns, inside(netns), contextlib.ExitStack() as open_:
        udp = open_.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        port = int(udp.getsockname()[1])
        tcp = open_.enter_context(socket.create_server(("127.0.0.1", port))) if by_tcp else None

        def serve() -> None:
            query, peer = udp.recvfrom(4096)
            udp.sendto(by_udp(query), peer)
            if tcp is not None and by_tcp is not None:
                with tcp.accept()[0] as connection:
                    answer = by_tcp(connection.recv(4096)[2:])
                    connection.sendall(struct.pack("!H", len(answer)) + answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield port
        thread.join(10)


def ask(port: int, seconds: float = 10) -> list[str]:
    """Return the addresses of the answer."""
    found = asyncio.run(name_lookup.ask("127.0.0.1", NAME, A, seconds, port))
    return [socket.inet_ntoa(address) for address, _ in found.addresses]


def test_a_name_is_looked_up() -> None:
    """By UDP, if that has the whole answer."""
    with server(lambda query: reply(query, RECORDS)) as port:
        assert ask(port) == ["192.0.2.7"]


@pytest.mark.parametrize("first", [lambda query: reply(query, [], flags=0x0200), lambda _query: b"?"])
def test_an_answer_that_does_not_fit_comes_by_tcp(first: Said) -> None:
    """So does one that nobody can read."""
    with server(first, lambda query: reply(query, RECORDS)) as port:
        assert ask(port) == ["192.0.2.7"]


@pytest.mark.parametrize(
    "said",
    [
        lambda query: reply(bytes(2) + query[2:], RECORDS) if query[:2] != bytes(2) else reply(b"\1\1" + query[2:], []),
        lambda query: reply(query.replace(b"\3api", b"\3apo"), RECORDS),
    ],
    ids=["number", "name"],
)
def test_an_answer_to_another_question_is_none(said: Said) -> None:
    """The lookup takes it from nobody."""
    with server(said) as port, pytest.raises(Unavailable, match="not answer what it was asked"):
        ask(port)


def test_a_silent_server_is_given_up() -> None:
    """And so is an address at which there is none."""
    with server(lambda _query: b"") as port, pytest.raises(Unavailable, match="does not answer for"):
        ask(port, 0.5)
    with fresh_namespace() as netns, inside(netns), pytest.raises(Unavailable, match="does not answer for"):
        ask(9)
