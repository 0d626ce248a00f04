"""What to do about a file or a folder that cannot be used: by the kernel's reason, in words that can be followed."""

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
    """Return what to do about an error at a path; ``otherwise`` is for what has no better remedy."""
    if error.errno == errno.EROFS:
        return f"mount its disk for writing (mount -o remount,rw {_mount(path)}); dmesg tells where the kernel did that"
    if error.errno in _FULL:
        return f"free some space on the disk at {_mount(path)}"
    if error.errno in _IN_ITS_PLACE and (wrong := _in_place(path)):
        return f"move away what is in its place (mv {wrong} {wrong}.bad)"
    if error.errno in _NOT_ALLOWED and os.geteuid():
        return "run as root"
    return otherwise


def _mount(path: Path) -> Path:
    """Return where the disk is mounted that a path is on, or would be."""
    return next((one for one in (path, *path.parents) if os.path.ismount(one)), Path("/"))


def _in_place(path: Path) -> Path | None:
    """Return what is not what it should be on the way to a path: a file instead of a folder, or the path itself."""
    for one in reversed(path.parents):
        if os.path.lexists(one) and not one.is_dir():
            return one
    return path if os.path.lexists(path) else None
