"""Fence: makes a write harmless that arrives late.

A host that lost its underlay address cannot know whether its last message arrives. The kernel sends that message once
the address is back, perhaps minutes later, when the host has already written something else. So a write requires its
records to be as they were when it was sent. If others have changed them meanwhile, it is sent again for the present
records. So of two writers the last one wins, as without a fence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from linkspan.core.errors import Conflict
from linkspan.core.store_contract import Store

TRIES = 5
"""Tries for one write while other hosts change the same records."""


async def fenced(
    store: Store,
    puts: Mapping[str, bytes],
    deletes: Sequence[str],
    as_was: Mapping[str, int],
    unchanged: Mapping[str, int],
) -> int:
    """Put and delete all, and return the revision; or change nothing and return 0 if a condition fails.

    ``unchanged`` has the conditions: the revision that each record must have. ``as_was`` has the known revisions (0:
    no record) of the records that may have changed since. Raises as ``Store.transaction`` does, and Conflict if
    others changed the records TRIES times.
    """
    for _ in range(TRIES):
        conditions = {**as_was, **unchanged}
        if revision := await store.transaction(puts, deletes=deletes, unchanged=conditions):
            return revision
        found = {key: await store.get(key) for key in as_was}
        now = {key: record.revision if record else 0 for key, record in found.items()}
        if now == as_was:
            return 0
        as_was = now
    some = f"{next(iter(as_was))}{f' and {len(as_was) - 1} more' if len(as_was) > 1 else ''}"
    raise Conflict(f"store: others change {some} all the while", "try again")
