from __future__ import annotations

import asyncio
import logging

import pytest

from linkspan.core import supervise


def test_a_task_that_fails_is_told_and_begins_anew(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of linkspan ends no task for good; one that is cancelled ends."""
    monkeypatch.setattr(supervise, "FIRST", 0.01)
    begun = asyncio.Event()

    async def work() -> None:
        if len(caplog.records) < 2:
            raise KeyError("x")
        begun.set()
        await asyncio.sleep(60)

    async def run() -> None:
        task = supervise.lasting("following the store", work)
        await asyncio.wait_for(begun.wait(), 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with caplog.at_level(logging.ERROR):
        asyncio.run(run())
    assert [record.getMessage() for record in caplog.records] == [
        "following the store failed because of a defect in linkspan; retry in 0 s"
    ] * 2


def test_a_fault_after_a_long_time_is_a_first_one(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait grows only with faults in a row."""
    monkeypatch.setattr(supervise, "FIRST", 0.01)
    monkeypatch.setattr(supervise, "LONGEST", 0.02)

    async def work() -> None:
        if len(caplog.records) == 4:
            return
        if len(caplog.records) == 3:
            await asyncio.sleep(0.05)
        raise KeyError("x")

    async def run() -> None:
        await supervise.lasting("x", work)

    with caplog.at_level(logging.ERROR):
        asyncio.run(run())
    waits = [record.args[1] for record in caplog.records if isinstance(record.args, tuple)]
    assert waits == [0.01, 0.02, 0.02, 0.01]


def test_a_task_that_is_ended_as_its_event_comes_ends() -> None:
    """The event does not take the cancellation's place: an agent would wait for that task for ever."""

    async def follow(event: asyncio.Event) -> None:
        while True:
            await supervise.woken(event, 5)
            event.clear()

    async def run() -> None:
        event = asyncio.Event()
        task = asyncio.create_task(follow(event))
        await asyncio.sleep(0)
        event.set()
        await asyncio.sleep(0)
        task.cancel()
        ended, _ = await asyncio.wait({task}, timeout=5)
        assert ended

    asyncio.run(run())


def test_an_event_that_does_not_come_is_not_waited_for() -> None:
    """The return value says whether the event came or the time ended."""

    async def run() -> None:
        event = asyncio.Event()
        assert not await supervise.woken(event, 0.01)
        event.set()
        assert await supervise.woken(event, None)

    asyncio.run(run())


def test_looks_of_several_periods_wake_the_process_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever in a second a task begins, its next look is at a whole one, and never later than its period."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def at(now: float, period: float) -> float:
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
        await supervise.pause(period)
        return now + slept[-1]

    monkeypatch.setattr(asyncio, "sleep", sleep)
    assert asyncio.run(at(7.25, 1.0)) == asyncio.run(at(7.9, 1.0)) == 8.0
    assert asyncio.run(at(8.001, 1.0)) == 9.0
    assert asyncio.run(at(7.25, 2.0)) == 9.0
    assert asyncio.run(at(7.25, 0.25)) == 7.5  # what is asked for more often keeps its own time
    assert asyncio.run(at(7.9999, 1.0)) == pytest.approx(8.9999)  # that whole second has come, but for a timer's error
