"""Server of a voter's signer, by TLS: the requests of joiners, and those of hosts, which show their certificates.

What a request means is ``signer``'s for joiners, and ``handover``'s and ``reissue``'s for hosts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import msgspec
from aiohttp import web

from linkspan.cluster.founding.signer import JoinWish, Problem, Signer
from linkspan.core import http_server
from linkspan.core.addresses import place
from linkspan.core.errors import LinkspanError
from linkspan.core.supervise import ended, lasting

log = logging.getLogger("linkspan.cluster.founding.signer_server")

T = TypeVar("T", bound=msgspec.Struct)
Handler = Callable[[web.Request], Awaitable[msgspec.Struct]]
NOTHING_MORE: Mapping[str, Handler] = MappingProxyType({})
AGAIN = 1.0
"""Seconds until connections are taken again after a failure."""
LARGEST = 16 << 10
"""Largest request in bytes."""
MOST_CONNECTIONS = 64
"""Connections at once: anybody of the underlay may open them, and the agent needs its file descriptors."""
BETWEEN = 0.01
"""Seconds from one connection to the next: anybody may begin as many handshakes as the agent takes."""
SECONDS = 15.0
"""Seconds for a connection to send its request, and to wait for the next one."""
STATUS = {"denied": 403, "conflict": 409, "invalid": 400}


@contextlib.asynccontextmanager
async def serving(
    signer: Signer, at: str, authority: Path, certificate: Path, key: Path, more: Mapping[str, Handler] = NOTHING_MORE
) -> AsyncIterator[None]:
    """Serve a signer by TLS at ADDRESS:PORT. Raises OSError if the port is taken.

    Whoever shows a certificate must have one of ``authority``; a joiner shows none. ``more`` are further requests by
    their paths, whose answers are values.
    """
    where, port = place(at)
    application = _application(signer, more)
    runner = http_server.runner(application, shutdown_timeout=2, keepalive_timeout=SECONDS)
    await runner.setup()
    server = runner.server
    assert server is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(authority)
    context.verify_mode = ssl.CERT_OPTIONAL
    family = socket.AF_INET6 if ":" in where.address else socket.AF_INET
    try:
        with socket.create_server((where.address, port), family=family) as listening:
            listening.setblocking(False)
            accepting = lasting("taking connections of hosts", lambda: _accept(listening, server, context))
            try:
                yield
            finally:
                await ended(accepting)
    finally:
        await runner.cleanup()


def _application(signer: Signer, more: Mapping[str, Handler]) -> web.Application:
    """Return the requests with their answers, each of which is a value, or the reason of a refusal."""
    refusals = Refusals()

    async def introduce(_request: web.Request) -> web.Response:
        return _answer(signer.introduction())

    async def join(request: web.Request) -> msgspec.Struct:
        wish = await sent(request, JoinWish)
        welcome = await signer.admit(wish)
        log.info("host %s (%s) joins from %s", wish.name, wish.host, request.remote)
        return welcome

    def guarded(handler: Handler, what: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """Return a handler that answers with the reason where it refuses."""

        async def handle(request: web.Request) -> web.StreamResponse:
            try:
                return _answer(await handler(request))
            except (msgspec.DecodeError, UnicodeDecodeError):
                return _answer(Problem("invalid", "the request cannot be read"), 400)
            except TimeoutError:
                return _answer(Problem("invalid", f"the request was not there after {SECONDS:.0f} s"), 408)
            except LinkspanError as error:
                refusals.log(f"{what} from {request.remote} refused: {error.message}", time.monotonic())
                return _answer(Problem(error.code, error.message, error.hint), STATUS.get(error.code, 503))

        return handle

    app = web.Application(client_max_size=LARGEST)
    app.add_routes([web.get("/v1/authority", introduce), web.post("/v1/join", guarded(join, "join"))])
    app.add_routes([web.post(path, guarded(handler, path.rpartition("/")[2])) for path, handler in more.items()])
    return app


async def _accept(listening: socket.socket, server: web.Server, context: ssl.SSLContext) -> None:
    """Take connections, MOST_CONNECTIONS at once with those whose TLS handshake is under way, one after BETWEEN.

    A handshake costs the agent some milliseconds, in which it does nothing for containers. aiohttp knows a connection
    only after its handshake. One that is too many is closed before that.
    """
    begun = set[asyncio.Task[None]]()
    async with asyncio.TaskGroup() as handshakes:
        while True:
            try:
                one, _ = await asyncio.get_running_loop().sock_accept(listening)
            except OSError as error:  # it is gone already, or the agent has no file descriptor left
                log.info("a connection is not taken: %s", error.strerror)
                await asyncio.sleep(AGAIN)
                continue
            if len(server.connections) + len(begun) >= MOST_CONNECTIONS:
                one.close()
                continue
            begun.add(task := handshakes.create_task(_shake_hands(one, server, context)))
            task.add_done_callback(begun.discard)
            await asyncio.sleep(BETWEEN)


async def _shake_hands(one: socket.socket, server: web.Server, context: ssl.SSLContext) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):  # whoever it is says no more, or speaks no TLS
        await loop.connect_accepted_socket(server, one, ssl=context, ssl_handshake_timeout=SECONDS)


async def sent(request: web.Request, kind: type[T]) -> T:
    """Return the body of a request. Raises TimeoutError if it does not come, and DecodeError."""
    async with asyncio.timeout(SECONDS):
        body = await request.read()
    return msgspec.json.decode(body, type=kind)


class Refusals:
    """Logs refusals, at most one each second: anybody may cause them, and the log has an end."""

    def __init__(self) -> None:
        self._next = 0.0
        self._left_out = 0

    def log(self, text: str, now: float) -> None:
        """Log a refusal, or count it until one is logged again; ``now`` is a clock in seconds."""
        if now < self._next:
            self._left_out += 1
            return
        rest = f" (and {self._left_out} more since the last one)" if self._left_out else ""
        log.warning("%s%s", text, rest)
        self._next, self._left_out = now + 1, 0


def _answer(value: msgspec.Struct, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")
