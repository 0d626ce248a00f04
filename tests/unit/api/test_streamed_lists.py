"""A list that is sent as it comes is the same JSON as any other, and one that breaks off is no list."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from aiohttp import web

from linkspan.api import responses
from linkspan.api.app import errors_and_rights
from linkspan.api.client import Client
from linkspan.api.responses import streamed
from linkspan.core.errors import Unavailable

AWAY = Unavailable("the store is away", "wait")


async def _asked(path: Path, parts: Sequence[Sequence[object] | Unavailable]) -> object:
    """Return what a client gets for these parts of a list."""

    async def told() -> AsyncIterator[Sequence[object]]:
        for part in parts:
            if isinstance(part, Unavailable):
                raise part
            yield part

    async def list_(request: web.Request) -> web.StreamResponse:
        return await streamed(request, told())

    app = web.Application(middlewares=[errors_and_rights])
    app.add_routes([web.get("/v1/list", list_)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(path)).start()
    try:
        return await asyncio.to_thread(Client(str(path)).call, "GET", "/v1/list")
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("at_once", [1, 30, 1 << 18])
@pytest.mark.parametrize(
    "parts", [[], [[]], [[], ["a" * 40]], [["a"], [], ["b", "c"], []], [[{"x": n}] for n in range(50)]]
)
def test_a_list_is_whole_however_it_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: list[list[object]], at_once: int
) -> None:
    """By as many writes as it takes."""
    monkeypatch.setattr(responses, "AT_ONCE", at_once)
    assert asyncio.run(_asked(tmp_path / "socket", parts)) == [one for part in parts for one in part]


def test_an_error_before_anything_is_sent_is_told(tmp_path: Path) -> None:
    """With its hint, as any error."""
    with pytest.raises(Unavailable, match="the store is away"):
        asyncio.run(_asked(tmp_path / "socket", [["a"], AWAY]))


def test_an_error_later_leaves_no_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of the endpoints must not pass for all of them."""
    monkeypatch.setattr(responses, "AT_ONCE", 4)
    with pytest.raises(Unavailable, match="ended during the request"):
        asyncio.run(_asked(tmp_path / "socket", [["aaaa"], ["bbbb"], AWAY]))
