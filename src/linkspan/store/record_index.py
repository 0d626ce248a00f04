"""Record index: records by key, packed, and by the first words of their keys, with a count of the changes of each kind.

A cluster of 1,000 hosts with 20 networks has 42,000 records, of which a host reads a tenth more than once. So the index
keeps bytes: a revision, and the compressed value. The first value of a kind is the dictionary of all others (RFC 1950
section 2.2), because records of a kind have the same names in them: a lease of 200 bytes takes 47, and two microseconds
to read. To pack it takes ten, so an agent that starts packs the records of its snapshot later (``load``).
"""

from __future__ import annotations

import struct
import sys
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping

from linkspan.core.store_contract import Record

_REVISION = struct.Struct("=q")
_HEAD = _REVISION.size
_LEVEL, _WINDOW, _MEMORY = 1, -9, 1
"""Of zlib: the least work, no header, and a window of 512 bytes, because values are short."""
_BY_HOST = ("alive", "hosts", "leases")
"""Kinds whose keys end with a host's id, leases in each network: it is in memory once."""
_SAMPLE = 512
"""Bytes of a kind's first value that are its dictionary: as many as the window has."""

Packed = bytes
"""A record's revision, and its compressed value."""
Kept = Packed | Record
"""A record as it is in memory: packed, or as it was loaded."""
Group = str | None
"""The second word of a key, None if no third one follows."""


class RecordIndex(Mapping[str, Record]):
    """Records in memory, by key. A kind is the first word of a key, such as ``hosts``.

    Most callers want one kind, or one kind of one network or host: the second word of the key, if a third one follows.
    """

    def __init__(self) -> None:
        self._kinds: dict[str, dict[Group, dict[str, Kept]]] = {}
        """By the parts of the keys, as ``_place`` returns them."""
        self._samples: dict[str, bytes] = {}
        """By kind: the beginning of the first value, which is the dictionary of all."""
        self._loaded: list[str] = []
        """Keys of records that may not be packed yet."""
        self._work = b"", _compressor(b"")
        """The dictionary of the last value that was packed, and what packs with it: a copy takes half of the time."""
        self._changes: Counter[str] = Counter()
        self._latest: dict[tuple[str, Group], int] = {}
        """By kind and group: the number of the last change, of all changes here."""
        self._number = 0
        self._followed: dict[tuple[str, Group], set[str]] = {}
        """By kind and group: the set of ``follow``."""

    def __getitem__(self, key: str) -> Record:
        kind, group, rest = _place(key)
        return _unpacked(key, self._kinds[kind][group][rest], self._samples[kind])

    def get(self, key: str, default: Record | None = None) -> Record | None:  # type: ignore[override]
        """Return a record, or ``default`` if there is none."""
        kept = self._kept(key)
        if kept is None or isinstance(kept, Record):
            return kept or default
        return _unpacked(key, kept, self._samples[key.partition("/")[0]])

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._kept(key) is not None

    def __iter__(self) -> Iterator[str]:
        return (
            start + tail
            for kind, groups in list(self._kinds.items())
            for group, some in list(groups.items())
            for start in (_start(kind, group),)
            for tail in list(some)
        )

    def __len__(self) -> int:
        return sum(len(some) for groups in self._kinds.values() for some in groups.values())

    def _kept(self, key: str) -> Kept | None:
        kind, group, rest = _place(key)
        groups = self._kinds.get(kind)
        some = groups.get(group) if groups is not None else None
        return some.get(rest) if some is not None else None

    def packed(self, key: str) -> Packed | None:
        """Return a record packed, None if there is none: ``same`` compares two versions without more work."""
        kept = self._kept(key)
        if isinstance(kept, Record):
            kind, group, rest = _place(key)
            kept = self._kinds[kind][group][rest] = self._packed(kind, kept)
        return kept

    def revision(self, key: str) -> int:
        """Return a record's revision, 0 if there is none."""
        kept = self._kept(key)
        return 0 if kept is None else _revision(kept)

    def keep(self, record: Record) -> None:
        """Add a record, or replace the one with its key."""
        kind, group, rest = _place(record.key)
        packed = self._packed(kind, record)
        old = self.packed(record.key)
        if old is None or not same(old, packed):
            self._note(kind, group, rest)
        if old is None and kind in _BY_HOST:
            rest = sys.intern(rest)
        self._kinds.setdefault(kind, {}).setdefault(group, {})[rest] = packed

    def load(self, records: Iterable[Record]) -> None:
        """Add records, or replace those with their keys; they take more memory until ``pack`` has packed them."""
        for record in records:
            kind, group, rest = _place(record.key)
            self._samples.setdefault(kind, record.value[:_SAMPLE])
            some = self._kinds.setdefault(kind, {}).setdefault(group, {})
            some[sys.intern(rest) if kind in _BY_HOST else rest] = record
            self._note(kind, group, rest)
            self._loaded.append(record.key)

    def pack(self, most: int) -> bool:
        """Pack at most so many loaded records; return whether others are left."""
        some = self._loaded[-most:]
        del self._loaded[-most:]
        for key in some:
            self.packed(key)
        return bool(self._loaded)

    def touch(self, key: str, revision: int) -> bool:
        """Give a record a revision; return False, and change nothing, if there is no such record, or a later one."""
        kind, group, rest = _place(key)
        some = self._kinds.get(kind, {}).get(group, {})
        kept = some.get(rest)
        if kept is None or _revision(kept) > revision:
            return False
        some[rest] = _at(kept, revision)
        return True

    def forget_revisions(self) -> dict[str, int]:
        """Give all records the revision 0; return the revisions of before by their keys, without those that were 0."""
        before: dict[str, int] = {}
        for kind, groups in self._kinds.items():
            for group, some in groups.items():
                start = _start(kind, group)
                for tail, kept in some.items():
                    if at := _revision(kept):
                        before[start + tail] = at
                        some[tail] = _at(kept, 0)
        return before

    def drop(self, key: str) -> None:
        """Remove a record. Raises KeyError if there is none."""
        kind, group, rest = _place(key)
        del self._kinds[kind][group][rest]
        self._note(kind, group, rest)
        if not self._kinds[kind][group]:
            del self._kinds[kind][group], self._latest[kind, group]
        if not self._kinds[kind]:
            del self._kinds[kind], self._samples[kind]

    def all(self) -> Iterator[Record]:
        """Yield all records. Another thread than the one that changes them may call this."""
        for kind, groups in list(self._kinds.items()):
            sample = self._samples.get(kind, b"")  # read first: without it nothing of the kind is left
            for group, some in list(groups.items()):
                start = _start(kind, group)
                for tail, kept in list(some.items()):
                    yield _unpacked(start + tail, kept, sample)

    def under(self, prefix: str) -> dict[str, Record]:
        """Return the records whose keys begin with ``prefix``, at least one whole word such as ``hosts/``."""
        return {key: self[key] for key in self.keys_under(prefix)}

    def keys_under(self, prefix: str) -> list[str]:
        """Return the keys that begin with ``prefix``, at least one whole word such as ``hosts/``."""
        kind, _, rest = prefix.partition("/")
        groups = self._kinds.get(kind, {})
        group, slash, left = rest.partition("/")
        found = {group: groups.get(group, {})} if slash else dict(groups)
        keys = [start + tail for name, some in found.items() for start in (_start(kind, name),) for tail in some]
        whole = not left if slash else not group
        return keys if whole else [key for key in keys if key.startswith(prefix)]

    def groups(self, kind: str) -> Collection[str]:
        """Return the second words of the keys of a kind of which more words follow: the networks of ``leases``."""
        return [group for group in self._kinds.get(kind, {}) if group is not None]

    def changes(self, *kinds: str) -> tuple[int, ...]:
        """Return how often records of these kinds changed: equal numbers mean equal values, whatever the revisions."""
        return tuple(self._changes[kind] for kind in kinds)

    def change_in(self, kind: str, group: Group) -> int:
        """Return the number of the last change in a group of a kind, 0 if it has no records; as ``changes`` does."""
        return self._latest.get((kind, group), 0)

    def follow(self, kind: str, group: str) -> set[str]:
        """Return a set with the keys of a group, to which those that change later are added; the caller empties it."""
        return self._followed.setdefault((kind, group), set(self.keys_under(f"{kind}/{group}/")))

    def _note(self, kind: str, group: Group, rest: str) -> None:
        """Count a change."""
        self._number += 1
        self._changes[kind] += 1
        self._latest[kind, group] = self._number
        if (followed := self._followed.get((kind, group))) is not None:
            followed.add(_start(kind, group) + rest)

    def _packed(self, kind: str, record: Record) -> Packed:
        sample = self._samples.setdefault(kind, record.value[:_SAMPLE])
        if self._work[0] is not sample:
            self._work = sample, _compressor(sample)
        work = self._work[1].copy()
        return _REVISION.pack(record.revision) + work.compress(record.value) + work.flush()


def _compressor(sample: bytes) -> zlib._Compress:
    return zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW, _MEMORY, zlib.Z_FIXED, sample)


def _unpacked(key: str, kept: Kept, sample: bytes) -> Record:
    if isinstance(kept, Record):
        return kept
    value = zlib.decompressobj(_WINDOW, sample).decompress(kept[_HEAD:])
    return Record(key, value, _REVISION.unpack_from(kept)[0])


def _revision(kept: Kept) -> int:
    return kept.revision if isinstance(kept, Record) else int(_REVISION.unpack_from(kept)[0])


def _at(kept: Kept, revision: int) -> Kept:
    """Return a record with another revision."""
    if isinstance(kept, Record):
        return Record(kept.key, kept.value, revision)
    return _REVISION.pack(revision) + kept[_HEAD:]


def same(one: Packed, other: Packed) -> bool:
    """Return whether two versions of a record have the same value, whatever their revisions."""
    return one is other or one[_HEAD:] == other[_HEAD:]


def _place(key: str) -> tuple[str, Group, str]:
    """Return the first word of a key, the second one if a third follows, and the rest, which begins with a slash."""
    kind, _, rest = key.partition("/")
    group, slash, _ = rest.partition("/")
    return (kind, group, key[len(kind) + 1 + len(group) :]) if slash else (kind, None, key[len(kind) :])


def _start(kind: str, group: Group) -> str:
    """Return the beginning of the keys of a kind and group."""
    return kind if group is None else f"{kind}/{group}"
