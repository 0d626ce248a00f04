"""Read-only files and hidden homes for the commands of others: a user namespace around a sandbox's own.

The sandbox is root of its own mount namespace, and could undo what was done there. What the namespace around it has
made read-only is locked for it (mount_namespaces(7)).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

HIDDEN = ("/tmp", "/var/tmp", "/home", "/root", "/mnt", "/media", "/srv", "/dev/shm")  # noqa: S108 - to hide them
"""Folders that are empty inside, besides the user's home: files of people, and sockets of their programs."""
WRITABLE = ("/proc", "/sys")
"""File systems whose settings a lesson changes: those of the network belong to the sandbox's namespace."""
_NEW_USER, _NEW_MOUNTS = 0x10000000, 0x00020000
_MOUNT_SETATTR = 442
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_RDONLY = 1
_NOSUID_NODEV = 6

_libc = ctypes.CDLL(None, use_errno=True)


class _Attributes(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def enter() -> None:
    """Shut this process in, before it becomes another program. Raises OSError."""
    user, group, home = os.geteuid(), os.getegid(), os.environ.get("HOME", "/")
    _checked(_libc.unshare(_NEW_USER | _NEW_MOUNTS), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    os.chdir("/")
    _set("/", recursive=True, set_=_RDONLY)
    for path in WRITABLE:
        with contextlib.suppress(OSError):  # a container's own /proc may be locked as read-only
            _set(path, clear=_RDONLY)
    for path in sorted({*HIDDEN, *([home] if home.strip("/") else [])}):
        if Path(path).is_dir():
            options = b"size=64m,mode=1777"
            _checked(_libc.mount(b"tmpfs", path.encode(), b"tmpfs", _NOSUID_NODEV, options), f"hide {path}")


def _set(path: str, *, recursive: bool = False, set_: int = 0, clear: int = 0) -> None:
    attributes = _Attributes(set_, clear, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    result = _libc.syscall(
        ctypes.c_long(_MOUNT_SETATTR),
        ctypes.c_int(_AT_FDCWD),
        ctypes.c_char_p(path.encode()),
        ctypes.c_uint(flags),
        ctypes.byref(attributes),
        ctypes.c_size_t(ctypes.sizeof(attributes)),
    )
    _checked(result, f"mount_setattr {path}")


def _checked(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
