"""What keeps a second agent away: from the state folder, and from the network namespace.

Two agents in one namespace would each take away what the other made.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from linkspan.errors import Conflict, Invalid

NAMESPACE_LOCK = "\0linkspan-agent"
"""An abstract unix socket (unix(7)): its name is the network namespace's, and goes with the process."""


@contextlib.contextmanager
def state_folder(folder: Path, what: str = "agent") -> Iterator[None]:
    """Hold the state folder. Raises Conflict, naming the holder, or Invalid where the folder cannot be made."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = (folder / "lock").open("a+", encoding="ascii")
    except OSError as error:
        raise Invalid(
            f"state folder {folder}: {(error.strerror or '').lower()}", "run as root, or give --state-dir"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise Conflict(
                f"state folder {folder} is in use by the {what} with pid {file.read().strip() or '?'}",
                "stop that one first",
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


@contextlib.contextmanager
def network_namespace() -> Iterator[None]:
    """Hold the network namespace. Raises Conflict, naming the agent that has it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as lock:
        try:
            lock.bind(NAMESPACE_LOCK)
        except OSError:
            raise Conflict(
                f"this network namespace has an agent already{_holder()}",
                "one agent serves a host, for all of its networks: stop that one first",
            ) from None
        lock.listen(1)
        yield


def _holder() -> str:
    """Return the words for the process that has the lock, '' where it cannot be asked."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking, contextlib.suppress(OSError):
        asking.settimeout(1)
        asking.connect(NAMESPACE_LOCK)
        pid, _, _ = struct.unpack("3i", asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return f", with pid {pid}"
    return ""
