"""Calls of plugins, answered without the HTTP server: it would cost more than the rest of an attach does in Python.

A plugin sends one POST, whose head has its length and nothing else, in one send. It reads until the connection is
closed. The first look at a connection leaves its bytes where they are. What begins otherwise, or has not come whole, is
the HTTP server's, which has the same routes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import NamedTuple

from linkspan.api.peer_credentials import credentials
from linkspan.api.sockets import BACKLOG, PATIENCE
from linkspan.runtimes import runtimes
from linkspan.runtimes.base import Service

log = logging.getLogger("linkspan.api.plugin_calls")

_HEAD = re.compile(rb"POST (/[a-z]+) HTTP/1\.0\r\nContent-Length: ([0-9]{1,7})\r\n\r\n")
AGAIN = 1.0
"""Seconds until connections are accepted again after the system has refused one: too many files are open."""


class _Answering(NamedTuple):
    """Handler of a path, with the type of content of its answers."""

    service: Service
    content_type: str


class PluginCalls:
    """Takes the connections to the agent's socket."""

    def __init__(self, services: Mapping[str, Service], http: Callable[[], asyncio.Protocol]) -> None:
        """``http`` makes the protocol of a connection for the HTTP server."""
        self._http = http
        self._at = {
            path.encode(): _Answering(service, runtimes()[name].content_type)
            for name, service in services.items()
            if (path := runtimes()[name].path)
        }
        self._room = bytearray(64 << 10)
        """The first bytes of any connection, which are taken out at once."""
        self._silent: set[socket.socket] = set()
        """Connections of which no byte has come yet."""
        self._under_way: set[asyncio.Task[object]] = set()
        self._pause: asyncio.TimerHandle | None = None

    @contextlib.asynccontextmanager
    async def at(self, listening: socket.socket) -> AsyncIterator[None]:
        """Take the connections to a socket until the block ends; then wait for the calls that are under way."""
        loop = asyncio.get_running_loop()
        self._listen(listening)
        try:
            yield
        finally:
            if self._pause is not None:
                self._pause.cancel()
            for one in (listening, *self._silent):
                loop.remove_reader(one)
                one.close()
            if self._under_way:
                _, late = await asyncio.wait(self._under_way, timeout=PATIENCE)
                for task in late:
                    task.cancel()

    def _listen(self, listening: socket.socket) -> None:
        self._pause = None
        asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    def _accept(self, listening: socket.socket) -> None:
        """Take all connections that wait."""
        loop = asyncio.get_running_loop()
        for _ in range(BACKLOG):
            try:
                connection, _ = listening.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                log.warning("no connection to the agent's socket is accepted for %g s: %s", AGAIN, error.strerror)
                loop.remove_reader(listening)
                self._pause = loop.call_later(AGAIN, self._listen, listening)
                return
            connection.setblocking(False)
            self._look(connection)

    def _look(self, connection: socket.socket) -> None:
        """Answer a whole call; let the HTTP server have everything else; wait if nothing has come yet."""
        loop = asyncio.get_running_loop()
        try:
            size = connection.recv_into(self._room, 0, socket.MSG_PEEK)
        except BlockingIOError:
            self._silent.add(connection)
            loop.add_reader(connection, self._come, connection)
            return
        except OSError:
            size = 0
        data = bytes(self._room[:size])
        call = _HEAD.match(data)
        if not data:
            connection.close()
        elif call and call[1] in self._at and len(data) - call.end() == int(call[2]):
            connection.recv_into(self._room)  # what is unread at the close would be an error to the plugin
            self._begin(self._answer(connection, call[1], data[call.end() :]))
        else:
            self._begin(loop.connect_accepted_socket(self._http, connection))

    def _come(self, connection: socket.socket) -> None:
        """Look at a connection whose first bytes have come."""
        asyncio.get_running_loop().remove_reader(connection)
        self._silent.discard(connection)
        self._look(connection)

    def _begin(self, work: Coroutine[None, None, object]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _answer(self, connection: socket.socket, path: bytes, body: bytes) -> None:
        """Answer a call, and close its connection: the plugin waits for that."""
        service, content_type = self._at[path]
        with connection:
            try:
                status, found = await service.answer(path.decode(), body, *credentials(connection))
            except Exception:
                log.exception("POST %s failed because of a defect in linkspan", path.decode())
                status, found = 500, b""
            head = f"HTTP/1.0 {status} \r\nContent-Type: {content_type}\r\nContent-Length: {len(found)}\r\n\r\n"
            with contextlib.suppress(OSError):  # nobody waits any more
                await asyncio.get_running_loop().sock_sendall(connection, head.encode() + found)
