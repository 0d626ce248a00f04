"""Connections to the page: anybody may open them, and nobody keeps those of a session out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable

from aiohttp.web_protocol import RequestHandler

log = logging.getLogger("linkspan.web.connections")

STRANGERS = 64
"""Connections on which no session has asked yet, at most: the oldest goes first, as a browser asks at once."""
WITHIN = 15.0
"""Seconds for which such a connection stays, with its TLS handshake."""
AGAIN = 1.0
"""Seconds until connections are taken again after a failure."""


class Connections:
    """Takes connections, and closes those of strangers."""

    def __init__(self) -> None:
        self._strangers: dict[RequestHandler, asyncio.Task[None]] = {}

    def known(self, connection: RequestHandler) -> None:
        """Keep a connection: a session has asked on it."""
        self._strangers.pop(connection, None)

    async def take(
        self, listening: socket.socket, handler: Callable[[], RequestHandler], tls: ssl.SSLContext | None
    ) -> None:
        """Take connections at a socket that does not block, until this is cancelled."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            while True:
                try:
                    one, _ = await loop.sock_accept(listening)
                except OSError as error:  # it is gone already, or there is no file descriptor left
                    log.info("a connection is not taken: %s", error.strerror)
                    await asyncio.sleep(AGAIN)
                    continue
                if len(self._strangers) >= STRANGERS:
                    oldest = next(iter(self._strangers))
                    self._strangers.pop(oldest).cancel()
                    oldest.force_close()
                connection = handler()
                self._strangers[connection] = tasks.create_task(self._stranger(one, connection, tls))
                await asyncio.sleep(0)  # the others' turn: a waiting connection is taken without one

    async def _stranger(self, one: socket.socket, connection: RequestHandler, tls: ssl.SSLContext | None) -> None:
        """Begin a connection, and close it after a while unless it is known by then."""
        with contextlib.suppress(OSError):  # whoever it is speaks no TLS
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection, one, ssl=tls, ssl_handshake_timeout=None if tls is None else WITHIN
            )
            await asyncio.sleep(WITHIN)
        if self._strangers.pop(connection, None) is not None:
            connection.force_close()
