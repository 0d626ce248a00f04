"""Snapshot: the replica's records in a file of the state folder, for an agent that starts while the store is away."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec

from linkspan.core.store_contract import Record
from linkspan.kernel.io.durable_files import write_parts

log = logging.getLogger("linkspan.store.snapshot")

SNAPSHOT = "replica.json"
"""The snapshot's file in the state folder."""
SNAPSHOT_AFTER, LATEST = 1.0, 10.0
"""Shortest and longest seconds between a change and the snapshot with it: a burst is written once."""
SHARE = 50
"""The pause before a snapshot, as a multiple of the last one's duration: all records are written for one change."""
AT_ONCE = 1 << 16
"""Bytes that are written at once."""
_ENCODER = msgspec.json.Encoder()


class Content(msgspec.Struct):
    """Content of the file: the ids of the cluster and of the host ('' in those of old agents), and the records."""

    cluster: str
    records: list[Record]
    host: str = ""


class Kept(msgspec.Struct, frozen=True):
    """A snapshot before it is written: as ``Content``, but the records are read one by one meanwhile."""

    cluster: str
    records: Iterable[Record]
    host: str


class Remembered(msgspec.Struct, frozen=True):
    """The content of a snapshot: the ids of its cluster and of its host ('' if unreadable), and its records' JSON."""

    cluster: str = ""
    host: str = ""
    listed: msgspec.Raw = msgspec.field(default=msgspec.Raw(b"[]"), name="records")

    @property
    def records(self) -> dict[str, bytes]:
        """Return the records by key, none if they are damaged: of a large cluster, they take a tenth of a second."""
        return self._read() or {}

    @property
    def networks(self) -> bool:
        """Return whether there may be a network: if the records are damaged, there may."""
        found = self._read()
        return found is None or any(key.startswith("networks/") for key in found)

    def _read(self) -> dict[str, bytes] | None:
        try:
            found = msgspec.json.decode(self.listed, type=list[Record])
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        return {record.key: record.value for record in found}


def remembered(snapshot: Path) -> Remembered:
    """Return the content of a snapshot; a missing one has none, and neither has one that is no JSON object.

    One of which only the records are damaged has its ids: what they are is found when they are asked for.
    """
    try:
        return msgspec.json.decode(snapshot.read_bytes(), type=Remembered)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return Remembered()


def pause_after(seconds: float) -> float:
    """Return for how many seconds changes gather if the last snapshot took so many seconds."""
    return min(max(SNAPSHOT_AFTER, SHARE * seconds), LATEST)


class Snapshot:
    """The file at ``path``; ``kept`` returns what belongs into it now, None if it must stay as it is."""

    def __init__(self, path: Path, kept: Callable[[], Kept | None]) -> None:
        self._path = path
        self._kept = kept
        self._took = 0.0
        """Seconds that the last snapshot took."""
        self.due = True
        """Whether the file may differ from what belongs into it."""
        self._wake = asyncio.Event()
        self._saving = asyncio.Lock()
        self._writing = threading.Lock()
        """A ``save`` that is cancelled leaves its thread writing, into the file that the next write would begin."""

    def read(self) -> Content:
        """Return the file's content; a new host has none, and a damaged file is not used."""
        try:
            found = msgspec.json.decode(self._path.read_bytes(), type=Content)
        except FileNotFoundError:
            pass
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            log.warning("snapshot %s cannot be read (%s): the store is read instead", self._path, error)
        else:
            self.due = False
            return found
        return Content("", [])

    def note(self) -> None:
        """Write the file soon, because records have changed."""
        self.due = True
        self._wake.set()

    async def follow(self) -> None:
        """Write the file after changes, for ever."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(pause_after(self._took))
            await self.save()

    async def save(self) -> None:
        """Write the file now, in a thread."""
        async with self._saving:
            await asyncio.to_thread(self.write)

    def write(self) -> None:
        """Write the file now, after a write that still runs. Raises nothing."""
        with self._writing:
            self._wake.clear()
            if (kept := self._kept()) is None:
                return
            self.due, begun = False, time.monotonic()
            try:
                write_parts(self._path, _parts(kept), 0o600)
            except OSError as error:
                self.due = True
                log.warning("snapshot %s: %s", self._path, error.strerror)
            self._took = time.monotonic() - begun


def _parts(kept: Kept) -> Iterator[bytes]:
    """Yield the file's bytes in parts: as values, the records of a large cluster take 25 MB."""
    cluster, host = (_ENCODER.encode(text) for text in (kept.cluster, kept.host))
    part = bytearray(b'{"cluster":%b,"host":%b,"records":[' % (cluster, host))
    between = b""
    for record in kept.records:
        part += between + _ENCODER.encode(record)
        between = b","
        if len(part) >= AT_ONCE:
            yield bytes(part)
            part.clear()
    yield bytes(part) + b"]}"
