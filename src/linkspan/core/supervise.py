"""Supervised tasks, which last as long as the agent: a defect in linkspan ends none of them for good."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable

from linkspan.core.clock import loop_time

log = logging.getLogger("linkspan.core.supervise")

FIRST, LONGEST = 1.0, 60.0
"""Seconds until a failed task restarts; each time twice as long."""


def lasting(what: str, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
    """Return a task that does the work, and restarts it with growing backoff after an exception."""
    return asyncio.create_task(_again(what, work))


async def ended(task: asyncio.Task[object] | None) -> None:
    """Cancel a task, if there is one, and wait until it has ended; whatever it raises is dropped."""
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _again(what: str, work: Callable[[], Awaitable[None]]) -> None:
    wait = FIRST
    while True:
        begun = time.monotonic()
        try:
            return await work()
        except Exception:  # whatever it is, the agent and this task must continue
            if time.monotonic() - begun > LONGEST:  # it had worked for a while
                wait = FIRST
            log.exception("%s failed because of a defect in linkspan; retry in %.0f s", what, wait)
        await asyncio.sleep(wait)
        wait = min(wait * 2, LONGEST)


LATE = 0.01
"""Seconds before a whole second that count as that second: a timer may be early by its resolution."""


def until_whole(seconds: float) -> float:
    """Return so many seconds, or a little less: until a whole second of the loop's clock.

    So all periodic tasks run in one turn of the loop, and the process wakes up once.
    """
    now = loop_time()
    whole = math.floor(now + seconds) - now
    return whole if whole > LATE else seconds


async def pause(seconds: float) -> None:
    """Sleep for so long, or a little less, as ``until_whole``."""
    await asyncio.sleep(until_whole(seconds))


async def woken(event: asyncio.Event, seconds: float | None) -> bool:
    """Wait until an event is set, at most for so long (None: forever); return whether it is set.

    Not asyncio.wait_for: before Python 3.12 it loses a cancellation that comes with the event, so that a task
    does not end.
    """
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
