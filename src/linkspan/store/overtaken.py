"""Tombstones of a restored store that are older than the record which they name: it was made again after the snapshot.

They must not remove what lives. A snapshot keeps the revisions of its records. So a tombstone from before the
snapshot's last revision is older than a record from after it. The store itself says which revision that is
(``settings/restored``): without that record revisions are compared across no restore, and every tombstone counts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from linkspan.core.errors import Invalid
from linkspan.core.store_contract import Record
from linkspan.store import records
from linkspan.store.record_cache import Decode
from linkspan.store.records import EPHEMERAL, GONE


class Overtaken:
    """The tombstones that do not count, and the revisions that a host knew before it listed the store again."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self.graves: dict[str, int] = {}
        """Their revisions in the store, by their keys. Whoever writes the record again removes the tombstone."""
        self._former: dict[str, int] = {}

    def note(self, known: Mapping[str, int]) -> None:
        """Note the revisions of the known records, by their keys, before the store is listed again."""
        self._former.update(known)

    def sifted(self, found: list[Record]) -> list[Record]:
        """Return the records of a listing without tombstones that do not count."""
        self.graves = {}
        restored = next((one for one in found if one.key == records.RESTORED), None)
        if restored is None:
            return found
        try:
            last = self._decode(restored.key, restored.value, records.Restored).revision
        except Invalid:
            return found
        graves = [one for one in found if one.key.startswith(GONE) and one.revision <= last]
        self.graves = {
            one.key: one.revision for one in graves if self._former.get(one.key.removeprefix(GONE), 0) > last
        }
        return [one for one in found if one.key not in self.graves]

    def differs(self, found: Iterable[Record]) -> bool:
        """Return whether a record of the listing has another revision than before it, and may be in a snapshot."""
        former = self._former.get
        return any(former(one.key) != one.revision for one in found if not one.key.startswith(EPHEMERAL))

    def listed(self, lost: Collection[str]) -> None:
        """Forget all revisions of before the listing but those of lost records."""
        self._former = {key: at for key, at in self._former.items() if key in lost}

    def revision(self, record: Record) -> int:
        """Return a record's revision; of a lost one, the revision before it was lost."""
        return self._former.get(record.key, record.revision)
