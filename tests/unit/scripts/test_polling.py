"""tests/support/polling.py: how a test waits, and what it says when it waited in vain."""

from __future__ import annotations

import asyncio

import pytest

from support.polling import eventually, until


def test_a_wait_ends_with_the_first_true_value() -> None:
    """The condition is not called again after it held."""
    values = iter([0, "", [1]])
    until(lambda: next(values), "the third value", 10)
    assert list(values) == []


def test_a_condition_that_holds_needs_no_time() -> None:
    """It is called at least once, whatever the deadline."""
    until(lambda: True, "nothing", 0)


def test_a_wait_in_vain_says_what_and_shows_the_last_value() -> None:
    """The error has the deadline, the awaited condition, and its last value."""
    with pytest.raises(AssertionError, match=r"^not within 0\.05 s: the names \(last seen: \[\]\)$"):
        until(list, "the names", 0.05)


def test_the_event_loop_runs_during_a_wait() -> None:
    """A task of the same loop makes the condition true; one that does not ends the wait with the same error."""

    async def work() -> None:
        done: list[int] = []
        task = asyncio.create_task(asyncio.sleep(0.01))
        task.add_done_callback(lambda _task: done.append(1))
        await eventually(lambda: done, "the task", 10)
        with pytest.raises(AssertionError, match=r"^not within 0\.05 s: never \(last seen: None\)$"):
            await eventually(lambda: None, "never", 0.05)

    asyncio.run(work())
