"""A small world for tests: a host, its containers and an outside, each a network namespace of its own."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

from linkspan.lab.sockets import HEADERS, family, ping
from support.polling import until

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _setns(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


class World:
    """Namespaces by short names; their real names are unique, and all go when the world closes."""

    def __init__(self, *names: str, tag: str = "lkr") -> None:
        self._tag = f"{tag}{uuid.uuid4().hex[:6]}"
        self._names: list[str] = []
        for name in names:
            self.add(name)

    def add(self, name: str) -> None:
        """Make one namespace more."""
        subprocess.run(["ip", "netns", "add", self.named(name)], check=True)
        self._names.append(name)

    def close(self) -> None:
        """Remove them all."""
        for name in self._names:
            subprocess.run(["ip", "netns", "del", self.named(name)], check=False)

    def named(self, name: str) -> str:
        """Return the real name."""
        return f"{self._tag}{name}"

    def path(self, name: str) -> str:
        """Return the path that leads to it."""
        return f"/run/netns/{self.named(name)}"

    def inode(self, name: str) -> int:
        """Return the number by which linkspan knows it."""
        return Path(self.path(name)).stat().st_ino

    def by_inode(self, number: int) -> str:
        """Return the path to a namespace by its number."""
        return next(self.path(n) for n in self._names if self.inode(n) == number)

    def sh(self, name: str, script: str) -> str:
        """Run shell commands inside, stopping at the first that fails; return what they print."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.named(name), "sh", "-e"],
            input=script, text=True, capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        return done.stdout

    def pings(self, name: str, address: str, size: int = 56) -> bool:
        """Return whether a ping with so many bytes, in packets not to be fragmented, is answered within a second."""
        return ping(self.named(name), address, size + HEADERS[family(address)], 1.0) == ""

    def reaches(self, name: str, address: str, seconds: float = 5.0, size: int = 56) -> bool:
        """Return whether a ping is answered before long: the kernel's own fe80:: addresses are tentative at first."""
        with contextlib.suppress(AssertionError):
            until(lambda: self.pings(name, address, size), f"{address} answers", seconds)
            return True
        return False

    @contextlib.contextmanager
    def entered(self, name: str) -> Iterator[None]:
        """Put this thread into the namespace for a while."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(self.path(name), os.O_RDONLY)
        try:
            _setns(there)
            yield
        finally:
            _setns(home)
            os.close(there)
            os.close(home)
