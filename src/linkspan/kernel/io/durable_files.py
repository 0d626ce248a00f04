"""Durable files: whole after a crash; they keep what a driver must know after the agent has ended.

A reader of the folder never sees half a file: it is written under a name that no reader's pattern matches,
reaches the disk, and is then renamed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from linkspan import SCHEMA
from linkspan.core.errors import Unavailable
from linkspan.core.remedies import reason, remedy

Entry = TypeVar("Entry")

WITHOUT = "the state before linkspan is then not restored"
"""The usual consequence of moving away a file with the state before linkspan."""

BOOT_ID = "LINKSPAN_BOOT_ID"
"""Environment variable with the boot id of a virtual host, whose kernel's id does not change."""


def temporary(path: Path) -> Path:
    """Return the name under which a file is written first: hidden, without a suffix that a reader looks for."""
    return path.with_name(f".{path.name}.linkspan-new")


def write(path: Path, content: bytes, mode: int = 0o644, owner: tuple[int, int] | None = None) -> None:
    """Write a file in one step, as ``write_parts`` does."""
    write_parts(path, (content,), mode, owner)


def write_parts(
    path: Path, parts: Iterable[bytes], mode: int = 0o644, owner: tuple[int, int] | None = None
) -> None:
    """Write a file in one step, for readers and for a power failure. Raises OSError, and then leaves nothing.

    ``owner`` is the uid and gid that the file gets. The folder may then belong to that user, who may put any link into
    it: the file that gets the owner is new, and nothing is followed.
    """
    new = temporary(path)
    fresh = os.O_TRUNC
    if owner is not None:
        new.unlink(missing_ok=True)
        fresh = os.O_EXCL
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | fresh | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, mode)  # whatever the umask is
            if owner is not None:
                os.fchown(fd, *owner)
            file.writelines(parts)
            file.flush()
            os.fsync(fd)
        new.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def stamps(paths: Iterable[str | Path]) -> tuple[tuple[int, int], ...]:
    """Return what differs after one of the files was changed, in place or by another file; a missing one is (0, 0)."""
    found = []
    for path in paths:
        try:
            seen = Path(path).stat()
        except OSError:
            found.append((0, 0))
        else:
            found.append((seen.st_ino, seen.st_mtime_ns))
    return tuple(found)


def boot_id() -> str:
    """Return the kernel's name of this boot (random(4)); a virtual host that restarted gets its own."""
    return os.environ.get(BOOT_ID) or Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


class _Document(msgspec.Struct):
    epoch: str
    entries: dict[str, msgspec.Raw]
    schema: int = SCHEMA


class Memory(Generic[Entry]):
    """A small table of entries by name, kept in a JSON file.

    ``epoch`` names the span in which entries are valid (a boot, a network namespace): a file of another epoch
    counts as empty. Change ``entries`` and call ``save``. A damaged file is an error and never silently
    counts as empty, because uninstall restores from it; unless it is not ``precious``. ``without`` is the
    consequence of moving the file away, for the error's hint.
    """

    def __init__(
        self, path: Path, entry: type[Entry], epoch: str = "", *, precious: bool = True, without: str = WITHOUT
    ) -> None:
        self.path = path
        self.found = False
        """Whether a file of this epoch existed when the entries were read."""
        self._entry = entry
        self._epoch = epoch
        self._precious = precious
        self._without = without
        self._entries: dict[str, Entry] | None = None

    @property
    def entries(self) -> dict[str, Entry]:
        """Return the entries, which are read at the first use. Raises Unavailable with the file's name."""
        if self._entries is None:
            self._entries = self._load()
        return self._entries

    def save(self) -> None:
        """Write the entries. Raises Unavailable; the file is unchanged then."""
        raw = {name: msgspec.Raw(msgspec.json.encode(entry)) for name, entry in self.entries.items()}
        document = msgspec.json.encode(_Document(epoch=self._epoch, entries=raw))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write(self.path, document + b"\n", 0o600)
        except OSError as error:
            hint = remedy(error, self.path, "nothing was changed")
            raise Unavailable(f"write {self.path}: {reason(error)}", hint) from error

    def _load(self) -> dict[str, Entry]:
        hint = f"move {self.path} away to continue; {self._without}"
        try:
            document = msgspec.json.decode(self.path.read_bytes(), type=_Document)
            if document.schema > SCHEMA:
                what = f"{self.path} is of a newer linkspan (schema {document.schema})"
                raise Unavailable(what, "upgrade this one")
            if document.epoch != self._epoch:
                return {}
            self.found = True
            return {n: msgspec.json.decode(raw, type=self._entry) for n, raw in document.entries.items()}
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise Unavailable(f"read {self.path}: {reason(error)}", hint) from error
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            if not self._precious:
                return {}
            raise Unavailable(f"{self.path} is damaged: {error}", hint) from error
