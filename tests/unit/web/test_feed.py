"""Live state: bounded queues, a viewer that does not keep up, and how often the agent is asked."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from linkspan.core.errors import Unavailable
from linkspan.web import feed
from linkspan.web.agent_questions import AgentQuestions
from linkspan.web.feed import QUEUE, Feed, Viewer
from support.polling import eventually
from support.web.answers import FakeAgent


def with_feed(test: Callable[[Feed, FakeAgent], Awaitable[None]]) -> None:
    """Run a test with a feed that runs, at an agent in memory."""

    async def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            agent = FakeAgent(Path(folder, "agent.sock"))
            async with agent.serving():
                made = Feed(AgentQuestions(str(agent.path)), {})
                task = asyncio.create_task(made.run())
                try:
                    await test(made, agent)
                finally:
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


def message(told: bytes) -> tuple[str, Any]:
    """Return a message's kind and what it says."""
    kind, _, data = told.decode().strip().partition("\n")
    return kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def test_a_viewer_that_does_not_keep_up_loses_its_queue() -> None:
    """It holds QUEUE messages at most, and is behind with one more."""

    async def run() -> None:
        viewer = Viewer()
        viewer.take()
        for number in range(QUEUE):
            viewer.put(b"%d" % number)
        assert not viewer.behind
        viewer.put(b"one more")
        assert viewer.behind
        viewer.put(b"and another")
        assert viewer.take() == b""

    asyncio.run(run())


def test_a_slow_viewer_gets_the_whole_state_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """And others that keep up get every change meanwhile."""
    monkeypatch.setattr(feed, "PUBLISH", 0.001)
    monkeypatch.setattr(feed, "SHARE_OF_EVENTS", 0)

    async def test(made: Feed, agent: FakeAgent) -> None:
        slow, quick = made.view(60), made.view(60)
        assert message(await anext(slow))[0] == message(await anext(quick))[0] == "state"
        await eventually(lambda: agent.streams, "the events are followed")
        changes = 0
        for number in range(QUEUE + 5):
            await agent.tell(at=float(number + 1), type="attach", what=f"event {number}")
            told = await anext(quick)
            changes += told.count(b"event: change")
        assert changes > QUEUE
        kind, whole = message(await anext(slow))
        assert kind == "state"
        assert whole["events"][-1]["what"] == f"event {QUEUE + 4}"
        await agent.tell(at=99.0, type="attach", what="after that")
        assert message(await anext(slow))[0] == "change", "it keeps up again"
        await slow.aclose()
        await quick.aclose()

    with_feed(test)


def test_a_burst_of_events_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most one update each PUBLISH seconds."""
    monkeypatch.setattr(feed, "PUBLISH", 0.2)

    async def test(made: Feed, agent: FakeAgent) -> None:
        viewer = made.view(60)
        await anext(viewer)
        await eventually(lambda: agent.streams, "the events are followed")
        for number in range(50):
            await agent.tell(at=float(number + 1), type="heal", what=f"event {number}")
        loop, begun, messages, seen = asyncio.get_running_loop(), asyncio.get_running_loop().time(), 0, 0
        while seen < 50:
            _, told = message(await anext(viewer))
            messages += 1
            seen += len(told["events"])
        assert messages <= (loop.time() - begun) / 0.2 + 2
        await viewer.aclose()

    with_feed(test)


def test_events_come_once_over_a_break_of_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new stream goes on after the last event that came."""
    monkeypatch.setattr(feed, "PUBLISH", 0.001)
    monkeypatch.setattr(feed, "AGAIN", 0.01)

    async def test(made: Feed, agent: FakeAgent) -> None:
        viewer = made.view(60)
        await anext(viewer)
        await eventually(lambda: agent.streams, "the events are followed")
        await agent.tell(at=1.0, type="attach", what="first")
        while not message(await anext(viewer))[1]["events"]:
            pass
        agent.break_off()
        await eventually(lambda: agent.streams == 2, "the events are followed again")
        await agent.tell(at=1.0, type="attach", what="first")
        await agent.tell(at=2.0, type="attach", what="second")
        seen: list[str] = []
        while "second" not in seen:
            seen += [one["what"] for one in message(await anext(viewer))[1]["events"]]
        assert seen == ["second"]
        await viewer.aclose()

    with_feed(test)


def test_viewers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more is told so."""
    monkeypatch.setattr(feed, "VIEWERS", 1)

    async def test(made: Feed, agent: FakeAgent) -> None:
        first = made.view(60)
        await anext(first)
        with pytest.raises(Unavailable, match="1 pages are open already"):
            await anext(made.view(60))
        await first.aclose()
        await anext(again := made.view(60))
        await again.aclose()

    with_feed(test)

