"""A clock for tests, whose time changes only when the test sets it."""

from __future__ import annotations


class Clock:
    """A time in seconds, which a test sets: ``clock.now += 60``."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now
