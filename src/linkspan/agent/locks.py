"""Locks against a second agent: on the state folder, and on the network namespace.

Each of two agents in one namespace would remove what the other made.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from linkspan.core.errors import Conflict, Invalid
from linkspan.core.remedies import reason, remedy

NAMESPACE_LOCK = "\0linkspan-agent"
"""An abstract unix socket (unix(7)): its name is the network namespace's, and goes with the process."""


@contextlib.contextmanager
def state_folder(folder: Path, what: str = "agent") -> Iterator[None]:
    """Lock the state folder. Raises Conflict with the holder, or Invalid if the folder cannot be used."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(f"state folder {folder}", folder, error) from error
    lock = folder / "lock"
    try:
        # Not Python's text file, which would write the pid a second time after the disk was full.
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unusable(f"state folder {folder}: its file {lock.name}", lock, error) from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(fd, 20, 0).strip()
            who = f"the {what} with pid {pid.decode() if pid.isdigit() else '?'}"
            raise Conflict(f"state folder {folder} is in use by {who}", "stop that one first") from None
        except OSError as error:
            raise _unusable(f"state folder {folder}: its file {lock.name} cannot be locked", lock, error) from error
        # the disk is full: the pid is only for people, and the lock works without it
        with contextlib.suppress(OSError):
            os.truncate(fd, 0)
            os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        yield
    finally:
        os.close(fd)


def _unusable(what: str, path: Path, error: OSError) -> Invalid:
    return Invalid(f"{what}: {reason(error)}", remedy(error, path, "give --state-dir another folder"))


@contextlib.contextmanager
def network_namespace() -> Iterator[None]:
    """Lock the network namespace. Raises Conflict with the agent that has it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as lock:
        try:
            lock.bind(NAMESPACE_LOCK)
        except OSError:
            pid = listener(NAMESPACE_LOCK)
            raise Conflict(
                f"an agent runs in this network namespace already{f', with pid {pid}' if pid else ''}",
                "one agent serves a host, for all of its networks: stop that one first",
            ) from None
        lock.listen(1)
        yield


def listener(address: str) -> int | None:
    """Return the pid that serves a unix socket: 0 if it cannot be asked, None if nobody serves it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.setblocking(False)
        try:
            asking.connect(address)
        except BlockingIOError:  # the backlog is full: many wait for it already
            return 0
        except OSError:
            return None
        pid, _, _ = struct.unpack("3i", asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return int(pid)
