"""HTTP servers, over real sockets: what strangers send costs them nothing but the bytes."""

from __future__ import annotations

import asyncio
import gzip
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

from linkspan.core import http_server

Handler = Callable[[web.Request], Awaitable[web.Response]]


async def _exchanged(path: Path, handler: Handler, sent: bytes) -> bytes:
    """Return all that a server answers to some bytes."""
    application = web.Application()
    application.add_routes([web.post("/", handler)])
    runner = http_server.runner(application, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.UnixSite(runner, str(path)).start()
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(sent)
        found = await reader.read()
        writer.close()
        return found
    finally:
        await runner.cleanup()


def _post(body: bytes, *headers: str) -> bytes:
    lines = ("POST / HTTP/1.1", "Host: linkspan", "Connection: close", f"Content-Length: {len(body)}", *headers)
    return "\r\n".join((*lines, "", "")).encode() + body


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_compressed_body_is_not_unpacked(tmp_path: Path, coding: str) -> None:
    """Unpacking is work that a few bytes can make as long as they like, while all others wait."""
    got: list[bytes] = []

    async def handler(request: web.Request) -> web.Response:
        got.append(await request.read())
        return web.Response()

    body = gzip.compress(bytes(100_000))
    answer = asyncio.run(_exchanged(tmp_path / "socket", handler, _post(body, f"Content-Encoding: {coding}")))
    assert answer.startswith(b"HTTP/1.1 200")
    assert got == [body]


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: " + b"b" * 20_000 + b"\r\n\r\n",
        b"GET ? HTTP/1.1\r\n\r\n",
    ],
)
def test_an_unreadable_request_fills_no_log(tmp_path: Path, sent: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Anybody may send as many as he likes."""

    async def handler(_request: web.Request) -> web.Response:
        return web.Response()

    with caplog.at_level(logging.INFO):
        assert b" 400 " in asyncio.run(_exchanged(tmp_path / "socket", handler, sent))
    assert caplog.text == ""


def test_a_defect_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log is silent for what is wrong outside only."""

    async def handler(_request: web.Request) -> web.Response:
        raise KeyError("a defect")

    assert b" 500 " in asyncio.run(_exchanged(tmp_path / "socket", handler, _post(b"")))
    assert "a defect" in caplog.text
