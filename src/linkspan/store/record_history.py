"""Record history: if a record cannot be read, its last readable version stays in force."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from linkspan.core.errors import Invalid

T = TypeVar("T")

KEPT = 16
"""Versions of one record that are kept until somebody reads it: a burst of changes is shorter."""


class Versions:
    """Versions of records, by key: the last one that was read, and those since, the latest at the end."""

    def __init__(self) -> None:
        self._of: dict[str, list[bytes]] = {}

    def add(self, key: str, raw: bytes) -> None:
        """Record the version that a record had before a change."""
        kept = self._of.setdefault(key, [])
        kept.append(raw)
        del kept[1:-KEPT]  # the first one could be read

    def forget(self, key: str) -> None:
        """Forget the versions of a record that was read, or is gone."""
        self._of.pop(key, None)

    def last(self, key: str) -> bytes | None:
        """Return the latest version that may be readable, None if there is none."""
        kept = self._of.get(key)
        return kept[-1] if kept else None

    def readable(self, key: str, read: Callable[[bytes], T]) -> T | None:
        """Return the latest version that ``read`` accepts (else it raises Invalid); None if there is none."""
        kept = self._of.get(key, [])
        while kept:
            try:
                return read(kept[-1])
            except Invalid:
                kept.pop()
        return None
