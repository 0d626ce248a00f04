"""Pulse of DNS servers: each is asked by one packet, and its missed answers are counted."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator

import pytest

from linkspan.kernel.probe.dnsmasq import Pulse

HERE, DEMO = "127.0.0.1", ("demo",)


@pytest.fixture
def server() -> Iterator[socket.socket]:
    """Return a socket in place of a server."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        way.bind((HERE, 0))
        way.settimeout(10)
        yield way


@pytest.fixture
def pulse() -> Iterator[Pulse]:
    """Return a new pulse."""
    made = Pulse()
    yield made
    made.close()


def _answered(pulse: Pulse, server: socket.socket) -> None:
    data, where = server.recvfrom(512)
    server.sendto(data, where)
    way = pulse._ways[socket.AF_INET]
    assert way is not None
    assert select.select([way], [], [], 10)[0]


def test_an_answer_is_a_beat(pulse: Pulse, server: socket.socket) -> None:
    """It is read at the next question; a late answer, to an earlier question, does not count."""
    pulse.beat({DEMO: server.getsockname()})
    _answered(pulse, server)
    pulse.beat({DEMO: server.getsockname()})
    assert pulse.missed == {DEMO: 0}
    server.recv(512)
    pulse.beat({DEMO: server.getsockname()})
    assert pulse.missed == {DEMO: 1}
    server.recv(512)
    pulse.beat({DEMO: server.getsockname()})
    assert pulse.missed == {DEMO: 2}
    _answered(pulse, server)
    pulse.beat({DEMO: server.getsockname()})
    assert pulse.missed == {DEMO: 0}


def test_a_server_that_is_another_one_begins_anew(pulse: Pulse, server: socket.socket) -> None:
    """Its predecessor's last query is not counted; neither is a query that is no longer wanted."""
    pulse.beat({DEMO: server.getsockname()})
    pulse.beat({DEMO: server.getsockname()})
    assert pulse.missed == {DEMO: 1}
    pulse.forget(DEMO)
    pulse.beat({DEMO: server.getsockname()})
    assert pulse.missed == {}
    pulse.beat({})
    assert pulse.missed == {}
