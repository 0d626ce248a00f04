"""Open settings: files below /proc/sys that stay open. To read one again takes a sixth of opening it each time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

_ABSENT = -1


class OpenSettings:
    """Reads the same settings of one network namespace again and again, in that namespace."""

    def __init__(self, root: Path, longest: int) -> None:
        """``root`` is the folder of the settings, and ``longest`` the most bytes of a value."""
        self._root = str(root)
        self._longest = longest
        self._paths: tuple[str, ...] = ()
        self._fds: list[int] = []

    def texts(self, paths: Sequence[str]) -> list[bytes]:
        """Return the text of each of these different settings, b"" for one that does not exist.

        Raises OSError, and leaves none open then: there may be too many open files.
        """
        wanted = tuple(paths)
        if wanted != self._paths:
            there = dict(zip(self._paths, self._fds, strict=True))
            for path in there.keys() - set(wanted):
                _close(there[path])
            self._paths, self._fds = wanted, [there.get(path, _ABSENT) for path in wanted]
        try:
            return [os.pread(fd, self._longest, 0) for fd in self._fds]
        except OSError:  # a link went, or was renamed: a new one may have its name
            pass
        try:
            return [self._text(number) for number in range(len(wanted))]
        except OSError:
            self.close()
            raise

    def _text(self, number: int) -> bytes:
        if (fd := self._fds[number]) != _ABSENT:
            with contextlib.suppress(FileNotFoundError):
                return os.pread(fd, self._longest, 0)
            self._fds[number] = _ABSENT
            _close(fd)
        fd = self._fds[number] = self._opened(self._paths[number])
        return b"" if fd == _ABSENT else os.pread(fd, self._longest, 0)

    def _opened(self, path: str) -> int:
        try:
            return os.open(f"{self._root}/{path}", os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return _ABSENT

    def close(self) -> None:
        """Close all files; they are opened again when they are read."""
        for fd in self._fds:
            _close(fd)
        self._paths, self._fds = (), []


def _close(fd: int) -> None:
    if fd != _ABSENT:
        os.close(fd)
