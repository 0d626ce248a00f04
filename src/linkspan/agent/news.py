"""News: a record that another host has just written counts here, although the watch reports it a moment later.

Any user of this host may ask for what does not exist, as often as they like, and the store must not feel it. So one
look at a time is made for a prefix, and everybody who waits for it shares its answer. Whoever may change things always
gets an answer from after their request. For those who may only read, an answer counts for READERS seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
from collections.abc import Awaitable, Callable
from typing import TypeVar

from linkspan.core.clock import loop_time
from linkspan.core.errors import LinkspanError, NotFound
from linkspan.store.replica import Replica

T = TypeVar("T")

READERS = 1.0
"""Seconds for which a look at the store counts for those who may only read."""


class _Looks:
    """Looks at the store for one prefix, one at a time; ``look`` returns whether it found news, which counts then."""

    def __init__(self, look: Callable[[], Awaitable[bool]]) -> None:
        self._look = look
        self._turn = asyncio.Lock()
        self._begun = -math.inf
        """When the last look began, by the loop's time."""
        self._counts = -math.inf
        """Since when the last news counts."""

    async def since(self, least: float) -> bool:
        """Look, unless a look began at ``least`` or later. Return whether news counts that did not before this call."""
        missed = loop_time()
        async with self._turn:
            if self._begun < least:
                begun = loop_time()
                if await self._look():
                    self._counts = loop_time()
                self._begun = begun
        return self._counts >= missed

    def serves(self) -> bool:
        """Return whether somebody waits for a look, or the last one still counts for anybody."""
        return self._turn.locked() or self._begun >= loop_time() - READERS


class News:
    """Asks the store before something does not exist."""

    def __init__(self, replica: Replica, follow: Callable[[set[str]], Awaitable[object]]) -> None:
        """``follow`` lets this host follow the records of these keys now."""
        self._replica = replica
        self._follow = follow
        self._looks: dict[str, _Looks] = {}
        """By prefix, that of the latest request last."""

    async def known(self, call: Callable[[], Awaitable[T]], within: float = 0.0) -> T:
        """Return what a call returns. If it misses a record that only the store has so far, make it once more.

        A look at the store counts that began at most ``within`` seconds before this request.
        """
        since = loop_time() - within
        try:
            return await call()
        except NotFound as error:
            if not error.records or not await self._at(error.records).since(since):
                raise
        return await call()

    def _at(self, prefix: str) -> _Looks:
        """Return the looks for a prefix, and forget those that serve nobody any more."""
        found = self._looks.pop(prefix, None) or _Looks(functools.partial(self._look, prefix))
        while self._looks and not self._looks[oldest := next(iter(self._looks))].serves():
            del self._looks[oldest]
        self._looks[prefix] = found
        return found

    async def _look(self, prefix: str) -> bool:
        if not await self._replica.look(prefix):
            return False
        with contextlib.suppress(LinkspanError):  # the call says what is wrong
            await self._follow({prefix})
        return True
