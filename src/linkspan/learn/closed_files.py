"""Read-only files, hidden sockets and homes for the commands of others: a user namespace around a sandbox's own.

The sandbox is root of its own mount namespace, and could undo what was done there. What the namespace around it has
mounted or made read-only is locked for it (mount_namespaces(7)). A read-only socket or device is as open as before, and
this user's id and groups stay: so what the commands may not reach is covered, and only a few folders are not.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

SHOWN = frozenset({"bin", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "sbin", "sys", "usr"})
"""Folders of / that are not empty inside: programs, their settings, the kernel, and a new /dev."""
BELOW = ("/usr/local/var",)
"""Folders below these that are empty, too: services that were built here have their sockets there."""
DEVICES = ("full", "null", "random", "tty", "urandom", "zero", "net/tun")
"""Devices that are there: no terminal, camera or disk of this user."""
FOLDERS = ("/var/lib/misc", "/var/log", "/var/tmp", "/dev/pts", "/dev/shm")  # noqa: S108 - to make them
LINKS = {
    "/var/run": "/run",
    "/var/lock": "/run/lock",
    "/dev/fd": "/proc/self/fd",
    "/dev/stdin": "fd/0",
    "/dev/stdout": "fd/1",
    "/dev/stderr": "fd/2",
    "/dev/ptmx": "pts/ptmx",
}
"""What programs expect in the new, empty folders."""
WRITABLE = ("/proc", "/sys")
"""File systems whose settings a lesson changes: those of the network belong to the sandbox's namespace."""
PROCESSES = 400
"""Processes and threads of a closed sandbox, at most; this user's others do not count (Linux 5.14)."""
OWN_PROC = 'mount -t proc proc /proc && "$@" && exec </dev/null >/dev/null 2>&1 && while :; do sleep 1000; done'
"""Script of the first process of the PID namespace: /proc has the processes of that one only, and is locked, too.

It stays in this user namespace, and reaps orphans. What runs in the sandbox may change what is in its own user
namespace, and stop or change the checks from there. So nothing of that one is in this PID namespace.
"""
_NEW_USER, _NEW_MOUNTS = 0x10000000, 0x00020000
_BIND, _RECURSIVE, _PRIVATE = 0x1000, 0x4000, 0x40000
_MOUNT_SETATTR = 442
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_RDONLY = 1
_PR_SET_PDEATHSIG = 1
_NOSUID, _NODEV = 2, 4

_libc = ctypes.CDLL(None, use_errno=True)


class _Attributes(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def enter() -> None:
    """Shut this process in, before it becomes another program. Raises OSError.

    What it mounts is locked in a second user namespace, in which it stays: a check beside the sandbox runs there. It
    ends with its maker: the sandbox's own programs may be stopped by what runs there.
    """
    home = os.environ.get("HOME", "/")
    _into_user_namespace()
    os.chdir("/")
    _checked(_libc.mount(b"none", b"/", b"", _RECURSIVE | _PRIVATE, b""), "mount --make-rprivate /")
    _set("/", recursive=True, set_=_RDONLY)
    for path in WRITABLE:
        with contextlib.suppress(OSError):  # a container's own /proc may be locked as read-only
            _set(path, clear=_RDONLY)
    devices = {name: os.open(f"/dev/{name}", os.O_PATH) for name in DEVICES if Path("/dev", name).exists()}
    for path in sorted({*_hidden(), *BELOW, *([home] if home.strip("/") else [])}):
        if Path(path).is_dir():
            _mount("tmpfs", path, "tmpfs", b"size=64m,mode=1777")
    _mount("tmpfs", "/dev", "tmpfs", b"size=1m,mode=0755")  # in a sticky folder of all, > /dev/null is forbidden
    for path in FOLDERS:
        Path(path).mkdir(parents=True)
    for path, target in LINKS.items():
        Path(path).symlink_to(target)
    for name, device in devices.items():
        Path("/dev", name).parent.mkdir(exist_ok=True)
        Path("/dev", name).touch()
        _mount(f"/proc/self/fd/{device}", f"/dev/{name}", flags=_BIND)
        os.close(device)
    _mount("devpts", "/dev/pts", "devpts", b"newinstance,ptmxmode=0666,mode=0620", _NOSUID)
    _into_user_namespace()
    _, given = resource.getrlimit(resource.RLIMIT_NPROC)
    most = PROCESSES if given == resource.RLIM_INFINITY else min(PROCESSES, given)
    resource.setrlimit(resource.RLIMIT_NPROC, (most, most))  # the next user namespace's, whoever enters that one
    _checked(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL), "prctl")


def _into_user_namespace() -> None:
    """Become root of a new user namespace, with mounts of its own: those that are there are locked."""
    user, group = os.geteuid(), os.getegid()
    _checked(_libc.unshare(_NEW_USER | _NEW_MOUNTS), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")


def _hidden() -> Iterator[str]:
    """Yield the folders of / that are empty inside."""
    with os.scandir("/") as folders:
        for one in folders:
            if one.is_dir(follow_symlinks=False) and one.name not in SHOWN:
                yield one.path


def _mount(source: str, path: str, kind: str = "", options: bytes = b"", flags: int = _NOSUID | _NODEV) -> None:
    result = _libc.mount(source.encode(), path.encode(), kind.encode(), flags, options)
    _checked(result, f"mount {path}")


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
