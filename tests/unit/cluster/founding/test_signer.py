"""The signer as a server: what somebody can do who knows no token."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from linkspan.cluster.founding import signer_server
from linkspan.cluster.founding.certificates import Authority, new_authority, new_key
from linkspan.cluster.founding.signer import Introduction, JoinWish, Signer, Welcome
from linkspan.cluster.founding.signer_server import Refusals, serving
from linkspan.cluster.founding.trust_files import TrustFiles
from linkspan.core.errors import Denied
from linkspan.store.vault import Vault
from support.polling import SHARED

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
ASK = b"GET /v1/authority HTTP/1.1\r\nHost: a\r\n\r\n"


class Closed(Signer):
    """A signer that lets nobody in."""

    def introduction(self) -> Introduction:
        """Return what anybody may know."""
        return Introduction("none", "c1")

    async def admit(self, wish: JoinWish) -> Welcome:
        """Refuse a host."""
        raise Denied(f"token {wish.token} is not known")


@contextlib.asynccontextmanager
async def served(folder: Path) -> AsyncIterator[int]:
    """Serve at a free port, and give it."""
    now, key, own = datetime.datetime.now(datetime.UTC), new_key(), new_key()
    authority = new_authority(key, "clients", now)
    (folder / "ca").write_bytes(authority)
    certificate = Authority(authority, key).server(own, ["127.0.0.1"], now)
    (folder / "pem").write_bytes(certificate)
    (folder / "key").write_bytes(own)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    signer = Closed(TrustFiles(folder), Vault.__new__(Vault), tuple, "c1", 3600)
    async with serving(signer, f"127.0.0.1:{port}", folder / "ca", folder / "pem", folder / "key"):
        yield port


async def connect(port: int) -> Connection:
    """Open a connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return await asyncio.open_connection("127.0.0.1", port, ssl=context)


async def answer(connection: Connection, request: bytes) -> bytes:
    """Return the first bytes of the answer to a request, none if the connection was closed."""
    reader, writer = connection
    with contextlib.suppress(ConnectionError):
        writer.write(request)
        await writer.drain()
        return await asyncio.wait_for(reader.read(15), 30)
    return b""


def test_connections_are_few_and_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One too many is closed; those that say nothing, or only half of a request, make room again."""
    monkeypatch.setattr(signer_server, "MOST_CONNECTIONS", 3)
    monkeypatch.setattr(signer_server, "SECONDS", 3.0 * SHARED)  # a busy machine needs some for four handshakes

    async def run() -> None:
        async with served(tmp_path) as port:
            silent, half = [await connect(port) for _ in range(2)]
            handshake = await asyncio.open_connection("127.0.0.1", port)
            half[1].write(ASK[:20])
            with pytest.raises(OSError):  # noqa: PT011 - TLS and TCP have a word of their own each
                await connect(port)
            for reader, _ in (silent, half, handshake):
                with contextlib.suppress(ConnectionError):
                    assert await asyncio.wait_for(reader.read(), 30 * SHARED) == b""
            assert await answer(await connect(port), ASK) == b"HTTP/1.1 200 OK"

    asyncio.run(run())


def test_a_join_that_does_not_come_to_its_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its body is announced and never sent."""
    monkeypatch.setattr(signer_server, "SECONDS", 1.0)

    async def run() -> None:
        async with served(tmp_path) as port:
            head = b"POST /v1/join HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n{"
            assert (await answer(await connect(port), head)).startswith(b"HTTP/1.1 408")

    asyncio.run(run())


def test_refusals_do_not_fill_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """However often somebody asks; the next line says how many were left out."""
    wish = msgspec.json.encode(JoinWish("t1", "s", "h2", "h2", "", ""))
    head = f"POST /v1/join HTTP/1.1\r\nHost: a\r\nContent-Length: {len(wish)}\r\n\r\n".encode()

    async def run() -> None:
        async with served(tmp_path) as port:
            assert (await answer(await connect(port), head + wish)).startswith(b"HTTP/1.1 403")

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())
    assert "join from 127.0.0.1 refused: token t1 is not known" in caplog.text
    caplog.clear()
    refusals = Refusals()
    with caplog.at_level(logging.WARNING):
        for number, now in enumerate((10.0, 10.1, 10.2, 11.5)):
            refusals.log(f"refused {number}", now)
    assert caplog.messages == ["refused 0", "refused 3 (and 2 more since the last one)"]


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nno header\r\n\r\n",
        b"GET / HTTP/9.9.9\r\n\r\n",
        b"nonsense\r\n\r\n",
        ASK + b"nonsense\r\n\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n",
        b"POST /v1/join HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        b"POST /v1/join HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/join HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST /v1/join HTTP/1.1\r\nHost: a\r\nContent-Length: 20000\r\n\r\n" + b"a" * 20_000,
        b"POST /v1/join HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n[]",
    ],
)
def test_what_is_no_request_does_not_fill_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, sent: bytes
) -> None:
    """Anybody may send it as often as they like; the connection ends, and the signer goes on."""

    async def run() -> None:
        async with served(tmp_path) as port:
            for _ in range(3):
                reader, writer = await connect(port)
                writer.write(sent)
                with contextlib.suppress(ConnectionError):
                    await asyncio.wait_for(reader.read(1), 30)
                writer.close()
            assert (await answer(await connect(port), ASK)).startswith(b"HTTP/1.1 200")

    with caplog.at_level(logging.INFO):
        asyncio.run(run())
    assert "Traceback" not in caplog.text
    assert len(caplog.records) <= 1


def test_a_flood_of_handshakes_does_not_take_the_agents_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many begin at once, each one after the first has to wait for its moment."""
    monkeypatch.setattr(signer_server, "BETWEEN", 0.2)

    async def run() -> float:
        async with served(tmp_path) as port:
            begun = asyncio.get_running_loop().time()
            await asyncio.gather(*(connect(port) for _ in range(4)))
            return asyncio.get_running_loop().time() - begun

    assert asyncio.run(run()) >= 3 * 0.2
