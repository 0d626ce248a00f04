"""A stream of etcd's gateway that is left unread for a while."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
from aiohttp import web

from linkspan.core.errors import Unavailable
from linkspan.store.etcd_stream import Messages, Stream
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
