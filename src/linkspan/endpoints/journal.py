"""Journal of the endpoints on this host, with the progress of each attach or detach.

The agent writes its intent before it touches the kernel. So an agent that was killed at any point knows at
its start what to finish or undo. An address is in use if and only if it is in a row here; there is no second
list.

A file beside it (``WITNESS``) has the number of the journal's last opening, and the boot. By them an agent
recognises a journal that is new, or older than the last agent's: a backup, or one that was moved away.
``recovery`` finds what such a journal does not know.

Commits run on the event loop, so they must be cheap: WAL with synchronous=NORMAL writes only to the page
cache, which survives a kill of the agent. A machine that crashes may lose the last commits, and its endpoints
with them; each row has the boot's id, which shows that. The checkpoint does wait for the disk, so it is never
automatic: a thread calls ``checkpoint``.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from linkspan.core.addresses import Prefix, prefix
from linkspan.core.database import away, connect, open_database, transaction, translated
from linkspan.core.errors import Conflict, Invalid, NotFound, Unavailable
from linkspan.core.ipam import COOLDOWN
from linkspan.core.model import Endpoint
from linkspan.kernel.io import durable_files

log = logging.getLogger("linkspan.endpoints.journal")

Phase = Literal["attaching", "attached", "detaching"]
WITNESS = "journal.witness"
"""The file beside the journal with the number of its last opening."""

_TABLES = """
CREATE TABLE IF NOT EXISTS endpoints(
    id TEXT NOT NULL, ifname TEXT NOT NULL, phase TEXT NOT NULL, boot_id TEXT NOT NULL,
    attached_ns INTEGER NOT NULL, record BLOB NOT NULL, PRIMARY KEY(id, ifname));
CREATE TABLE IF NOT EXISTS released(
    network TEXT NOT NULL, address TEXT NOT NULL, at REAL NOT NULL, boot_id TEXT NOT NULL,
    PRIMARY KEY(network, address)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS released_at ON released(at)
"""


class Row(msgspec.Struct, frozen=True):
    """An endpoint as recorded; ``attached_ns`` is CLOCK_BOOTTIME at the begin of its attach, in boot ``boot_id``."""

    endpoint: Endpoint
    phase: Phase
    boot_id: str
    attached_ns: int


class _Witness(msgspec.Struct):
    boot_id: str
    opened: int


class Released(msgspec.Struct, frozen=True):
    """An address still in cool-down; ``at`` is the time given to ``forget``, 0 if in an earlier boot."""

    network: str
    address: Prefix
    at: float


class Journal:
    """The endpoints of one host in one file. Used on one thread, except for ``checkpoint``."""

    def __init__(self, path: Path, boot_id: str | None = None, cooldown: float = COOLDOWN) -> None:
        """Open or make the file.

        Raises Unavailable if it is corrupt, newer than this version, or cannot be written.
        """
        self.path = path
        self.boot_id = durable_files.boot_id() if boot_id is None else boot_id
        self._cooldown = cooldown
        self._database = open_database(path, "NORMAL", _TABLES)
        with translated(path):
            self._database.execute("PRAGMA wal_autocheckpoint=0")
            self._database.execute(
                "UPDATE released SET at = 0, boot_id = ?1 WHERE boot_id <> ?1", (self.boot_id,)
            )

    def doubt(self) -> str:
        """Return why the journal may not know all endpoints, "" if it is the one that the last agent wrote."""
        seen = self._witness()
        if seen is None or self._opened() >= seen.opened:
            return ""
        return "is older than the last agent" if self._opened() else "is new, though an agent ran here before"

    def witnessed_this_boot(self) -> bool:
        """Return whether an agent has run here since the machine started."""
        seen = self._witness()
        return seen is not None and seen.boot_id == self.boot_id

    def witness(self) -> None:
        """Count an opening, here and in the file beside: from now on this journal is the current one.

        On a full disk the opening is not counted. The order, first here and then in the file, keeps the next
        agent from doubting the journal.
        """
        seen = self._witness()
        opened = max(self._opened(), seen.opened if seen else 0) + 1
        try:
            with translated(self.path):
                self._database.execute("INSERT OR REPLACE INTO meta VALUES ('opened', ?)", (str(opened),))
        except Unavailable as error:
            log.warning("%s", error.told)
            return
        with contextlib.suppress(OSError):
            durable_files.write(
                self.path.with_name(WITNESS), msgspec.json.encode(_Witness(self.boot_id, opened)), 0o600
            )

    def _witness(self) -> _Witness | None:
        try:
            return msgspec.json.decode(self.path.with_name(WITNESS).read_bytes(), type=_Witness)
        except (OSError, msgspec.DecodeError):
            return None

    def _opened(self) -> int:
        with translated(self.path):
            row = self._database.execute("SELECT value FROM meta WHERE name = 'opened'").fetchone()
        return int(row[0]) if row and row[0].isdigit() else 0

    def adopt(self, endpoint: Endpoint, instead: tuple[str, str] | None = None) -> None:
        """Record an endpoint that exists already, ``instead`` of its earlier identity.

        It counts as attached before anything that a runtime has queued, because a queued removal is meant for
        it.
        """
        values = (*endpoint.identity, self.boot_id, 0, msgspec.json.encode(endpoint))
        with translated(self.path), transaction(self._database):
            self._database.execute(
                "DELETE FROM endpoints WHERE id = ? AND ifname = ?", instead or endpoint.identity
            )
            self._database.execute("INSERT OR REPLACE INTO endpoints VALUES (?, ?, 'attached', ?, ?, ?)", values)

    def begin(self, endpoint: Endpoint) -> None:
        """Record that an attach begins. Raises Conflict if the endpoint's identity exists."""
        with translated(self.path):
            added = self._database.execute(
                "INSERT OR IGNORE INTO endpoints VALUES (?, ?, 'attaching', ?, ?, ?)",
                (
                    *endpoint.identity,
                    self.boot_id,
                    time.clock_gettime_ns(time.CLOCK_BOOTTIME),
                    msgspec.json.encode(endpoint),
                ),
            )
        if not added.rowcount:
            raise Conflict(
                f"interface {endpoint.ifname} of container {endpoint.id} is attached already",
                "detach it first",
            )

    def attached(self, endpoint: Endpoint) -> None:
        """Record that an endpoint is in place, with its final values. Raises NotFound if it was never begun."""
        with translated(self.path):
            changed = self._database.execute(
                "UPDATE endpoints SET phase = 'attached', record = ? WHERE id = ? AND ifname = ?",
                (msgspec.json.encode(endpoint), *endpoint.identity),
            )
        if not changed.rowcount:
            raise NotFound(f"interface {endpoint.ifname} of container {endpoint.id} is not in {self.path}")

    def detaching(self, identity: tuple[str, str]) -> None:
        """Record that a detach begins; an endpoint without a row is no error."""
        with translated(self.path):
            self._database.execute(
                "UPDATE endpoints SET phase = 'detaching' WHERE id = ? AND ifname = ?", identity
            )

    def forget(self, endpoint: Endpoint, now: float) -> None:
        """Drop an endpoint, whose addresses are in cool-down from ``now`` on; one without a row is no error."""
        with translated(self.path), transaction(self._database):
            gone = self._database.execute(
                "DELETE FROM endpoints WHERE id = ? AND ifname = ?", endpoint.identity
            )
            if gone.rowcount:
                self._database.executemany(
                    "INSERT OR REPLACE INTO released VALUES (?, ?, ?, ?)",
                    [(endpoint.network, text, now, self.boot_id) for text in endpoint.addresses],
                )
            self._database.execute("DELETE FROM released WHERE at <= ?", (now - self._cooldown,))

    def rows(self) -> list[Row]:
        """Return all recorded endpoints, in the order of their attach."""
        with translated(self.path):
            found = self._database.execute(
                "SELECT record, phase, boot_id, attached_ns FROM endpoints ORDER BY rowid"
            ).fetchall()
        with self._readable():
            return [_row(record, rest) for record, *rest in found]

    def released(self) -> list[Released]:
        """Return the addresses still in cool-down at the last ``forget``, oldest first."""
        with translated(self.path):
            found = self._database.execute("SELECT network, address, at FROM released ORDER BY at").fetchall()
        with self._readable():
            rows = msgspec.convert(found, list[tuple[str, str, float]])
            return [Released(network, prefix(address), at) for network, address, at in rows]

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        """Raise Unavailable if a row read in the block differs from what was written: the file has no checksums."""
        try:
            yield
        except (msgspec.DecodeError, UnicodeDecodeError, TypeError, Invalid) as error:
            raise Unavailable(f"{self.path} has a record that cannot be read ({error})", away(self.path)) from error

    def checkpoint(self) -> None:
        """Move the write-ahead log into the file. Any thread may call this; it waits for the disk."""
        with translated(self.path), contextlib.closing(connect(self.path, "NORMAL")) as own:
            own.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def close(self) -> None:
        """Close the file; nothing else may be called afterwards."""
        self._database.close()


def _row(record: bytes, rest: list[object]) -> Row:
    """Return a row. Raises what a decoder raises, or Invalid for an invalid address."""
    endpoint = msgspec.json.decode(record, type=Endpoint)
    for text in endpoint.addresses:
        prefix(text)
    return Row(endpoint, *msgspec.convert(rest, tuple[Phase, str, int]))
