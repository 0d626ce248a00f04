"""Watching by inotify(7): a folder, for files that were moved in or closed after writing; and files, for writes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterable
from pathlib import Path

from linkspan.errors import of_errno

_IN_CLOSE_WRITE, _IN_MOVED_TO = 0x8, 0x80  # linux/inotify.h
_EVENT = struct.Struct("=iIII")
_libc = ctypes.CDLL(None, use_errno=True)


class FolderWatch:
    """One folder's inotify descriptor."""

    def __init__(self, folder: Path) -> None:
        """Watch the folder. Raises KernelError."""
        self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if (
            self._fd < 0
            or _libc.inotify_add_watch(self._fd, os.fsencode(folder), _IN_CLOSE_WRITE | _IN_MOVED_TO) < 0
        ):
            raise of_errno(ctypes.get_errno(), f"watch folder {folder}")

    def fileno(self) -> int:
        """Return the descriptor, for a loop to watch."""
        return int(self._fd)

    def drain(self) -> None:
        """Read what has come, so that the descriptor is quiet again."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 1 << 16)

    def close(self) -> None:
        """Stop watching."""
        os.close(self._fd)


class WriteWatch:
    """Files of which each writer's end is told, also where it changed nothing, as of settings in /proc/sys.

    Not the write itself: most writers empty a file first, which is told as a write, and has no effect on a setting.

    A setting's file is another one in each network namespace: this watches those of the thread that makes it. A write
    by another mount of /proc (a process namespace of its own) is not told. A user has 128 such watches: where there is
    none left, ``problem`` says so, and nothing is told.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        """Watch the files that are there."""
        self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self.problem = os.strerror(ctypes.get_errno()).lower() if self._fd < 0 else ""
        self._names: dict[int, str] = {}
        self._open: list[int] = []
        if self.problem:
            return
        for file in files:
            with contextlib.suppress(OSError):  # no IPv6 in this kernel
                # Kept open: of a file that nobody has open the kernel may forget which one it was.
                self._open.append(os.open(file, os.O_RDONLY | os.O_CLOEXEC))
                self._names[_libc.inotify_add_watch(self._fd, os.fsencode(file), _IN_CLOSE_WRITE)] = str(file)

    def fileno(self) -> int:
        """Return the descriptor, for a loop to watch; -1 where nothing is told."""
        return int(self._fd)

    def written(self) -> set[str]:
        """Return the files that were written to since the last time."""
        found = set()
        with contextlib.suppress(BlockingIOError):
            while not self.problem:
                told = os.read(self._fd, 1 << 12)
                at = 0
                while at < len(told):
                    watch, _, _, length = _EVENT.unpack_from(told, at)
                    at += _EVENT.size + length
                    found |= {self._names[watch]} if watch in self._names else set()
        return found

    def close(self) -> None:
        """Stop watching; the second time there is nothing to do."""
        for fd in self._open if self._fd < 0 else (*self._open, self._fd):
            os.close(fd)
        self._open, self._fd = [], -1
