"""The client of Docker's engine: where there is none, and what it makes of answers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from linkspan.core.errors import Unavailable
from linkspan.runtimes.docker.docker_engine import Engine


def test_without_an_engine_renames_cost_no_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most hosts have no Docker, and the agent looks for it every few seconds."""

    def session(*_: object, **__: object) -> None:
        pytest.fail("a session was made for an engine that is not there")

    monkeypatch.setattr(aiohttp, "ClientSession", session)

    async def first() -> str:
        return await anext(Engine(str(tmp_path / "docker.sock")).renames())

    with pytest.raises(Unavailable, match="the socket does not exist"):
        asyncio.run(first())


def test_only_the_alias_that_the_engine_adds_is_left_out(tmp_path: Path) -> None:
    """It adds the first twelve digits of the id. A user's alias may be the beginning of it, too. Labels are told."""
    container = "cafe" + "0" * 60
    answer = {
        "Id": container,
        "Name": "/web",
        "Config": {"Labels": {"app": "web"}},
        "NetworkSettings": {"Networks": {"n": {"EndpointID": "e1", "Aliases": ["cafe", container[:12], "www"]}}},
    }

    async def answered(_: web.Request) -> web.Response:
        return web.json_response(answer)

    async def names() -> tuple[str, dict[str, tuple[str, ...]], dict[str, str]]:
        app = web.Application()
        app.router.add_get("/v1.41/containers/{id}/json", answered)
        runner = web.AppRunner(app)
        await runner.setup()
        socket = str(tmp_path / "docker.sock")
        await web.UnixSite(runner, socket).start()
        try:
            return await Engine(socket).names(container)
        finally:
            await runner.cleanup()

    assert asyncio.run(names()) == ("web", {"e1": ("cafe", "www")}, {"app": "web"})
