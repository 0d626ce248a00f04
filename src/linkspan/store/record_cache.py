"""Record cache: records in memory, as values. Each is decoded once for each change.

**A damaged record changes nothing.** If a record cannot be read, its last readable version stays in force, also
after restarts, and ``reasons`` names the record. Otherwise one wrong byte in the store could take a network from its
containers.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Protocol, TypeVar

import msgspec

from linkspan.core.errors import Invalid
from linkspan.core.store_contract import Record
from linkspan.store import record_form, records
from linkspan.store.record_history import Versions
from linkspan.store.record_index import RecordIndex
from linkspan.store.records import EPHEMERAL, GONE

log = logging.getLogger("linkspan.store.record_cache")

T = TypeVar("T")


class _Refused(msgspec.Struct, frozen=True):
    """A record that could not be read: its bytes, the type, and the last valid value (None: there was none)."""

    value: bytes
    type: type
    instead: object


class Decode(Protocol):
    """Decoding of a record, with its checks (`store/validation.py`)."""

    def __call__(self, key: str, raw: bytes, type_: type[T], /) -> T:
        """Return a record as a value. Raises Invalid, with the reason."""


class RecordCache:
    """Records by key, and what they say. The replica puts them in, everybody else reads."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._index = RecordIndex()
        self.records: Mapping[str, Record] = self._index
        self.reasons: dict[str, str] = {}
        """Why records are skipped, by key."""
        self._misfits: set[str] = set()
        """The keys among them of records that no agent can have written: NAMED at most, and the others have no name."""
        self._refused: dict[str, _Refused] = {}
        """The skipped records that could not be read, by key."""
        self._decoded: dict[str, object] = {}
        """What has been read of present records, by key."""
        self._before = Versions()

    @property
    def unreadable(self) -> set[str]:
        """The keys of records that are skipped."""
        return set(self.reasons)

    def under(self, prefix: str) -> dict[str, Record]:
        """Return the records whose keys begin with ``prefix``, at least one whole word such as ``hosts/``."""
        return self._index.under(prefix)

    def keys_under(self, prefix: str) -> list[str]:
        """Return the keys that ``under`` has: much less work."""
        return self._index.keys_under(prefix)

    def suffixes(self, prefix: str) -> set[str]:
        """Return what follows ``prefix`` in the keys that begin with it, of readable records and of others."""
        return {key.removeprefix(prefix) for key in self.keys_under(prefix)}

    def groups(self, kind: str) -> Collection[str]:
        """Return the second words of the keys of a kind of which more words follow: the networks of ``leases``."""
        return self._index.groups(kind)

    def changes(self, *kinds: str) -> tuple[int, ...]:
        """Return how often records of these kinds changed, for ``Derived``."""
        return self._index.changes(*kinds)

    def change_in(self, kind: str, group: str | None) -> int:
        """Return the number of the last change in a group of a kind, such as ``leases`` of a network; 0 if it has none.

        The group None has the keys of two words, such as the liveness records.
        An equal number means equal records, whatever their revisions.
        """
        return self._index.change_in(kind, group)

    def follow(self, kind: str, group: str) -> set[str]:
        """Return the set of a group's keys that its one follower has not read since they changed; it empties it."""
        return self._index.follow(kind, group)

    def known_revision(self, key: str) -> int:
        """Return the known revision of a record, 0 if there is none."""
        return self._index.revision(key)

    def read(self, prefix: str, type_: type[T]) -> dict[str, T]:
        """Return the records under ``prefix`` as values by key, each as ``value`` returns it; without those of None."""
        values = {key: self.value(key, type_) for key in self.keys_under(prefix)}
        return {key: value for key, value in values.items() if value is not None}

    def value(self, key: str, type_: type[T]) -> T | None:
        """Return one record as a value; it is decoded once for each change.

        If it cannot be read, record the reason and return its last valid value. Return None if there is neither.
        """
        found = self._decoded.get(key)
        if not isinstance(found, type_):
            record = self.records.get(key)
            if record is None:
                return None
            refused = self._refused.get(key)
            if refused is not None and refused.value == record.value and refused.type is type_:
                return refused.instead if isinstance(refused.instead, type_) else None
            try:
                found = self._decode(key, record.value, type_)
            except Invalid as error:
                self.skip(key, error.message)
                instead = self._before.readable(key, lambda raw: self._decode(key, raw, type_))
                self._refused[key] = _Refused(record.value, type_, instead)
                return instead
            self._decoded[key] = found
        self._unskip(key)
        self._before.forget(key)
        return found

    @property
    def settings(self) -> records.ClusterSettings:
        """Return the settings of the whole cluster."""
        return self.value(records.SETTINGS, records.ClusterSettings) or records.ClusterSettings()

    def encoded(self, key: str, value: msgspec.Struct) -> bytes:
        """Return a value as a record in the cluster's schema, with the stored fields that only newer agents know."""
        old = self.records.get(key)
        return records.encode(value, old.value if old else b"", self.settings.writes)

    def skip(self, key: str, why: str) -> None:
        """Record why a record is skipped."""
        if self.reasons.get(key) != why:
            log.warning("record %s is skipped: %s", key, why)
        self.reasons[key] = why

    def earlier(self, key: str) -> bytes | None:
        """Return the latest version before the one that nobody has read yet, or could not; None if there is none."""
        return self._before.last(key)

    def _is_misfit(self, record: Record) -> bool:
        """Return whether no agent can have written a record. It is skipped, and nothing of it is kept."""
        if not (why := record_form.misfit(record)):
            if record.key in self._misfits:
                self._unskip(record.key)
            return False
        if record.key in self._misfits or len(self._misfits) < record_form.NAMED:
            self._misfits.add(record.key)
            self.skip(record.key, why)
        return True

    def _unskip(self, key: str) -> None:
        """Record that a record is valid or gone."""
        self._misfits.discard(key)
        if key in self.reasons:
            del self.reasons[key]
            self._refused.pop(key, None)

    def _judge(self, key: str) -> None:
        """Read a changed record that was skipped: it may be valid now, even if nobody asks for it soon."""
        if (refused := self._refused.get(key)) is not None:
            self.value(key, refused.type)

    def _replace(self, old: Record | None, record: Record) -> None:
        """Adopt a record in place of the ``old`` one, which is kept until somebody has read the new one."""
        if old is not None and old.value == record.value:
            self._index.touch(record.key, record.revision)
            return
        passing = record.key.startswith((GONE, *EPHEMERAL)) or record.key in self.reasons
        if old is not None and not passing:
            self._before.add(record.key, old.value)
        self._keep(record)

    def _keep(self, record: Record) -> None:
        self._index.keep(record)
        self._decoded.pop(record.key, None)

    def _drop(self, key: str) -> None:
        self._index.drop(key)
        self._decoded.pop(key, None)
        self._before.forget(key)
