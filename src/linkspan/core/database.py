"""SQLite for the journal and the store: safe open, and one place that turns its errors into ours."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from linkspan.core.errors import LinkspanError, Unavailable
from linkspan.core.remedies import reason, remedy

LAYOUT = 1
"""Version of the tables of a file, not of the records in them: a newer one is refused."""

BUSY_SECONDS = 5.0
"""How long a commit waits for another process that writes; one commit takes well under a millisecond."""


def away(path: Path) -> str:
    """Return the hint to move away a file that cannot be read, with the consequences."""
    return (
        f"it was left as it is; move it away (mv {path} {path}.bad) and start again: the agent rebuilds it from what "
        "the kernel, the store and its own snapshot know, and containers keep their network"
    )


def failure(path: Path, error: sqlite3.Error) -> LinkspanError:
    """Return our error for one of SQLite's, with the file's name and the fix."""
    # The low byte is the primary code (sqlite.org/rescode.html).
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return Unavailable(f"{path}: disk full", "free some space; nothing was lost, no restart is needed")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return Unavailable(f"{path} is corrupt ({error})", away(path))
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        hint = f"see which one, and end it: fuser -v {path}"
        return Unavailable(f"{path} is locked by another process", hint)
    if path.is_dir():
        return Unavailable(f"{path} is a folder, and should be a file", away(path))
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        hint = f"see who may write it, and whether its disk can be written: ls -l {path}; findmnt -T {path}"
        return Unavailable(f"{path} cannot be written ({error})", hint)
    return Unavailable(f"{path}: {error}", "check the disk (dmesg, df)")


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Raise our errors instead of SQLite's inside the block."""
    try:
        yield
    except sqlite3.Error as error:
        raise failure(path, error) from error


@contextlib.contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """Run the block as one transaction: on any error nothing is written."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        # SQLite has rolled back by itself after some errors, for example a full disk.
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def connect(path: Path, synchronous: str, one_thread: bool = True) -> sqlite3.Connection:
    """Open a connection that commits each statement by itself, outside ``transaction``.

    Without ``one_thread`` another thread than this one may use it; the caller must ensure that only one does.
    """
    database = sqlite3.connect(path, isolation_level=None, timeout=BUSY_SECONDS, check_same_thread=one_thread)
    database.execute(f"PRAGMA synchronous={synchronous}")
    return database


def open_database(path: Path, synchronous: str, tables: str, one_thread: bool = True) -> sqlite3.Connection:
    """Open or make the database; ``tables`` are statements that can be run again.

    Refuse with Unavailable a file that is corrupt or of a newer schema, and leave it unchanged.
    """
    try:
        # Never open an existing file here: closing it drops all locks that this process has on it (fcntl(2)).
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except OSError as error:
        hint = remedy(error, path, f"see who may write there: ls -ld {path.parent}")
        raise Unavailable(f"{path} cannot be opened: {reason(error)}", hint) from error
    with translated(path), contextlib.ExitStack() as undo:
        database = connect(path, synchronous, one_thread)
        undo.callback(database.close)
        _refuse_unsound(path, database)
        _write_ahead(database)
        with transaction(database):
            database.execute("CREATE TABLE IF NOT EXISTS meta(name TEXT PRIMARY KEY, value TEXT NOT NULL)")
            for statement in tables.split(";"):
                database.execute(statement)
            database.execute("INSERT OR IGNORE INTO meta VALUES ('schema', ?)", (str(LAYOUT),))
        undo.pop_all()
    return database


def _write_ahead(database: sqlite3.Connection) -> None:
    """Switch to a write-ahead log, once for each file.

    If several processes make one file at the same time, SQLite refuses this at once, without its usual wait,
    because two processes that both have a read lock and want to write would wait for each other.
    """
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            database.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _refuse_unsound(path: Path, database: sqlite3.Connection) -> None:
    verdict = database.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        corrupt = sqlite3.DatabaseError(verdict)
        corrupt.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise corrupt
    if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
        return
    row = database.execute("SELECT value FROM meta WHERE name = 'schema'").fetchone()
    schema = str(row[0]) if row else str(LAYOUT)
    if not schema.isdecimal():
        raise Unavailable(f"{path} has schema {schema!r}, which is no number", away(path))
    if int(schema) > LAYOUT:
        raise Unavailable(
            f"{path} has schema {schema}, and this linkspan supports up to {LAYOUT}",
            "a newer linkspan wrote it: upgrade this one",
        )
