"""Files that others may have made: read as far as a file of that kind can be long, and never waited for."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from linkspan.core.errors import Invalid, Unavailable
from linkspan.core.remedies import reason


def content(path: Path, largest: int) -> bytes:
    """Return a file's content.

    Raises FileNotFoundError, Invalid if it is no regular file or has more than ``largest`` bytes, and Unavailable if it
    cannot be read.
    """
    try:
        with open(path, "rb", opener=_open) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Invalid(f"{path} is no regular file")
            found = file.read(largest + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unavailable(f"{path} cannot be read: {reason(error)}") from error
    if len(found) > largest:
        raise Invalid(f"{path} has more than {_size(largest)}")
    return found


def _open(path: str, flags: int) -> int:
    """Open without waiting: perhaps nobody ever writes to a FIFO, and a terminal is not to become this process's."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)


def _size(number: int) -> str:
    return f"{number // 1_000_000} MB" if number >= 1_000_000 else f"{number // 1000} kB"
