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
from linkspan.web.feed import QUEUE, QUEUE_BYTES, Feed, Viewer
from linkspan.web.view_state import Answers, State, view
from support.polling import PATIENCE, eventually
from support.web.answers import FakeAgent


def with_feed(test: Callable[[Feed, FakeAgent], Awaitable[None]], patience: float = 60) -> None:
    """Run a test with a feed that runs, at an agent in memory; it fails if what it waits for does not come."""

    async def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            agent = FakeAgent(Path(folder, "agent.sock"))
            async with agent.serving():
                made = Feed(AgentQuestions(str(agent.path), patience), {})
                task = asyncio.create_task(made.run())
                try:
                    async with asyncio.timeout(PATIENCE):
                        await test(made, agent)
                finally:
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


def message(told: bytes) -> tuple[str, Any]:
    """Return a message's kind and what it says."""
    kind, _, data = told.decode().strip().partition("\n")
    return kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def events(told: bytes) -> list[str]:
    """Return the events of the messages that a viewer got at once."""
    return [one["what"] for part in told.split(b"\n\n") if part for one in message(part)[1]["events"]]


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
        viewer.put(bytes(QUEUE_BYTES // 2))
        assert not viewer.behind
        viewer.put(bytes(QUEUE_BYTES // 2 + 1))
        assert viewer.behind, "a few large messages are too many"

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
    monkeypatch.setattr(feed, "PUBLISH", 1.0)

    async def test(made: Feed, agent: FakeAgent) -> None:
        viewer = made.view(60)
        await anext(viewer)
        await eventually(lambda: agent.streams, "the events are followed")
        for number in range(50):
            await agent.tell(at=float(number + 1), type="heal", what=f"event {number}")
        messages = seen = 0
        while seen < 50:
            messages += 1
            seen += len(events(await anext(viewer)))
        assert messages < 10, "and not one for each event"
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
        while not events(await anext(viewer)):
            pass
        agent.break_off()
        await eventually(lambda: agent.streams == 2, "the events are followed again")
        await agent.tell(at=1.0, type="attach", what="first")
        await agent.tell(at=2.0, type="attach", what="second")
        seen: list[str] = []
        while "second" not in seen:
            seen += events(await anext(viewer))
        assert seen == ["second"]
        await viewer.aclose()

    with_feed(test)


def test_an_agent_that_hangs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its state is no live one; once it goes on, it is."""
    monkeypatch.setattr(feed, "RENEW", 0.1)

    async def test(made: Feed, agent: FakeAgent) -> None:
        viewer = made.view(60)
        assert message(await anext(viewer))[1]["state"]["about"]["away"] == ""
        agent.hanging = True

        async def away() -> str:
            while True:
                for part in filter(None, (await anext(viewer)).split(b"\n\n")):
                    put = message(part)[1]["change"].get("about", {}).get("put", {})
                    if "away" in put:
                        return str(put["away"])

        assert "has not answered for" in await away()
        agent.hanging = False
        assert await away() == ""
        await viewer.aclose()

    with_feed(test, patience=1)


def test_readings_that_fail_at_once_do_not_shorten_the_pauses() -> None:
    """They took no time because the agent was away, and not because it had little to do."""

    async def test(made: Feed, agent: FakeAgent) -> None:
        await made.state()
        took = [*made._took]
        agent.refused.add("status")
        await made._read()
        assert made._state["about"]["away"] == "no store"
        assert [*made._took] == took

    with_feed(test)


def test_one_slow_reading_does_not_decide_the_pauses() -> None:
    """A busy machine made it slow; three slow ones tell of a large cluster."""
    assert feed.pauses([0.6]) == feed.pauses([0.6, 0.6]) == feed.pauses([]) == (0.25, 5.0)
    assert feed.pauses([0.6, 0.01, 0.7]) == (0.25, 5.0)
    assert feed.pauses([0.6, 0.5, 0.7]) == (5.0, 50.0)


def test_the_pauses_follow_also_from_how_long_the_state_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making it from the answers is work, too."""
    now = [0.0]

    def slow(answers: Answers, about: dict[str, Any]) -> State:
        now[0] += 5.0
        return view(answers, about)

    monkeypatch.setattr(feed, "view", slow)

    async def test(made: Feed, agent: FakeAgent) -> None:
        monkeypatch.setattr(made, "_clock", lambda: now[0])
        await made.state()
        assert [*made._took] == [5.0]

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


def test_viewers_that_come_at_once_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while all of them wait for the first state."""
    monkeypatch.setattr(feed, "VIEWERS", 1)

    async def test(made: Feed, agent: FakeAgent) -> None:
        views = [made.view(60) for _ in range(3)]
        found = await asyncio.gather(*(anext(one) for one in views), return_exceptions=True)
        assert [type(one) for one in found].count(Unavailable) == 2
        for one in views:
            await one.aclose()

    with_feed(test)


def test_nobody_becomes_a_viewer_after_the_end() -> None:
    """Nor does somebody who came before it, and waits for an agent that hangs."""

    async def test(made: Feed, agent: FakeAgent) -> None:
        agent.hanging = True
        waiting = asyncio.ensure_future(anext(made.view(60)))
        await eventually(lambda: agent.asked, "the agent is asked")
        made.end()
        for late in (waiting, anext(made.view(60))):
            with pytest.raises(Unavailable, match="this page's server ends"):
                await late

    with_feed(test, patience=1)

