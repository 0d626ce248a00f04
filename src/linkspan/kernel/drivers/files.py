"""Files of ours in folders that others read: configurations of helper programs, a CNI conflist.

A file is ours if the memory file has its path. The memory file also has its content's digest, so that a file
which a user has changed is not deleted. A file that existed before with other content is never overwritten.
One with exactly our content counts as ours: so an agent that lost its state folder finds its files again.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import math
import os
import shlex
import stat
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from linkspan.core.driver_contract import Support
from linkspan.core.errors import Conflict, LinkspanError, of_errno
from linkspan.core.kinds import Kind, Sort
from linkspan.core.shell import Shell
from linkspan.core.states.host import HOST, Key, State
from linkspan.core.states.programs import File, Process
from linkspan.kernel.io import durable_files
from linkspan.kernel.io.batch import each
from linkspan.kernel.io.durable_files import Memory
from linkspan.kernel.local_host import LocalHost

ANY = "*"
LARGE = 1 << 16
"""Bytes from which on a file counts by its inode, size and times alone. The names of 1,000 hosts are 0.6 MB in a
network: to read them takes half of the time of an update. Another file with the same content costs one reload."""
RACY = 100_000_000
"""Nanoseconds: ten ticks of the slowest clock that kernels have (CONFIG_HZ=100)."""


class _Entry(msgspec.Struct):
    digests: tuple[str, ...] = ()
    """Of the content last put and the one before (a kill may leave either); none for a folder of ours.

    ANY alone is of a volatile file.
    """


def digest(content: bytes) -> str:
    """Return a short digest of a file's content."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


class _Digest(NamedTuple):
    """A file's digest, what ``stat`` said of the file, when that was, and for how long it is valid (nanoseconds)."""

    text: str
    seen: tuple[int, ...]
    at: int
    valid: float


class Digests:
    """Digests of files and folders; a file is read again only if its inode, size or times show that it may differ.

    A LARGE file is never read.

    The times have the resolution of the kernel's clock tick. So a file that was changed within RACY before it was read
    may have been changed once more since: RACY later it is read again.
    """

    def __init__(self) -> None:
        self._known: dict[Path, _Digest] = {}

    def of(self, names: Iterable[str]) -> dict[str, str]:
        """Return the digests by path."""
        return {name: self._of(Path(name)) for name in names}

    def _of(self, path: Path) -> str:
        """Return the digest of a file, or of a folder's files (hidden ones are being written); '' if there is none."""
        try:
            found = path.stat()
            if not stat.S_ISDIR(found.st_mode):
                return self._of_file(path, found)
            files = dict.fromkeys(sorted(one for one in path.iterdir() if not one.name.startswith(".")))
        except OSError:
            self._known.pop(path, None)
            self._forget(path, ())
            return ""
        self._forget(path, files)
        return digest("\n".join(f"{one.name} {self._of(one)}" for one in files).encode())

    def _forget(self, folder: Path, there: Collection[Path]) -> None:
        """Forget the files of a folder that are not there any more."""
        for gone in [one for one in self._known if one.parent == folder and one not in there]:
            del self._known[gone]

    def _of_file(self, path: Path, found: os.stat_result) -> str:
        now = time.time_ns()
        seen = found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
        if found.st_size >= LARGE:
            self._known.pop(path, None)
            return ":".join(map(str, seen))
        known = self._known.get(path)
        if known is None or known.seen != seen or not 0 <= now - known.at < known.valid:
            sure = abs(now - found.st_ctime_ns) > RACY
            known = self._known[path] = _Digest(digest(path.read_bytes()), seen, now, math.inf if sure else RACY)
        return known.text


class FileDriver:
    """Writes files in one step and removes them again, with the folders made for them."""

    def __init__(self, memory_file: Path) -> None:
        self._ours: Memory[_Entry] = Memory(memory_file, _Entry)

    def probe(self) -> Support:
        """Return support: files are everywhere."""
        return Support("kernel")

    def observe(self, netns: int) -> Iterable[State]:
        """Yield our files that exist, with their real content and mode."""
        if netns != HOST:
            return []
        names = [name for name, entry in self._ours.entries.items() if entry.digests]
        return [file for name in names if (file := self._observed(Path(name)))]

    def _observed(self, path: Path) -> File | None:
        there, entry = _read(path), self._ours.entries.get(str(path), _Entry())
        return msgspec.structs.replace(there, volatile=True) if there and ANY in entry.digests else there

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Write and remove, each file on its own."""
        return each(put, self._put) | each(delete, self._delete)

    def _put(self, state: File) -> None:
        with _told(f"write {state.path}"):
            self._write(state)

    def _delete(self, state: File) -> None:
        with _told(f"remove {state.path}"):
            self._remove(state)

    def _write(self, state: File) -> None:
        path = Path(state.path)
        entries = self._ours.entries
        old = entries.get(state.path, _Entry()).digests[:1]
        new = (ANY,) if state.volatile else (digest(state.content),)
        if old == new == (ANY,) and _is_regular(path):  # written often, and its present content does not matter
            durable_files.write(path, state.content, state.mode)
            return
        there = self._observed(path)
        theirs = state.path not in entries and not state.volatile
        if (there is None and _exists(path)) or (theirs and there is not None and there.content != state.content):
            raise Conflict(f"{path} exists and is not linkspan's", "move it away, or give another path")
        if there == state and old == new:
            return
        made = [folder for folder in path.parents if not folder.exists()]
        for folder in made:
            entries[str(folder)] = _Entry()
        entries[state.path] = _Entry(new if old == new else new + old)
        self._ours.save()  # first: a kill in between leaves a name in the memory, never a stray file
        if not state.mode & 0o077:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # a file for root alone stays so
        path.parent.mkdir(parents=True, exist_ok=True)
        if there != state:
            durable_files.write(path, state.content, state.mode)

    def _remove(self, state: File) -> None:
        entry = self._ours.entries.get(state.path)
        if entry is None:
            return
        path = Path(state.path)
        there = _read(path)
        if there is not None and {ANY, digest(there.content)} & set(entry.digests):
            path.unlink(missing_ok=True)
        durable_files.temporary(path).unlink(missing_ok=True)
        del self._ours.entries[state.path]
        for folder in path.parents:
            if str(folder) in self._ours.entries and not self._serves(folder):
                with contextlib.suppress(OSError):  # not empty: another program uses it by now
                    folder.rmdir()
                del self._ours.entries[str(folder)]
        self._ours.save()

    def _serves(self, folder: Path) -> bool:
        """Return whether another file of ours is below the folder."""
        return any(e.digests and folder in Path(name).parents for name, e in self._ours.entries.items())


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Turn an OSError into ours; if it names another path than the file's (a folder's), name that one too."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename and str(error.filename) not in what else ""
        raise of_errno(error.errno or 0, what + where) from error


def _exists(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def _is_regular(path: Path) -> bool:
    """Return whether there is a regular file at the path (a link counts as none)."""
    return path.is_file() and not path.is_symlink()


def _read(path: Path) -> File | None:
    """Return the regular file at the path, or None if there is none (a link counts as none)."""
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode):
            return None
        return File(str(path), path.read_bytes(), stat.S_IMODE(found.st_mode))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise of_errno(error.errno or 0, f"read {path}") from error


def driver(host: LocalHost) -> FileDriver:
    """Return the driver of files."""
    return FileDriver(host.state_dir / "files.json")


def _write(state: File, _shell: Shell) -> tuple[str, ...]:
    if not state.content:
        return (f"install -D -m {state.mode:04o} /dev/null {shlex.quote(state.path)}",)
    target = f"install -D -m {state.mode:04o} /dev/stdin {shlex.quote(state.path)}"
    try:
        text = state.content.decode()
    except UnicodeDecodeError:
        text = "\0"
    if text.isascii() and text.endswith("\n") and "\0" not in text and "EOF" not in text.splitlines():
        return (f"{target} <<'EOF'\n{text}EOF",)
    return (f"echo {base64.b64encode(state.content).decode()} | base64 -d | {target}",)


KINDS = (
    Kind(
        state=File,
        rank=70,
        driver=driver,
        known_by="a record in the state folder, with what was there before",
        purpose="what a helper program reads",
        sort=Sort.FILE,
        commands=_write,
        read_by=Process,
    ),
)
