"""Connections to the page, over real sockets: strangers do not keep viewers out."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from linkspan.web import connections, serving
from linkspan.web.listening import place

STRANGERS = 4


Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def silent(port: int) -> Stream:
    """Return a connection that says half of a request's head."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nHost: ")
    return reader, writer


async def is_closed(stream: Stream, seconds: float = 20) -> bool:
    """Return whether the server has closed a connection, or does so in that time."""
    try:
        async with asyncio.timeout(seconds):
            return await stream[0].read() == b""
    except TimeoutError:
        return False


async def status(stream: Stream, port: int, cookie: str) -> int:
    """Ask for a file on a connection, and return the answer's status."""
    reader, writer = stream
    writer.write(f"GET /app.js HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nCookie: {cookie}\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    await reader.readexactly(int(length.split(b":")[1]))
    return int(head.split()[1])


def test_silent_strangers_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest goes first. A viewer's connection stays, whoever comes after it."""
    monkeypatch.setattr(connections, "STRANGERS", STRANGERS)

    async def run() -> None:
        served = serving.page(place("127.0.0.1:0"), "/nonexistent", {}, "")
        async with served as new_link, aiohttp.ClientSession() as session:
            link = new_link()
            port = int(link.partition("/login")[0].rpartition(":")[2])
            before = [await silent(port) for _ in range(STRANGERS)]
            async with session.get(link) as answer:
                cookie = answer.headers["Set-Cookie"].partition(";")[0]
            assert await is_closed(before[0])
            assert not await is_closed(before[-1], 0.2)
            viewer = await asyncio.open_connection("127.0.0.1", port)
            assert await status(viewer, port, cookie) == 200
            after = [await silent(port) for _ in range(STRANGERS * 3)]
            assert await is_closed(after[0])
            assert await status(viewer, port, cookie) == 200

    asyncio.run(run())


def test_a_stranger_does_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if nobody else comes."""
    monkeypatch.setattr(connections, "WITHIN", 0.1)

    async def run() -> None:
        async with serving.page(place("127.0.0.1:0"), "/nonexistent", {}, "") as new_link:
            assert await is_closed(await silent(int(new_link().partition("/login")[0].rpartition(":")[2])))

    asyncio.run(run())
