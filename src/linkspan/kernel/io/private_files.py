"""Private files: files and folders that only root may read, or only root may change. All others are refused."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from linkspan.core.errors import Denied, KernelError, of_errno

LARGEST = 1 << 20
"""Largest file that is read, in bytes."""


def alone(source: str) -> bytes:
    """Return the content of a secret's file. Raises Denied with its name if others may read it, or if it is missing."""
    hint = f"chown root: {source}; chmod 600 {source}"
    denied = Denied(f"{source} must belong to root, and nobody else may read it", hint)
    content = _read(source, f"read the secret in {source}", os.O_NOFOLLOW, 0o077, denied)
    return content[: 1 << 14].removesuffix(b"\n")


def trusted(source: str, what: str) -> bytes:
    """Return the content of a file of trusted keys. Raises Denied with its name if others may write it."""
    denied = Denied(
        f"{source} ({what}) can be changed by others than root, and says whom this host trusts",
        f"chown root {source}; chmod go-w {source}",
    )
    return _read(source, f"read {source} ({what})", 0, 0o022, denied)


def _read(source: str, doing: str, flags: int, others: int, denied: Denied) -> bytes:
    """Return a file's content. Raises ``denied`` if it is not root's, or has one of these modes for others."""
    try:
        fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | flags)
        with os.fdopen(fd, "rb") as file:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & others:
                raise denied
            return file.read(LARGEST)
    except FileNotFoundError as error:
        raise KernelError(f"{doing}: no such file", errno.ENOENT, "write it, or set another") from error
    except OSError as error:
        raise of_errno(error.errno or 0, doing) from error


def apart(folder: Path) -> None:
    """Reserve a folder for root, also if it exists. Raises LinkspanError with its name."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            found = os.fstat(fd)
            if found.st_uid != os.geteuid():
                os.fchown(fd, os.geteuid(), os.getegid())
            if stat.S_IMODE(found.st_mode) != 0o700:
                os.fchmod(fd, 0o700)
        finally:
            os.close(fd)
    except OSError as error:
        raise of_errno(error.errno or 0, f"reserve {folder} for root") from error
