"""News: a record that another host has just written counts here, although the watch reports it a moment later."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

from linkspan.core.errors import LinkspanError, NotFound
from linkspan.store.replica import Replica

T = TypeVar("T")


class News:
    """Asks the store before something does not exist."""

    def __init__(self, replica: Replica, follow: Callable[[set[str]], Awaitable[object]]) -> None:
        """``follow`` lets this host follow the records of these keys now."""
        self._replica = replica
        self._follow = follow

    async def known(self, call: Callable[[], Awaitable[T]]) -> T:
        """Return what a call returns. If it misses a record that only the store has so far, make it once more."""
        try:
            return await call()
        except NotFound as error:
            if not error.records or not await self._replica.look(error.records):
                raise
            new = {error.records}
        with contextlib.suppress(LinkspanError):  # the call says what is wrong
            await self._follow(new)
        return await call()
