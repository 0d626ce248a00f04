"""Fence: makes writes harmless that arrive late, however late they come.

A host that lost its underlay address cannot know whether its last message arrives: the kernel sends it once
the address is back, perhaps minutes later, and by then the host has long written something else. So a write
requires its records to be as they were when it was sent. If others have changed them, the same is now written
over their values; so of two writers the last one wins, as without a fence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from linkspan.core.contracts import Store
from linkspan.core.errors import Conflict

TRIES = 5
"""Of a write whose records others change at the same time."""


async def fenced(
    store: Store,
    puts: Mapping[str, bytes],
    deletes: Sequence[str],
    as_was: Mapping[str, int],
    unchanged: Mapping[str, int],
) -> int:
    """Return the revision of the transaction, or 0 where a condition of ``unchanged`` does not hold.

    ``as_was`` has the revisions, as far as they are known here, of records that may be other ones by now; a revision 0:
    there is no record. Raises what the store raises, and Conflict where others do not cease to change the records.
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
