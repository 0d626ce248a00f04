"""A reader's progress: one file in the user's state folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from linkspan.core.errors import Invalid, LinkspanError, Unavailable
from linkspan.core.remedies import reason
from linkspan.kernel.io import durable_files
from linkspan.learn import foreign_file

State = Literal["new", "started", "passed"]
_LARGEST = 1_000_000
"""Bytes of the file, at most: the lessons of linkspan need a few kB."""
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_NO_LINK = os.O_NOFOLLOW | os.O_CLOEXEC
_OTHERWISE = "name a folder of yours in XDG_STATE_HOME"


class Entry(msgspec.Struct):
    """One lesson's: how often it was begun, how many hints were shown, and seconds in it until it was passed."""

    state: State = "new"
    tries: _Count = 0
    hints: Annotated[int, msgspec.Meta(ge=0, le=3)] = 0
    seconds: Annotated[float, msgspec.Meta(ge=0, le=1e12)] = 0.0
    solution_seen: bool = False


class _Document(msgspec.Struct):
    schema: Literal[1] = 1
    language: str = ""
    current: str = ""
    exam: bool = False
    lessons: dict[str, Entry] = {}


class Progress:
    """The kept progress; read and written at once each time, because the reader's windows share it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "progress.json"

    @property
    def sandbox(self) -> str:
        """Return the name of this reader's sandbox."""
        return str(self._path.parent)

    @property
    def language(self) -> str:
        """Return the language that was used last, '' before. Raises Invalid if the file cannot be read."""
        return self._read().language

    @property
    def current(self) -> str:
        """Return the name of the lesson that is open, '' if none is. Raises Invalid as above."""
        return self._read().current

    @property
    def exam(self) -> bool:
        """Return whether the open lesson is one of an exam. Raises Invalid as above."""
        return self._read().exam

    def entry(self, name: str) -> Entry:
        """Return a lesson's entry. Raises Invalid as above."""
        return self._read().lessons.get(name, Entry())

    def speak(self, language: str) -> None:
        """Keep the language."""
        with self._changed() as kept:
            kept.language = language

    def start(self, name: str) -> None:
        """Note a try of a lesson, which is open from now on."""
        with self._changed() as kept:
            entry = kept.lessons.setdefault(name, Entry())
            entry.tries += 1
            entry.state = "started" if entry.state == "new" else entry.state
            kept.current, kept.exam = name, False

    def sit(self, name: str) -> None:
        """Note that a lesson is open in an exam, which counts as no try."""
        with self._changed() as kept:
            kept.current, kept.exam = name, True

    def hint(self, name: str, number: int) -> None:
        """Note that hint ``number`` was shown."""
        with self._changed() as kept:
            entry = kept.lessons.setdefault(name, Entry())
            entry.hints = max(entry.hints, number)

    def solve(self, name: str) -> None:
        """Note that the solution was shown."""
        with self._changed() as kept:
            kept.lessons.setdefault(name, Entry()).solution_seen = True

    def spend(self, name: str, seconds: float, *, passed: bool) -> None:
        """Add time to a lesson that is not passed yet, and note if it is passed now."""
        with self._changed() as kept:
            entry = kept.lessons.setdefault(name, Entry())
            if entry.state != "passed":
                entry.seconds = round(entry.seconds + seconds, 1)
                entry.state = "passed" if passed else entry.state

    def close(self) -> None:
        """Note that no lesson is open."""
        with self._changed() as kept:
            kept.current, kept.exam = "", False

    def forget(self) -> None:
        """Remove all that is kept, also what a killed process has left of it."""
        try:
            for path in (self._path, durable_files.temporary(self._path)):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise self._unkept(error) from error

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep this reader's other processes from making and ending the sandbox. Raises Unavailable."""
        with self._locked(self._path.with_name("sandbox.lock"), os.O_RDWR | os.O_CREAT | _NO_LINK):
            yield

    def _read(self) -> _Document:
        try:
            return msgspec.json.decode(foreign_file.content(self._path, _LARGEST), type=_Document)
        except FileNotFoundError:
            return _Document()
        except (LinkspanError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            what = f"the progress in {self._path} cannot be read: {error}"
            raise Invalid(what, "remove the file, or use the version of linkspan that wrote it") from error

    @contextlib.contextmanager
    def _changed(self) -> Iterator[_Document]:
        with self._locked(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC):
            kept = self._read()
            before = msgspec.json.encode(kept)
            yield kept
            if msgspec.json.encode(kept) == before:
                return
            try:
                durable_files.write(self._path, msgspec.json.format(msgspec.json.encode(kept), indent=2))
            except OSError as error:
                raise self._unkept(error) from error

    @contextlib.contextmanager
    def _locked(self, path: Path, flags: int) -> Iterator[None]:
        """Hold the only lock on a file or folder; a process that is killed gives it up. Raises Unavailable."""
        with contextlib.ExitStack() as stack:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                fd = os.open(path, flags, 0o600)
                stack.callback(os.close, fd)
                fcntl.flock(fd, fcntl.LOCK_EX)
            except OSError as error:
                raise self._unkept(error) from error
            yield

    def _unkept(self, error: OSError) -> Unavailable:
        return Unavailable(f"progress cannot be kept in {self._path.parent}: {reason(error)}", _OTHERWISE)


def folder() -> Path:
    """Return the folder for this user's progress (XDG Base Directory Specification: state).

    Raises Unavailable if this user has no home.
    """
    if not (base := os.environ.get("XDG_STATE_HOME", "")):
        try:
            base = str(Path.home() / ".local" / "state")
        except RuntimeError as error:
            what = "progress cannot be kept: this user has no home folder (HOME is not set, and /etc/passwd names none)"
            raise Unavailable(what, _OTHERWISE) from error
    return Path(base, "linkspan", "learn")
