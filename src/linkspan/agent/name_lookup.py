"""Name lookup: asks a network's name server for the addresses of a name, as a container would."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import struct

from linkspan.core.errors import Unavailable
from linkspan.kernel.io import dns_messages
from linkspan.kernel.io.dns_messages import Answer

SECONDS = 3.0
"""Time for an answer: a server whose resolver is silent for a moment asks another one."""
_PORT, _LARGEST = 53, 65535


async def ask(server: str, name: str, kind: int, seconds: float = SECONDS, port: int = _PORT) -> Answer:
    """Return what a server answers about a name's addresses, by TCP if the answer is too long for UDP.

    Raises Unavailable if it does not answer in time, or not that question.
    """
    number = secrets.randbits(16)
    query = dns_messages.question(number, name, kind)
    try:
        async with asyncio.timeout(seconds):
            found = await _by_udp(server, port, query)
            if found is None or found.truncated:
                found = dns_messages.answer(await _by_tcp(server, port, query))
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        raise Unavailable(f"name server {server} does not answer for {name}") from error
    if found is None or (found.number, found.name, found.kind) != (number, name, kind):
        raise Unavailable(f"name server {server} does not answer what it was asked about {name}")
    return found


async def _by_udp(server: str, port: int, query: bytes) -> Answer | None:
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as way:
        way.connect((server, port))  # so that only this server's datagrams come
        await loop.sock_sendall(way, query)
        return dns_messages.answer(await loop.sock_recv(way, _LARGEST))


async def _by_tcp(server: str, port: int, query: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(server, port)
    try:
        writer.write(struct.pack("!H", len(query)) + query)
        (length,) = struct.unpack("!H", await reader.readexactly(2))
        return await reader.readexactly(length)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
