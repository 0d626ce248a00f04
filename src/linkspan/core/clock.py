"""Clock of long intervals: cool-downs, grace times, silence."""

from __future__ import annotations

import time


def now() -> float:
    """Return the seconds since boot, including suspend (CLOCK_BOOTTIME): nobody can set this clock back."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
