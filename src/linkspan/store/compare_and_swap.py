"""Compare and swap for records that several hosts change: each write builds on the present value."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from linkspan.core.errors import Conflict, NotFound
from linkspan.store import validation
from linkspan.store.overtaken import GONE
from linkspan.store.replica import Replica

T = TypeVar("T", bound=msgspec.Struct)

TRIES = 5
"""Tries for one change while other hosts change the same record."""


async def revised(replica: Replica, key: str, change: Callable[[], T]) -> T:
    """Read a record from the store, write what ``change`` makes of it, and return that.

    ``change`` finds the present record in the replica. If another host writes first, ``change`` is called again, so no
    host undoes another one's change or brings back a record that another one removed. Raises NotFound if the record was
    removed, Conflict if others changed it TRIES times, Invalid if no reader would accept the new record, and
    Unavailable as the store does.
    """
    for _ in range(TRIES):
        try:
            same = {key: await replica.revision(key)}
        except NotFound:
            if key in replica.records:
                raise
            same = dict.fromkeys((key, GONE + key), 0)
        value = change()
        validation.check(key, value)
        if await replica.write({key: value}, unchanged=same):
            return value
    raise Conflict(f"store: others change {key} all the while", "try again")
