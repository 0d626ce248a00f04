"""Questions to agents that hang: they hold nobody up but those who asked."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from linkspan.web.agent_questions import AgentQuestions
from support.web.answers import FakeAgent

HANGS = 60.0
"""Seconds that a question to the agent that hangs would wait."""
SOON = 20.0
"""Seconds that are soon, on a busy machine."""
MANY = 40
"""More than asyncio has threads."""


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[AgentQuestions]:
    """Give an agent that takes connections, and answers nothing."""
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        path = str(tmp_path / "hanging.sock")
        listener.bind(path)
        listener.listen(2 * MANY)
        yield AgentQuestions(path, HANGS)


def test_at_the_end_nobody_waits_for_an_answer(hanging: AgentQuestions) -> None:
    """Ctrl-C ends the page at once."""

    async def run() -> None:
        asked = asyncio.create_task(hanging.get("/v1/doctor"))
        await asyncio.sleep(0.1)  # it is under way
        assert not asked.done()

    begun = time.monotonic()
    asyncio.run(run())
    assert time.monotonic() - begun < SOON


def test_other_agents_are_asked_meanwhile(hanging: AgentQuestions, tmp_path: Path) -> None:
    """However many questions wait for the one that hangs."""

    async def run() -> None:
        asked = [asyncio.create_task(hanging.get("/v1/doctor")) for _ in range(MANY)]
        async with FakeAgent(tmp_path / "agent.sock").serving() as agent, asyncio.timeout(SOON):
            assert await AgentQuestions(str(agent.path)).get("/v1/status")
        assert not any(one.done() for one in asked)

    asyncio.run(run())
