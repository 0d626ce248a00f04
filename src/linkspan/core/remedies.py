"""Fixes for files and folders that cannot be used, by the kernel's reason."""

from __future__ import annotations

import errno
import os
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT)
_IN_ITS_PLACE = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM)


def reason(error: OSError) -> str:
    """Return the kernel's reason in lower case."""
    return (error.strerror or str(error)).lower()


def remedy(error: OSError, path: Path, otherwise: str) -> str:
    """Return what to do about an error at a path; ``otherwise`` is the fallback."""
    if error.errno == errno.EROFS:
        how = f"mount -o remount,rw {_mount(path)}"
        return f"mount its disk for writing ({how}); dmesg shows whether the kernel made it read-only"
    if error.errno in _FULL:
        return f"free some space on the disk at {_mount(path)}"
    if error.errno in _IN_ITS_PLACE and (wrong := _in_place(path)):
        return f"move away what is in its place (mv {wrong} {wrong}.bad)"
    if error.errno in _NOT_ALLOWED and os.geteuid():
        return "run as root"
    return otherwise


def _mount(path: Path) -> Path:
    """Return the mount point of the disk on which a path is, or would be."""
    return next((one for one in (path, *path.parents) if os.path.ismount(one)), Path("/"))


def _in_place(path: Path) -> Path | None:
    """Return the part of a path that has the wrong type: a file instead of a folder, or the path itself."""
    for one in reversed(path.parents):
        if os.path.lexists(one) and not one.is_dir():
            return one
    return path if os.path.lexists(path) else None
