"""The agent's process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from linkspan import daemon
from linkspan.core import garbage


def test_garbage_is_collected_as_usual_while_the_agent_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store may be away for days."""
    steps = []

    @contextlib.asynccontextmanager
    async def waiting(_agent: object) -> AsyncIterator[None]:
        steps.append("waiting")
        yield

    monkeypatch.setattr(daemon, "waiting", waiting)
    monkeypatch.setattr(garbage, "collect_usually", lambda: steps.append("usual"))

    async def run() -> None:
        async with daemon._waiting(cast("Any", None)):
            steps.append("inside")

    asyncio.run(run())
    assert steps == ["usual", "waiting", "inside"]
