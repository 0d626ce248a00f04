"""Exchange of two files or folders in one step (renameat2(2)): at no moment is one of the two names free."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from linkspan.core.errors import of_errno

_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100
_EXCHANGE = 2
"""RENAME_EXCHANGE (linux/fs.h)."""


def exchange(one: Path, other: Path) -> None:
    """Give each of two the other's name; links are not followed. Raises LinkspanError; both must be on one disk."""
    if _libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE):
        raise of_errno(ctypes.get_errno(), f"exchange {one} and {other}")
    for folder in {one.parent, other.parent}:
        sync(folder)


def sync(folder: Path) -> None:
    """Bring the names in a folder to the disk. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
