"""Table of the SQLite file's records, for one thread: revisions, remembered deletes, and expiry.

A deleted key stays as a row without a value. So one walk along an index finds the changes after a revision, and the
file does not grow with records that are put again and again (liveness). A watch that was away sees the last change of
each key, not all changes. Rows of deleted keys are pruned: who asks for changes from before a pruned revision must
list again.

Records expire by CLOCK_BOOTTIME, which nobody can set and which all agents of a machine share. After a reboot the
process that put the record is gone, so the record is gone too.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from linkspan.core.database import open_database, transaction, translated
from linkspan.core.errors import NotFound, Unavailable
from linkspan.core.store_contract import JOIN, Batch, Record
from linkspan.store.request import Request, bounds

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

KEEP = 10_000
"""Revisions that are kept for watches; a host that was away for longer lists again, which costs little."""

_PRUNE_EVERY = 1_000
_ACCEPT = "accept it once: echo \"DELETE FROM meta WHERE name = 'inode'\" | sqlite3"
_TABLES = """
    CREATE TABLE IF NOT EXISTS entries(
        key TEXT PRIMARY KEY, value BLOB, revision INTEGER NOT NULL, expires REAL, boot TEXT) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS entries_revision ON entries(revision);
    CREATE INDEX IF NOT EXISTS entries_expires ON entries(expires) WHERE expires IS NOT NULL;
    CREATE TABLE IF NOT EXISTS clock(
        one INTEGER PRIMARY KEY CHECK (one = 1), revision INTEGER NOT NULL, pruned INTEGER NOT NULL);
    INSERT OR IGNORE INTO clock VALUES (1, 0, 0)"""


Records = list[Record]  # inside the class, `list` is a method


class Tick(msgspec.Struct, frozen=True):
    """State of the store after a sweep: its revision, and seconds until the next record expires (None: none will).

    ``swept``: the sweep deleted records.
    """

    revision: int
    next_expiry: float | None
    swept: bool


class Table:
    """An open ``store.db``."""

    def __init__(self, path: Path, machine: str, cluster: str, keep: int = KEEP) -> None:
        """Open or make the file; the arguments are those of ``SqliteStore``.

        Raises Unavailable if the file is corrupt, from a newer linkspan, another machine's or another cluster's.
        """
        self.path = path
        self._keep = keep
        self._boot = BOOT_ID.read_text().strip()
        self._database = open_database(path, "FULL", _TABLES, one_thread=False)
        try:
            self.inode = path.stat().st_ino
            with translated(path), transaction(self._database):
                self._take_over()
                self._refuse_other_machine(machine)
                self._refuse_copy()
                self.cluster = self._refuse_other_cluster(cluster)
        except BaseException:
            self._database.close()
            raise

    def _meta(self, name: str, value: str) -> str:
        """Return the file's value of this name; write ``value`` first if it has none."""
        self._database.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (name, value))
        found = self._database.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return str(found[0])

    def _take_over(self) -> None:
        """Take over the records of the first layout, which had no revisions."""
        if not self._database.execute("SELECT 1 FROM sqlite_master WHERE name = 'records'").fetchone():
            return
        self._database.execute(
            "INSERT OR IGNORE INTO entries SELECT key, value, ?, NULL, NULL FROM records", (self._next(),)
        )
        self._database.execute("DROP TABLE records")

    def _refuse_other_machine(self, machine: str) -> None:
        if not machine or (owner := self._meta("machine", machine)) == machine:
            return
        raise Unavailable(
            f"store {self.path} belongs to machine {owner}, and this is {machine}",
            "use a folder on this machine's own disk, or etcd for several machines; on a copy of the "
            "other machine, move the file away and create the networks again",
        )

    def _refuse_copy(self) -> None:
        """Refuse a copy: the copy and the original would give out the same addresses.

        The file's inode shows it: SQLite never changes it, and overlayfs keeps a file's inode, though not a folder's.
        It also distinguishes two machines from one image, whose machine ids are equal.
        """
        if (original := self._meta("inode", str(self.inode))) != str(self.inode):
            raise Unavailable(
                f"store {self.path} is a copy (inode {self.inode}, made as {original})",
                f"use the original's folder; where this is a backup that takes its place, {_ACCEPT} {self.path}",
            )

    def _refuse_other_cluster(self, expected: str) -> str:
        found = self._meta("cluster", expected or uuid.uuid4().hex)
        if expected and found != expected:
            raise Unavailable(
                f"store {self.path} is cluster {found}'s, and this host belongs to {expected}",
                f"point `store` at the cluster's own folder; {JOIN}",
            )
        return found

    def _next(self) -> int:
        row = self._database.execute("UPDATE clock SET revision = revision + 1 RETURNING revision").fetchone()
        revision = int(row[0])
        if revision % _PRUNE_EVERY == 0:
            self._prune(revision - self._keep)
        return revision

    def _clock(self) -> tuple[int, int]:
        revision, pruned = self._database.execute("SELECT revision, pruned FROM clock").fetchone()
        return int(revision), int(pruned)

    @contextlib.contextmanager
    def _snapshot(self) -> Iterator[sqlite3.Connection]:
        with translated(self.path):
            self._database.execute("BEGIN")
            try:
                yield self._database
            finally:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")

    def get(self, key: str) -> Record | None:
        """Return the record, None if there is none."""
        with translated(self.path):
            row = self._database.execute(
                "SELECT key, value, revision FROM entries WHERE key = ? AND value IS NOT NULL", (key,)
            ).fetchone()
        return None if row is None else Record(*row)

    def list(self, prefix: str, beside: str = "") -> tuple[list[Record], int]:
        """Return the records whose keys begin with ``prefix``, in the order of keys, and the revision.

        Those whose keys begin with ``beside`` are left out, unless it is empty.
        """
        without = bounds(beside) if beside else ("", "")
        with self._snapshot() as database:
            rows = database.execute(
                "SELECT key, value, revision FROM entries WHERE key >= ? AND key < ? "
                "AND NOT (key >= ? AND key < ?) AND value IS NOT NULL ORDER BY key",
                (*bounds(prefix), *without),
            ).fetchall()
            return [Record(*row) for row in rows], self._clock()[0]

    def page(self, prefix: str, last: str, most: int) -> tuple[Records, int]:
        """Return records whose keys begin with ``prefix``, in the order of keys, after ``last``, and the revision."""
        begin, end = bounds(prefix)
        with self._snapshot() as database:
            rows = database.execute(
                "SELECT key, value, revision FROM entries WHERE key >= ? AND key < ? AND key > ? "
                "AND value IS NOT NULL ORDER BY key LIMIT ?",
                (begin, end, last, most),
            ).fetchall()
            return [Record(*row) for row in rows], self._clock()[0]

    def changes(self, prefix: str, after: int) -> tuple[Batch, int]:
        """Return the last change of each key after a revision, and the revision up to which these are all changes.

        Raises NotFound as ``refuse_revision`` does.
        """
        with self._snapshot() as database:
            revision, pruned = self._clock()
            refuse_revision(str(self.path), after, pruned, revision)
            rows = database.execute(
                "SELECT key, value, revision FROM entries INDEXED BY entries_revision "
                "WHERE revision > ? AND +key >= ? AND +key < ? ORDER BY revision, key",
                (after, *bounds(prefix)),
            ).fetchall()
        puts = tuple(Record(*row) for row in rows if row[1] is not None)
        deletes = tuple(row[0] for row in rows if row[1] is None)
        return Batch(max((row[2] for row in rows), default=after), puts, deletes), revision

    def commit(self, request: Request, life: float) -> int:
        """Carry out the request and return its revision; or change nothing and return 0 if a condition fails.

        The records that it puts expire after ``life`` seconds; 0: never.
        """
        with translated(self.path), transaction(self._database):
            self._drop_expired()
            for key, revision in request.conditions.items():
                if self._revision_of(key) != revision:
                    return 0
            deletes = [key for key in request.deletes if self._revision_of(key)]
            if not deletes and not request.puts:
                return max(self._clock()[0], 1)
            revision = self._next()
            expires = self.now() + life if life else None
            boot = self._boot if life else None
            rows: list[tuple[object, ...]]
            rows = [(key, value, revision, expires, boot) for key, value in request.puts.items()]
            rows += [(key, None, revision, None, None) for key in deletes]
            self._database.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?)", rows)
        return revision

    def prolong(self, revisions: Mapping[str, int], life: float) -> None:
        """Make records, last put at these revisions, expire ``life`` seconds from now; no watch reports it.

        The commit does not wait for the disk, because no record of liveness counts after a crash of the machine. In the
        write-ahead log it precedes the next commit that does wait, so that commit is as safe as before.
        """
        rows = [(self.now() + life, key, revision, self._boot) for key, revision in revisions.items()]
        with translated(self.path):
            self._database.execute("PRAGMA synchronous=NORMAL")
            try:
                with transaction(self._database):
                    self._database.executemany(
                        "UPDATE entries SET expires = ? WHERE key = ? AND revision = ? AND boot = ?", rows
                    )
            finally:
                self._database.execute("PRAGMA synchronous=FULL")

    def _revision_of(self, key: str) -> int:
        row = self._database.execute(
            "SELECT revision FROM entries WHERE key = ? AND value IS NOT NULL", (key,)
        ).fetchone()
        return 0 if row is None else int(row[0])

    @staticmethod
    def now() -> float:
        """Return the time by which records expire (CLOCK_BOOTTIME), in seconds."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def _drop_expired(self) -> None:
        """Delete expired records inside the caller's transaction, at a revision of their own."""
        gone = "expires IS NOT NULL AND (expires <= ? OR boot <> ?)"
        when = (self.now(), self._boot)
        if self._database.execute(f"SELECT 1 FROM entries WHERE {gone}", when).fetchone():  # noqa: S608
            self._database.execute(
                f"UPDATE entries SET value = NULL, expires = NULL, boot = NULL, revision = ? WHERE {gone}",  # noqa: S608
                (self._next(), *when),
            )

    def sweep(self) -> Tick:
        """Delete expired records, and return the store's state."""
        with translated(self.path):
            expiry = self._next_expiry()
            swept = expiry is not None and expiry <= 0
            if swept:
                with transaction(self._database):
                    self._drop_expired()
                expiry = self._next_expiry()
            return Tick(self._clock()[0], expiry, swept)

    def _next_expiry(self) -> float | None:
        row = self._database.execute(
            "SELECT min(CASE boot WHEN ? THEN expires ELSE 0 END) FROM entries WHERE expires IS NOT NULL",
            (self._boot,),
        ).fetchone()
        return None if row[0] is None else float(row[0]) - self.now()

    def prune(self, upto: int) -> None:
        """Forget the deletes up to a revision; a watch from before it must list again."""
        with translated(self.path), transaction(self._database):
            self._prune(min(upto, self._clock()[0]))

    def _prune(self, upto: int) -> None:
        self._database.execute("DELETE FROM entries WHERE value IS NULL AND revision <= ?", (upto,))
        self._database.execute("UPDATE clock SET pruned = max(pruned, ?)", (upto,))

    def replaced(self) -> bool:
        """Return whether the path leads to another file than the open one, or to none."""
        try:
            return os.stat(self.path).st_ino != self.inode  # noqa: PTH116 (a microsecond, before each call)
        except OSError:
            return True

    def close(self) -> None:
        """Close the file."""
        self._database.close()


def refuse_revision(store: str, after: int, oldest: int, newest: int) -> None:
    """Raise NotFound if a watch from revision ``after`` would miss changes, or if the store has not come so far.

    ``oldest`` is the last revision whose deletes are forgotten, ``newest`` the store's present revision.
    """
    if after < oldest:
        raise NotFound(
            f"store {store}: changes after revision {after} are no longer kept (only those after {oldest})",
            "list the records again",
        )
    if after > newest:
        raise NotFound(
            f"store {store}: its revision went back from {after} to {newest}: emptied, or restored from a backup",
            "list the records again; what is missing must be put back",
        )
