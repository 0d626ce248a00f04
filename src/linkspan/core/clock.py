"""Clocks: one of long intervals (cool-downs, grace times, silence), and the event loop's for timeouts."""

from __future__ import annotations

import asyncio
import time


def now() -> float:
    """Return the seconds since boot, including suspend (CLOCK_BOOTTIME): nobody can set this clock back."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def loop_time() -> float:
    """Return the time of the running event loop in seconds, by which its timers count."""
    return asyncio.get_running_loop().time()
