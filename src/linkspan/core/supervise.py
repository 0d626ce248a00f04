"""Tasks that last as long as the agent does: a fault of linkspan ends none of them for good."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable

log = logging.getLogger("linkspan.core.supervise")

FIRST, LONGEST = 1.0, 60.0
"""Seconds until a task begins anew; each time twice as long."""


def lasting(what: str, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
    """Return a task that does the work, and begins anew, later and later, where that ends by an exception."""
    return asyncio.create_task(_again(what, work))


async def _again(what: str, work: Callable[[], Awaitable[None]]) -> None:
    wait = FIRST
    while True:
        begun = time.monotonic()
        try:
            return await work()
        except Exception:  # whatever it is, the agent goes on, and what it follows with it
            if time.monotonic() - begun > LONGEST:  # it had done well meanwhile
                wait = FIRST
            log.exception("%s failed by a fault of linkspan, and is tried again in %.0f s", what, wait)
        await asyncio.sleep(wait)
        wait = min(wait * 2, LONGEST)


LATE = 0.01
"""Seconds before a whole second in which it is taken to have come: a timer may be early by its resolution."""


async def pause(seconds: float) -> None:
    """Sleep for so long, or a little less: until a whole second of the clock.

    So all that is looked at every few seconds is looked at in one turn of the loop, and the process wakes up once.
    """
    now = asyncio.get_running_loop().time()
    whole = math.floor(now + seconds) - now
    await asyncio.sleep(whole if whole > LATE else seconds)


async def woken(event: asyncio.Event, seconds: float | None) -> bool:
    """Wait until an event is set, at most for so long (None: for ever); tell whether it is.

    Not asyncio.wait_for: before Python 3.12 it loses a cancellation that comes with the event, and a task that
    should end goes on.
    """
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
