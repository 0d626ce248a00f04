"""Polling: the one place where tests wait for something to become true."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Protocol

SHARED = 4 if "PYTEST_XDIST_WORKER" in os.environ else 1
"""How many times as long things may take beside other tests.

What is shown there is that an event has its effect well before any timer (a minute) would have it."""
PATIENCE = 60.0 * SHARED
"""Seconds to wait for what has no deadline of its own."""
PAUSE = 0.1 if SHARED > 1 else 0.05
"""Seconds between two looks that cost little."""
LONGEST = 0.5 if SHARED > 1 else PAUSE
"""Seconds between two looks, whatever they cost: most of a long one may be waiting for no answer.

Alone, a test may measure time, and takes it from nobody: a longer pause would be in what it measures."""
HEALED_WITHIN = 2.0 * SHARED
"""Seconds: the promise of healing is 2. Tests with the marker ``alone`` hold linkspan to it."""


class Condition(Protocol):
    """Something to call without arguments; a true value ends the wait."""

    def __call__(self) -> object:
        """Return a true value, or something to show if time runs out."""


def _looks(condition: Condition, what: str, seconds: float) -> Iterator[None]:
    """Call the condition until it holds, and yield after each time that it does not."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() >= end:
            raise AssertionError(f"not within {seconds:g} s: {what} (last seen: {value!r})")
        yield


def until(condition: Condition, what: str, seconds: float = PATIENCE) -> None:
    """Poll a condition until it holds; fail with the last value seen if it does not within ``seconds``.

    The longer it takes, the longer are the pauses, up to PAUSE. A look may cost a process or an agent's answer, which
    takes time from what is awaited: beside other tests, the pause after it is as long as it was.
    """
    pause, begun = 0.01, time.monotonic()
    for _ in _looks(condition, what, seconds):
        time.sleep(max(pause, min(time.monotonic() - begun, LONGEST)))
        pause, begun = min(pause * 1.2, PAUSE), time.monotonic()


async def eventually(condition: Condition, what: str, seconds: float = 20.0) -> None:
    """Poll as ``until`` does, and let the event loop run meanwhile."""
    pause = 0.005
    for _ in _looks(condition, what, seconds):
        await asyncio.sleep(pause)
        pause = min(pause * 1.2, 0.02)


async def awaited(condition: Callable[[], Awaitable[object]], what: str, seconds: float = 20.0) -> None:
    """Poll as ``eventually`` does, for a condition that is a coroutine: it asks somebody."""
    end = time.monotonic() + seconds
    while not (value := await condition()):
        if time.monotonic() >= end:
            raise AssertionError(f"not within {seconds:g} s: {what} (last seen: {value!r})")
        await asyncio.sleep(0.02)


@contextlib.contextmanager
def explained(words: Callable[[], str]) -> Iterator[None]:
    """Add to a failed wait what helps to explain it, such as a daemon's log."""
    try:
        yield
    except AssertionError as error:
        error.add_note(words())
        raise
