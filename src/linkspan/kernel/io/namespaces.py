"""Network namespaces: identified by inode, entered by the worker thread for the duration of a batch.

A namespace is never held open between calls: that would keep a dead container's links alive. The agent keeps
the path by which it reached the namespace, and a path counts only while it leads to the same inode. The
kernel reuses an inode's number at once for another container's namespace, so the cookie is compared as well,
which is never used twice. A namespace with the inode and another cookie is a different one: the original is
gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from linkspan.core.errors import Invalid, NotFound, of_errno
from linkspan.core.states.host import HOST

CLONE_NEWNET = 0x40000000
NS_GET_NSTYPE = 0xB703  # linux/nsfs.h
SO_NETNS_COOKIE = 71  # asm-generic/socket.h, since Linux 5.14

NOBODY = -1
"""A cookie of no namespace."""

_libc = ctypes.CDLL(None, use_errno=True)


def _setns(fd: int, what: str) -> None:
    if _libc.setns(fd, CLONE_NEWNET):
        raise of_errno(ctypes.get_errno(), f"enter network namespace {what}")


def open_namespace(path: str) -> int:
    """Open a path as a network namespace and return the descriptor; the caller closes it.

    Raises NotFound if nothing is there, Invalid if it is no network namespace.
    """
    try:
        # A caller names the path: a FIFO would block until somebody writes.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        of_process = path.startswith("/proc/")
        fix = "does the process run?" if of_process else "is the container running? `ip netns` lists named ones"
        raise NotFound(f"network namespace {path}: {error.strerror}", fix) from error
    try:
        is_net = fcntl.ioctl(fd, NS_GET_NSTYPE) == CLONE_NEWNET
    except OSError:
        is_net = False
    if not is_net:
        os.close(fd)
        raise Invalid(f"{path} is not a network namespace", "give /run/netns/NAME or /proc/PID/ns/net")
    return fd


def inode(fd: int) -> int:
    """Return the inode that identifies an open namespace."""
    return os.fstat(fd).st_ino


class Way(NamedTuple):
    """The path of a namespace, and its cookie: 0 if any namespace with the inode may be meant."""

    path: str = ""
    cookie: int = 0


class Namespaces:
    """The namespaces in which linkspan has endpoints, and a path of each.

    Any thread may use it at any time: the worker's, the loop's, and those of a trace or a doctor. So path and cookie
    are stored and forgotten together. A thread that read one without the other could enter another container's
    namespace.
    """

    def __init__(self) -> None:
        self._home = open_namespace("/proc/self/ns/net")
        self.home = inode(self._home)
        self._known: dict[int, Way] = {}
        """By inode. A way is replaced as a whole."""
        self._held: dict[int, list[tuple[int, int]]] = {}
        """By inode: descriptors, each with the namespace's cookie, or 0 if it was not asked for."""
        self._changing = threading.Lock()
        """Held from reading ``_known`` or ``_held`` to changing it."""

    def close(self) -> None:
        """Close the descriptor of the own namespace."""
        os.close(self._home)

    @contextlib.contextmanager
    def holding(self, fd: int, cookie: int = 0) -> Iterator[int]:
        """Yield the inode of an open namespace, which is entered by this descriptor meanwhile.

        A runtime's path may lead nowhere in our mount namespace, and no process may live in the namespace
        yet. Several callers may hold one namespace at a time, from both threads. Pass its cookie if it is
        known: to ask takes 50 µs (measured).
        """
        number, held = inode(fd), (fd, cookie)
        with self._changing:
            self._held.setdefault(number, []).append(held)
        try:
            yield number
        finally:
            with self._changing:
                self._held[number].remove(held)
                if not self._held[number]:
                    del self._held[number]

    def register(self, number: int, path: str, cookie: int = 0) -> None:
        """Remember the path of the namespace with this inode, and its cookie."""
        with self._changing:
            self._known[number] = Way(path, cookie)

    def forget(self, number: int) -> None:
        """Drop what is known of the namespace."""
        with self._changing:
            self._known.pop(number, None)

    def renew(self, number: int, cookie: int) -> None:
        """Drop what is known of a namespace that is gone: the one with this cookie has its inode now."""
        with self._changing:
            if number in self._known and self._known[number].cookie != cookie:
                del self._known[number]

    @functools.cached_property
    def tells_apart(self) -> bool:
        """Return whether this kernel has namespace cookies; otherwise an inode is all that there is."""
        return bool(_cookie())

    def cookie(self, fd: int) -> int:
        """Return the number that an open namespace has and no other ever gets; 0 from a kernel without it."""
        _setns(fd, "to read its cookie")
        try:
            return _cookie()
        finally:
            _setns(self._home, "of the host")

    def path(self, number: int) -> str:
        """Return the remembered path, or '' if there is none."""
        return self._way(number).path

    def _way(self, number: int) -> Way:
        return self._known.get(number, Way())

    def open(self, number: int) -> int:
        """Open the namespace with this inode; the caller closes it. Raises NotFound if it is gone.

        If its path leads elsewhere now (a runtime removed the name, a process ended), search the mounts for
        one of it, and the processes for one that lives in it.
        """
        if number == HOST:
            return os.dup(self._home)
        path, cookie = self._way(number)
        with self._changing:
            if number in self._held:
                fd, found = self._held[number][-1]
                if not cookie or cookie == (found or self.cookie(fd)):
                    return os.dup(fd)
                raise _gone(number)  # the held one has its inode now
        return self.lookup(number, path, cookie)[0]

    def lookup(self, number: int, path: str = "", cookie: int = 0) -> tuple[int, str]:
        """Open the namespace with this inode and cookie (0: any), last known at this path.

        Returns a descriptor, which the caller closes, and the path by which it was opened. Raises NotFound if
        it is gone.
        """
        for found in self._ways(number, path, cookie):
            return found
        raise _gone(number)

    def ways(self, number: int) -> Iterator[str]:
        """Yield the present paths of the namespace with this inode, those with a name first."""
        for fd, path in self._ways(number, *self._way(number)):
            os.close(fd)
            yield path

    def _ways(self, number: int, known: str, cookie: int) -> Iterator[tuple[int, str]]:
        for path in _candidates(number, known):
            try:
                fd = open_namespace(path)
            except (NotFound, Invalid):
                continue
            if inode(fd) == number and (not cookie or self.cookie(fd) == cookie):
                yield fd, path
            else:
                os.close(fd)

    @contextlib.contextmanager
    def entered(self, number: int) -> Iterator[None]:
        """Move the calling thread into the namespace, and back afterwards; it is in HOST already."""
        if number == HOST:
            yield
            return
        fd = self.open(number)
        try:
            _setns(fd, self.path(number) or str(number))
            try:
                yield
            finally:
                _setns(self._home, "of the host")
        finally:
            os.close(fd)


def _gone(number: int) -> NotFound:
    return NotFound(f"network namespace {number} is gone", "`linkspan address check --fix` releases its addresses")


def _cookie() -> int:
    """Return the cookie of the calling thread's namespace; 0 from a kernel without it."""
    try:
        with socket.socket(socket.AF_UNIX) as inside:
            return int.from_bytes(inside.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), sys.byteorder)
    except OSError:
        return 0


def _candidates(number: int, known: str) -> Iterator[str]:
    if known:
        yield known
    link = f"net:[{number}]"
    with contextlib.suppress(OSError):
        yield from _mounted(Path("/proc/self/mountinfo").read_text(errors="surrogateescape"), link)
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                if (process / "ns/net").readlink().name == link:
                    yield f"{process}/ns/net"


def _mounted(mounts: str, link: str) -> Iterator[str]:
    """Yield where a namespace is mounted, as `ip netns` and runtimes do, from the text of mountinfo (proc(5))."""
    for line in mounts.splitlines():
        words = line.split()
        if len(words) > 4 and words[3] == link:
            yield re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), words[4])
