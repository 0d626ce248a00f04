"""Watching a folder by inotify(7): a file that was moved in or closed after writing makes a descriptor readable."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

from linkspan.errors import of_errno

_IN_CLOSE_WRITE, _IN_MOVED_TO = 0x8, 0x80  # linux/inotify.h
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
