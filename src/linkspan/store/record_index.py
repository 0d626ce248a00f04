"""Record index: records by key, and by the first words of their keys, with a count of the changes of each kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from linkspan.core.contracts import Record


class RecordIndex:
    """Records in memory. A kind is the first word of a key, such as ``hosts``.

    Most callers want one kind, or one kind of one network or host: the second word of the key, if a third one follows.
    """

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        """All records by key; only ``keep`` and ``drop`` change it."""
        self._kinds: dict[str, dict[str, dict[str, Record]]] = {}
        """The same records by the first word of their keys, and then by the second if a third one follows."""
        self._changes: Counter[str] = Counter()

    def keep(self, record: Record) -> None:
        """Add a record, or replace the one with its key."""
        old = self.records.get(record.key)
        kind, group = _place(record.key)
        if old is None or old.value != record.value:
            self._changes[kind] += 1
        else:  # a listing brings all of them again: what is in memory stays where it is, and leaves no gaps
            record = Record(old.key, old.value, record.revision)
        self.records[record.key] = record
        self._kinds.setdefault(kind, {}).setdefault(group, {})[record.key] = record

    def drop(self, key: str) -> None:
        """Remove a record. Raises KeyError if there is none."""
        kind, group = _place(key)
        del self.records[key], self._kinds[kind][group][key]
        self._changes[kind] += 1
        if not self._kinds[kind][group]:
            del self._kinds[kind][group]

    def under(self, prefix: str) -> dict[str, Record]:
        """Return the records whose keys begin with ``prefix``, at least one whole word such as ``hosts/``."""
        kind, _, rest = prefix.partition("/")
        groups = self._kinds.get(kind, {})
        group, slash, left = rest.partition("/")
        found = (groups.get(group, {}),) if slash else tuple(groups.values())
        every: dict[str, Record] = {}
        for some in found:
            every.update(some)
        whole = not left if slash else not group
        return every if whole else {key: one for key, one in every.items() if key.startswith(prefix)}

    def groups(self, kind: str) -> Collection[str]:
        """Return the second words of the keys of a kind of which more words follow: the networks of ``leases``."""
        return self._kinds.get(kind, {}).keys()

    def changes(self, *kinds: str) -> tuple[int, ...]:
        """Return how often records of these kinds changed: equal numbers mean equal values, whatever the revisions."""
        return tuple(self._changes[kind] for kind in kinds)


def _place(key: str) -> tuple[str, str]:
    """Return the first word of a key, and the second one if a third follows ('' if not)."""
    kind, _, rest = key.partition("/")
    group, slash, _ = rest.partition("/")
    return kind, group if slash else ""
