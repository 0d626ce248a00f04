"""Garbage: Python collects it rarely during a start, and later without what the start has made; glibc gives it back."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import time
from collections.abc import Mapping

STARTING, USUAL = (50_000, 20, 100), gc.get_threshold()
"""Thresholds: a start makes many objects that stay, and collections in between find nothing."""

LONG = 0.01
"""Seconds of processor time that a collection of all generations may take: all threads wait for it."""
_EVERY_GENERATION = 2

_begun = 0.0
"""When the last collection of all generations began, in this thread's processor time."""


def collect_rarely() -> None:
    """Collect rarely from now on: a process starts."""
    gc.set_threshold(*STARTING)


def collect_usually() -> None:
    """Collect as usual, but without what is in memory now: a process has started.

    With 1,000 hosts a collection of all generations stops an agent for 0.1 s, and takes a fifth of the time in which
    1,000 peers are put. What comes later is left out, too, once that takes LONG: a thousand hosts may join meanwhile.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*USUAL)
    if _leave_out not in gc.callbacks:
        gc.callbacks.append(_leave_out)
    give_back()


def _leave_out(phase: str, about: Mapping[str, int]) -> None:
    """Leave what is in memory out of later collections if one of all generations took LONG: it is no garbage now."""
    global _begun
    if about["generation"] != _EVERY_GENERATION:
        return
    if phase == "start":
        _begun = time.thread_time()
    elif time.thread_time() - _begun >= LONG:
        gc.freeze()


def give_back() -> None:
    """Give the kernel the free memory that glibc keeps between pieces in use (malloc_trim(3)), in about a millisecond.

    An agent among 400 hosts has 2 MB of it: a listing of nftables or of the store needs more than all that stays. Other
    C libraries have no such function.
    """
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
