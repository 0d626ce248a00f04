"""Questions to agents that hang hold nobody up but those who asked; one that is away is told in the same words."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from linkspan.core.errors import Unavailable
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


@pytest.mark.parametrize("left", [True, False])
def test_an_agent_that_is_away_is_told_by_both_in_the_same_words(tmp_path: Path, left: bool) -> None:
    """Else the page would change with each try, and ask again for what it shows."""
    path = tmp_path / "agent.sock"
    if left:  # by an agent that was killed
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as one:
            one.bind(str(path))
    asked = AgentQuestions(str(path))

    async def why() -> tuple[str, str]:
        with pytest.raises(Unavailable) as of_question:
            await asked.get("/v1/status")
        with pytest.raises(Unavailable) as of_stream:
            await anext(asked.events(1, 0.0))
        return of_question.value.message, of_stream.value.message

    first, second = asyncio.run(why())
    assert first == second
    assert first.startswith(f"no agent answers at {path}: ")


def test_an_agent_that_is_killed_has_ended(tmp_path: Path) -> None:
    """The name that the library has for a stream that is cut off does not matter."""
    path = str(tmp_path / "agent.sock")

    async def cut_off(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n")
        writer.close()

    async def run() -> None:
        async with await asyncio.start_unix_server(cut_off, path):
            with pytest.raises(Unavailable, match=r"has ended$"):
                await anext(AgentQuestions(path).events(1, 0.0))

    asyncio.run(run())
