"""Calls of plugins on the agent's socket: answered at once, beside the HTTP server, which has everything else."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from aiohttp import web

from linkspan.api import plugin_calls, runtimes
from linkspan.api.sockets import listener, listening
from linkspan.runtimes.base import Service
from support.polling import eventually

BY_HTTP = b"X-By: http"
"""What the HTTP server's answers have in their head here, and a plugin's call has not."""


class Echo(Service):
    """Answers with what it was given, after ``free``."""

    def __init__(self) -> None:
        self.calls: list[bytes] = []
        self.free = asyncio.Event()
        self.free.set()

    async def answer(self, path: str, body: bytes, pid: int, uid: int) -> tuple[int, bytes]:
        """Answer with all that a service gets."""
        self.calls.append(body)
        await self.free.wait()
        if body == b"defect":
            raise RuntimeError(body)
        return 400 if body == b"bad" else 200, b"%s %s %d %d" % (path.encode(), body, pid, uid)


async def _mark(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers["X-By"] = "http"


async def _status(_request: web.Request) -> web.Response:
    return web.Response(body=b"fine")


@contextlib.asynccontextmanager
async def _served(path: Path, service: Service) -> AsyncIterator[list[asyncio.Protocol]]:
    """Serve CNI's calls and GET /v1/status at a socket, as the agent does; yield the connections that HTTP has got."""
    app = web.Application()
    app.on_response_prepare.append(_mark)
    app.add_routes([*runtimes.routes({"cni": service}), web.get("/v1/status", _status)])
    async with listening(app) as runner:
        by_http: list[asyncio.Protocol] = []

        def http() -> asyncio.Protocol:
            assert runner.server is not None
            by_http.append(runner.server())
            return by_http[-1]

        with listener(path) as made:
            async with plugin_calls.PluginCalls({"cni": service}, http).at(made):
                yield by_http


async def _asked(path: Path, request: bytes, *more: bytes, after: Callable[[], object] = lambda: True) -> bytes:
    """Send a request, and what belongs to it ``after`` something; return all bytes of the answer."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        writer.write(request)
        for part in more:
            await eventually(after, "the rest may be sent")
            writer.write(part)
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()


def _post(body: bytes, head: bytes = b"POST /cni HTTP/1.0\r\n") -> bytes:
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


@pytest.mark.parametrize(("body", "status"), [(b"good", 200), (b"bad", 400)])
def test_a_whole_call_is_answered_without_http(tmp_path: Path, body: bytes, status: int) -> None:
    """The answer has the service's status and body, its length, and who called; then the connection is closed."""

    async def called() -> bytes:
        async with _served(tmp_path / "s", Echo()):
            return await _asked(tmp_path / "s", _post(body))

    head, _, answer = asyncio.run(called()).partition(b"\r\n\r\n")
    assert answer == b"/cni %s %d %d" % (body, os.getpid(), os.geteuid())
    assert head.startswith(b"HTTP/1.0 %d " % status)
    assert b"\r\nContent-Length: %d" % len(answer) in head
    assert BY_HTTP not in head


@pytest.mark.parametrize(
    "parts",
    [
        (_post(b"good")[:20], _post(b"good")[20:]),
        (_post(b"good")[:-1], _post(b"good")[-1:]),
        (_post(b"good", b"POST /cni HTTP/1.1\r\nHost: here\r\nConnection: close\r\n"),),
        (_post(b"good", b"POST /cni HTTP/1.0\r\nX-Other: 1\r\n"),),
    ],
    ids=["head in parts", "body in parts", "another version", "another head"],
)
def test_a_call_in_another_form_is_answered_by_http(tmp_path: Path, parts: tuple[bytes, ...]) -> None:
    """Both ways lead to the same answer."""

    async def called() -> bytes:
        async with _served(tmp_path / "s", Echo()) as by_http:
            return await _asked(tmp_path / "s", *parts, after=lambda: by_http)

    found = asyncio.run(called())
    assert BY_HTTP in found
    assert found.endswith(b"/cni good %d %d" % (os.getpid(), os.geteuid()))


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /v1/status HTTP/1.0\r\n\r\n", b"200 OK"),
        (_post(b"", b"POST /nowhere HTTP/1.0\r\n"), b"404 Not Found"),
        (b"\0\xff nonsense\r\n\r\n", b"400 Bad Request"),
    ],
    ids=["another request", "a path of no plugin", "no HTTP"],
)
def test_everything_else_is_for_http(tmp_path: Path, request_: bytes, status: bytes) -> None:
    """The agent's own socket has all routes, and refuses what is no request."""
    echo = Echo()

    async def called() -> bytes:
        async with _served(tmp_path / "s", echo):
            return await _asked(tmp_path / "s", request_)

    assert asyncio.run(called()).split(b"\r\n")[0].endswith(status)
    assert not echo.calls


def test_a_connection_may_be_silent_at_first(tmp_path: Path) -> None:
    """A plugin may be interrupted between its connect and its send; and what connects and goes is no call."""
    echo = Echo()

    async def called() -> bytes:
        async with _served(tmp_path / "s", echo) as by_http:
            _, gone = await asyncio.open_unix_connection(str(tmp_path / "s"))
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
            gone.close()
            await asyncio.sleep(0.05)
            writer.write(_post(b"good"))
            found = await reader.read()
            writer.close()
            assert not by_http
            return found

    assert asyncio.run(called()).startswith(b"HTTP/1.0 200 ")
    assert echo.calls == [b"good"]


class Refused(socket.socket):
    """A listening socket of a process that has too many files open, once."""

    refused = False

    def accept(self) -> tuple[socket.socket, object]:
        """Refuse the first connection."""
        if not self.refused:
            self.refused = True
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


def test_connections_wait_while_too_many_files_are_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are answered later, and the agent does not spin meanwhile."""
    monkeypatch.setattr(plugin_calls, "AGAIN", 0.05)
    monkeypatch.setattr(socket, "socket", Refused)

    async def called() -> bytes:
        async with _served(tmp_path / "s", Echo()):
            return await _asked(tmp_path / "s", _post(b"good"))

    assert asyncio.run(called()).startswith(b"HTTP/1.0 200 ")


def test_a_defect_is_answered_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A plugin never waits in vain, and the log has the traceback."""

    async def called() -> bytes:
        async with _served(tmp_path / "s", Echo()):
            return await _asked(tmp_path / "s", _post(b"defect"))

    assert asyncio.run(called()).startswith(b"HTTP/1.0 500 ")
    assert "RuntimeError" in caplog.text


def test_what_comes_after_a_call_is_ignored(tmp_path: Path) -> None:
    """A connection is for one call."""
    echo = Echo()
    echo.free.clear()

    async def called() -> bytes:
        async with _served(tmp_path / "s", echo):
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
            writer.write(_post(b"good"))
            await eventually(lambda: echo.calls, "the call arrives")
            writer.write(_post(b"more"))
            echo.free.set()
            found = await reader.readuntil(b"\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):  # it was closed with bytes that nobody has read
                found += await reader.read()
            writer.close()
            return found

    assert asyncio.run(called()).count(b"HTTP/1.0 200") == 1
    assert echo.calls == [b"good"]


def test_a_stop_waits_for_calls_under_way(tmp_path: Path) -> None:
    """An agent that ends answers what it has begun: otherwise the runtime would not know of the container."""
    echo = Echo()
    echo.free.clear()

    async def called() -> bytes:
        async with _served(tmp_path / "s", echo):
            asked = asyncio.create_task(_asked(tmp_path / "s", _post(b"good")))
            await eventually(lambda: echo.calls, "the call arrives")
            asyncio.get_running_loop().call_later(0.05, echo.free.set)
        return await asked

    assert asyncio.run(called()).startswith(b"HTTP/1.0 200 ")
