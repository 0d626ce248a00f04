"""Page size of a listing of etcd: many records while answers come quickly, few if the records are large."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from linkspan.core.errors import Unavailable
from linkspan.core.store_contract import PAGE
from linkspan.store.etcd_errors import Refused

T = TypeVar("T")

LARGEST = 4 * PAGE
"""Records of one answer while each one before has come within PROMPT seconds. With each answer etcd counts all records
that are still to come: in pages of 4,000 a listing of 100,000 costs it half of the processor time as in pages of 1,000.
To decode such an answer blocks the event loop four times as long as one of PAGE."""
SMALLEST = 16
"""Records of one answer if more do not come in time: etcd takes records of up to 1.5 MiB."""
PROMPT = 0.5
"""Seconds: over a slow link a large answer would not come within the gateway's time."""


class PageSize:
    """The number of records of the next page of one listing."""

    def __init__(self) -> None:
        self._next = PAGE
        self._most = LARGEST

    async def fitting(self, ask: Callable[[int], Awaitable[T]]) -> T:
        """Return the answer to ``ask``, which gets the number of records: fewer if so many do not come in time.

        Raises as ``ask`` does if not even SMALLEST come.
        """
        asked = self._next
        while True:
            begun = time.monotonic()
            try:
                found = await ask(asked)
            except Refused:
                raise
            except Unavailable:
                if asked == SMALLEST:
                    raise
                self._most = max(asked // 4, SMALLEST)
                asked = PAGE if asked > PAGE else SMALLEST
                continue
            if time.monotonic() - begun >= PROMPT:
                self._most = min(self._most, PAGE)
            self._next = min(4 * asked, self._most)
            return found
