"""Docker's engine, where there is none."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest

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
