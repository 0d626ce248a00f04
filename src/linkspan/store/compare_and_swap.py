"""Compare and swap for records of which several hosts change a part each: a write builds on the present value."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from linkspan.core.errors import Conflict, NotFound
from linkspan.store.replica import GONE, Replica

T = TypeVar("T", bound=msgspec.Struct)

TRIES = 5
"""Of a change whose record others change at the same time."""


async def revised(replica: Replica, key: str, change: Callable[[], T]) -> T:
    """Write what ``change`` returns for a record, which the replica has as it is in the store by then; return it.

    Where another host is quicker it is asked again: neither undoes what the other did, nor brings back what it
    removed. Raises NotFound for a record that was removed, and Conflict where others do not cease to change it.
    """
    for _ in range(TRIES):
        try:
            same = {key: await replica.revision(key)}
        except NotFound:
            if key in replica.records:
                raise
            same = dict.fromkeys((key, GONE + key), 0)
        value = change()
        if await replica.write({key: value}, unchanged=same):
            return value
    raise Conflict(f"store: others change {key} all the while", "try again")
