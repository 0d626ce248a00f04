"""Garbage: Python collects it rarely during a start, and later without what the start has made; glibc gives it back."""

from __future__ import annotations

import contextlib
import ctypes
import gc

STARTING, USUAL = (50_000, 20, 100), gc.get_threshold()
"""Thresholds: a start makes many objects that stay, and collections in between find nothing."""


def collect_rarely() -> None:
    """Collect rarely from now on: a process starts."""
    gc.set_threshold(*STARTING)


def collect_usually() -> None:
    """Collect as usual, but without what is in memory now: a process has started.

    With 1,000 hosts a collection of all generations stops an agent for 0.1 s, and takes a fifth of the time in which
    1,000 peers are put.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*USUAL)
    give_back()


def give_back() -> None:
    """Give the kernel the free memory that glibc keeps between pieces in use (malloc_trim(3)), in about a millisecond.

    An agent among 400 hosts has 2 MB of it: a listing of nftables or of the store needs more than all that stays. Other
    C libraries have no such function.
    """
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
