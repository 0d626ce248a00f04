"""Derived values: what follows from records, computed again only after these have changed.

A large cluster has thousands of records, and most questions about them are asked each second, while nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Derived(Generic[T]):
    """A value that ``compute`` makes from what ``count`` counts the changes of. Callers must not change the value."""

    def __init__(self, count: Callable[[], object], compute: Callable[[], T]) -> None:
        """``count`` is cheap, and returns something else after each change of an input of ``compute``."""
        self._count = count
        self._compute = compute
        self._known: tuple[object, T] | None = None

    def get(self) -> T:
        """Return the value."""
        count = self._count()  # first: an input that changes meanwhile makes the value old
        if self._known is None or self._known[0] != count:
            self._known = count, self._compute()
        return self._known[1]
