"""Requests of all stores: their fields, and which requests every store refuses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from linkspan.core.errors import Invalid

MOST_KEYS = 120
"""Keys of one transaction. etcd takes 128 operations (its --max-txn-ops), and linkspan adds a few of its own."""

MOST_BYTES = 1 << 20
"""Bytes of one transaction's keys and values. etcd takes 1.5 MiB by default (its --max-request-bytes)."""

_END = "\U0010ffff"


class Request(msgspec.Struct, frozen=True):
    """One transaction: ``Store.transaction`` describes the fields."""

    puts: Mapping[str, bytes]
    deletes: Sequence[str] = ()
    absent: Sequence[str] = ()
    unchanged: Mapping[str, int] | None = None
    ttl: float = 0
    standing: bool = False

    @property
    def conditions(self) -> dict[str, int]:
        """The revision that each key of ``absent`` and ``unchanged`` must have; 0: it must not exist."""
        return {**dict.fromkeys(self.absent, 0), **(self.unchanged or {})}

    def check(self) -> None:
        """Raise Invalid for a request that etcd would refuse: every store does, so that tests without etcd find it."""
        if self.ttl and self.standing:
            raise Invalid("transaction: a record ends after a time or when it is no longer kept, not both")
        doubles = self.puts.keys() & set(self.deletes)
        if doubles or len(set(self.deletes)) < len(self.deletes):
            names = ", ".join(sorted(doubles)) or "a key"
            raise Invalid(f"transaction: {names} is twice among puts and deletes")
        for keys in (len(self.puts) + len(self.deletes), len(self.conditions)):
            if keys > MOST_KEYS:
                raise Invalid(f"transaction: {keys} keys, and {MOST_KEYS} are the most", "write it in parts")
        size = sum(len(key.encode()) + len(value) for key, value in self.puts.items())
        if size > MOST_BYTES:
            raise Invalid(f"transaction: {size} bytes, and {MOST_BYTES} are the most", "write it in parts")


def bounds(prefix: str) -> tuple[str, str]:
    """Return the first key that begins with ``prefix``, and one after the last, in the order of UTF-8."""
    return prefix, prefix + _END
