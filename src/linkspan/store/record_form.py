"""Form of a record: the words of its key, and its size. What it says is another check (`store/validation.py`)."""

from __future__ import annotations

from linkspan.core.store_contract import Record
from linkspan.store.request import MOST_BYTES

NAMED = 100
"""Records that a host names among those that no agent can have written, and among other hosts' unreadable endpoints.

Whoever may write to the store could write a million of them, and each would be a line in each host's log.
"""

WORDS = {
    "hosts": 2,
    "alive": 2,
    "networks": 2,
    "leases": 3,
    "blocks": 4,
    "addresses": 3,
    "settings": 2,
    "endpoints": 4,
    "ask": 3,
    "answer": 3,
    "allowances": 5,
    "reservations": 4,
    "policies": 2,
    "staged": 2,
}
"""Number of words, separated by slashes, in the keys of each kind of record."""
_EGRESS, _EGRESS_WORDS = "(egress)/", 4
"""Begin and words of keys of kind ``alive`` that say who holds an egress address: alive/(egress)/FAMILY/ADDRESS."""


def misplaced(key: str) -> str:
    """Return why no agent can have written a key, '' if one may have; a newer agent may write an unknown kind."""
    kind, _, rest = key.partition("/")
    if kind == "gone":
        again = not rest or rest.partition("/")[0] == kind
        return "a tombstone's key names a deleted record after gone/" if again else misplaced(rest)
    wanted = _EGRESS_WORDS if kind == "alive" and rest.startswith(_EGRESS) else WORDS.get(kind)
    if wanted is None or (key.count("/") == wanted - 1 and rest and not rest.startswith("/")):
        return ""
    return f"a key of kind {kind} has {wanted} words that are divided by slashes"


def misfit(record: Record) -> str:
    """Return why no agent can have written a record, by its key or its size; '' if one may have."""
    if len(record.value) > MOST_BYTES:
        return f"it has {len(record.value)} bytes, and the largest request of an agent has {MOST_BYTES}"
    return misplaced(record.key)
