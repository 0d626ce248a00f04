"""Snapshot: the replica's records in a file of the state folder, for an agent that starts while the store is away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import msgspec

from linkspan.core.contracts import Record
from linkspan.kernel.io.durable_files import write

log = logging.getLogger("linkspan.store.snapshot")

SNAPSHOT = "replica.json"
"""The snapshot's file in the state folder."""
SNAPSHOT_AFTER = 1.0
"""Seconds between a change and the snapshot with it: a burst is written once."""


class Content(msgspec.Struct):
    """Content of the file: the ids of the cluster and of the host ('' in those of old agents), and the records."""

    cluster: str
    records: list[Record]
    host: str = ""


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


class Snapshot:
    """The file at ``path``; ``content`` returns what belongs into it now, None if it must stay as it is."""

    def __init__(self, path: Path, content: Callable[[], Content | None]) -> None:
        self._path = path
        self._content = content
        self._due = asyncio.Event()
        self._saving = asyncio.Lock()

    def read(self) -> Content:
        """Return the file's content; a new host has none, and a damaged file is not used."""
        try:
            return _decoded(self._path)
        except FileNotFoundError:
            pass
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            log.warning("snapshot %s cannot be read (%s): the store is read instead", self._path, error)
        return Content("", [])

    def note(self) -> None:
        """Write the file soon, because records have changed."""
        self._due.set()

    async def follow(self) -> None:
        """Write the file after changes, for ever."""
        while True:
            await self._due.wait()
            await asyncio.sleep(SNAPSHOT_AFTER)
            await self.save()

    async def save(self) -> None:
        """Write the file now, in a thread."""
        async with self._saving:
            await asyncio.to_thread(self.write)

    def write(self) -> None:
        """Write the file now. Raises nothing."""
        self._due.clear()
        if (content := self._content()) is None:
            return
        try:
            write(self._path, msgspec.json.encode(content), 0o600)
        except OSError as error:
            log.warning("snapshot %s: %s", self._path, error.strerror)


def _decoded(path: Path) -> Content:
    return msgspec.json.decode(path.read_bytes(), type=Content)
