"""A stream of etcd's gateway that is left unread for a while."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from linkspan.cluster.founding.certificates import Authority, new_authority, new_key
from linkspan.core.errors import Unavailable
from linkspan.store.etcd_stream import Messages, Stream
from support.polling import SHARED, eventually
from support.records.replicas import together


async def _lines(request: web.Request) -> web.StreamResponse:
    """Answer with two lines, and keep the answer open."""
    answer = web.StreamResponse()
    await answer.prepare(request)
    await answer.write(b"one\ntwo\n")
    await asyncio.Event().wait()
    return answer


def test_nothing_is_read_while_a_stream_rests(tmp_path: Path) -> None:
    """Not even from the connection; afterwards it is read again, also if the rest was broken off."""

    async def work() -> None:
        app = web.Application()
        app.router.add_get("/", _lines)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.UnixSite(runner, str(tmp_path / "s")).start()
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(tmp_path / "s"))) as session:
            response = await session.get("http://etcd/")
            stream = Stream("etcd", response, Messages({}), set(), lambda error: Unavailable(str(error)))
            assert await stream.next() == b"one"
            assert stream.waiting() == [b"two"]
            assert response.connection is not None
            transport = response.connection.transport
            assert isinstance(transport, asyncio.ReadTransport)
            resting = asyncio.create_task(stream.pause(60))
            await asyncio.sleep(0)
            assert not transport.is_reading()
            resting.cancel()
            await asyncio.gather(resting, return_exceptions=True)
            assert transport.is_reading()
            await stream.pause(0)
            assert transport.is_reading()
            stream.close()
        await runner.cleanup()

    together(work)


def _tls(folder: Path) -> ssl.SSLContext:
    """Return what a server needs, with a certificate of an authority of its own."""
    now, key, own = datetime.datetime.now(datetime.UTC), new_key(), new_key()
    (folder / "pem").write_bytes(Authority(new_authority(key, "etcd", now), key).server(own, ["127.0.0.1"], now))
    (folder / "key").write_bytes(own)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "pem", folder / "key")
    return context


def test_what_comes_by_tls_while_a_stream_rests_stays_in_the_kernel(tmp_path: Path) -> None:
    """One message at most is taken: each would wake the loop, and 1,000 hosts write fifty times a second.

    After the rest all of them are there at once.
    """
    turns = [asyncio.Event() for _ in range(4)]

    async def lines(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        await answer.write(b"one\n")
        for number, turn in enumerate(turns):
            await turn.wait()
            await answer.write(b"%d\n" % number)
        await asyncio.Event().wait()
        return answer

    async def work() -> None:
        app = web.Application()
        app.router.add_get("/", lines)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=_tls(tmp_path)).start()
        async with aiohttp.ClientSession() as session:
            response = await session.get(f"https://127.0.0.1:{runner.addresses[0][1]}/", ssl=False)
            stream = Stream("etcd", response, Messages({}), set(), lambda error: Unavailable(str(error)))
            assert await stream.next() == b"one"
            assert response.connection is not None
            beneath: Any = response.connection.transport
            resting = asyncio.create_task(stream.pause(2 * SHARED))
            await asyncio.sleep(0)
            turns[0].set()
            await eventually(lambda: not beneath._ssl_protocol._transport.is_reading(), "nothing more is taken")
            for turn in turns[1:]:
                turn.set()
            await resting
            assert beneath._ssl_protocol._transport.is_reading()
            assert [await stream.next(), *stream.waiting()] == [b"0", b"1", b"2", b"3"]
            stream.close()
        await runner.cleanup()

    together(work)
