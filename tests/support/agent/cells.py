"""Many connections at once: servers and clients of one process, whose sockets are in the containers' namespaces.

A cell is a connection from one container to another one at a port by a protocol. Hundreds are asked within a tenth of a
second, because a socket stays in the namespace where it was made, and one loop waits for all of them.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from support.agent.traffic import inside, seen_from

AGAIN = 0.25
"""Seconds until a datagram without an answer is repeated."""
PATIENCE, SILENCE = 20.0, 0.5
"""Seconds for a connection that should come about, on a busy machine; and for one that should not, after the last."""
_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
_TELL_ERRORS = {socket.AF_INET: (0, 11), socket.AF_INET6: (41, 25)}  # IP_RECVERR, IPV6_RECVERR
Cell = tuple[str, str, int, str]
"""Source, target, port and protocol."""


@contextlib.contextmanager
def servers(namespaces: Iterable[str], ports: Iterable[int]) -> Iterator[None]:
    """Answer at these TCP and UDP ports in each namespace, by both families, while the block lasts."""
    selector = selectors.DefaultSelector()
    ended = threading.Event()
    ports = tuple(ports)
    for netns in namespaces:
        with inside(netns):
            for port in ports:
                for protocol, kind in _KINDS.items():
                    server = socket.socket(socket.AF_INET6, kind | socket.SOCK_NONBLOCK)
                    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                    server.bind(("::", port))
                    if protocol == "tcp":
                        server.listen(1024)
                    selector.register(server, selectors.EVENT_READ, (protocol, netns))

    def answer() -> None:
        while not ended.is_set():
            for key, _ in selector.select(0.05):
                assert isinstance(key.fileobj, socket.socket)
                with contextlib.suppress(OSError):
                    _answer(key.fileobj, *key.data)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        for key in list(selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        selector.close()


def _answer(server: socket.socket, protocol: str, netns: str) -> None:
    if protocol == "tcp":
        connection, peer = server.accept()
        with connection:
            connection.sendall(seen_from(peer[0], netns))
    else:
        peer = server.recvfrom(64)[1]
        server.sendto(seen_from(peer[0], netns), peer)


def wrong(expected: Mapping[Cell, bool], netns: Mapping[str, str], addresses: Mapping[str, str]) -> list[Cell]:
    """Ask every cell, and return those where the answer is not the expected one.

    ``netns`` and ``addresses`` are those of the containers, by name.
    """
    selector = selectors.DefaultSelector()
    open_: dict[Cell, bool] = {}
    try:
        for source in dict.fromkeys(cell[0] for cell in expected):
            with inside(netns[source]):
                for cell in (one for one in expected if one[0] == source):
                    _ask(selector, cell, addresses[cell[1]], open_)
        deadline, quiet, again = time.monotonic() + PATIENCE, None, 0.0
        while len(open_) < len(expected) and (now := time.monotonic()) < deadline:
            missing = any(wanted and cell not in open_ for cell, wanted in expected.items())
            quiet = None if missing else quiet or now + SILENCE
            if quiet is not None and now >= quiet:
                break
            if now >= again:  # a burst may be more than a queue takes, and nobody repeats a datagram
                again = now + AGAIN
                _send(key.fileobj for key in selector.get_map().values() if key.data[3] == "udp")
            for key, _ in selector.select(0.05):
                assert isinstance(key.fileobj, socket.socket)
                open_[key.data] = _opened(key.fileobj, key.data[3])
                selector.unregister(key.fileobj)
                key.fileobj.close()
    finally:
        for key in list(selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        selector.close()
    return [cell for cell, wanted in expected.items() if open_.get(cell, False) != wanted]


def _ask(selector: selectors.BaseSelector, cell: Cell, address: str, open_: dict[Cell, bool]) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    client = socket.socket(family, _KINDS[cell[3]] | socket.SOCK_NONBLOCK)
    client.setsockopt(*_TELL_ERRORS[family], 1)  # also those that may pass
    try:
        client.connect((address, cell[2]))
    except BlockingIOError:
        pass
    except OSError:
        open_[cell] = False
        client.close()
        return
    selector.register(client, selectors.EVENT_READ if cell[3] == "udp" else selectors.EVENT_WRITE, cell)


def _send(clients: Iterable[Any]) -> None:
    for client in clients:
        with contextlib.suppress(OSError):
            client.send(b"?")


def _opened(client: socket.socket, protocol: str) -> bool:
    if protocol == "tcp":
        return client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    try:
        return bool(client.recv(64))
    except OSError:
        return False
