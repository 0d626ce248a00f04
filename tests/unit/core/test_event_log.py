"""Events are kept across agents, and never more than they should be."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from linkspan.core.event_log import KEPT, EventLog, Once


def opened(path: Path) -> EventLog:
    """Return a log that has read its file."""
    log = EventLog(path)
    log.read()
    return log


def test_the_last_ones_are_kept_in_memory_and_file(tmp_path: Path) -> None:
    """The next agent has exactly the last ones, and the file does not grow without end."""
    path = tmp_path / "events"
    log = opened(path)
    for number in range(3 * KEPT):
        log.add("attach", str(number))
        assert number % 500 or len(path.read_bytes().splitlines()) <= 2 * KEPT
    after = opened(path).kept()
    assert after == log.kept()
    assert [h.what for h in after] == [str(n) for n in range(2 * KEPT, 3 * KEPT)]


def test_the_last_of_them_since_a_time_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both limits apply together, for a list and before following; 0 returns no past event."""
    log = opened(tmp_path / "events")
    for at in range(5):
        monkeypatch.setattr("linkspan.core.event_log.time.time", lambda at=at: float(at))
        log.add("heal", str(at))

    def told(last: int = KEPT, since: float = 0) -> list[str]:
        return [h.what for h in log.kept(last=last, since=since)]

    assert told(last=2) == ["3", "4"]
    assert told(since=2) == ["2", "3", "4"]
    assert told(last=2, since=2) == ["3", "4"]
    assert told(last=9, since=4) == ["4"]
    assert told(last=0) == []

    async def followed() -> str:
        async for event in log.follow(last=1):
            return event.what
        return ""

    assert asyncio.run(followed()) == "4"


@pytest.mark.parametrize("more", [3, KEPT + 1])
def test_whoever_follows_is_let_go_at_the_end(tmp_path: Path, more: int) -> None:
    """He has what came until then, as far as it waits for him, and an agent that ends does not wait for him."""
    log = opened(tmp_path / "events")
    log.add("heal", "before")

    async def followed() -> list[str]:
        found: list[str] = []
        async for event in log.follow():
            found.append(event.what)
            if event.what == "before":
                for number in range(more):
                    log.add("heal", str(number))
                log.end()
        return found

    async def run() -> list[str]:
        async with asyncio.timeout(20):
            return await followed()

    found = asyncio.run(run())
    assert found[0] == "before"
    assert len(found) == min(more, KEPT - 1) + 1


def test_a_file_that_cannot_be_written_costs_nothing_else(tmp_path: Path) -> None:
    """Without its folder the log is only in memory."""
    log = opened(tmp_path / "missing" / "events")
    log.add("heal", "it goes on", kind="Route")
    assert [h.what for h in log.kept("heal")] == ["it goes on"]


def test_what_was_told_is_told_once_and_not_remembered_for_ever() -> None:
    """Containers with ever new names cost no memory; the oldest is reported again."""
    once = Once()
    assert [once.first(str(n % KEPT)) for n in range(2 * KEPT)] == [True] * KEPT + [False] * KEPT
    assert once.first("one more")
    assert once.first("0")
    assert not once.first("one more")
