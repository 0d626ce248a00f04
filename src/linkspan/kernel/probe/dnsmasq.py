"""dnsmasq on this machine: its path and user, and whether a running server still answers."""

from __future__ import annotations

import contextlib
import errno
import functools
import pwd
import shutil
import socket
import stat
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

from linkspan.core.states.programs import Dnsmasq, Zones
from linkspan.kernel.io import process_stat

USER = "dnsmasq"
"""Debian's package makes this user for it."""
_MAPPED = bytes(10) + b"\xff\xff"
"""RFC 4291 section 2.5.5.2: before an IPv4 address that is written as one of IPv6."""
_QUESTION = struct.pack("!5H", 0x0100, 1, 0, 0, 0) + b"\7version\4bind\0" + struct.pack("!2H", 16, 3)
"""Query TXT version.bind of class CHAOS: dnsmasq answers it with any data, and without asking another server."""


@functools.cache
def uid() -> int:
    """Return the user's number, -1 if there is no such user."""
    try:
        return pwd.getpwnam(USER).pw_uid
    except KeyError:
        return -1


def found(folder: Path) -> Dnsmasq | None:
    """Return how to start it with files in this folder, None if it is not installed.

    It switches to its own user if that user may read the folder, and if there are users: a namespace may have
    only root.
    """
    program = shutil.which("dnsmasq")
    if program is None:
        return None
    own = uid() >= 0 and _mapped(uid()) and all(map(_passes, (folder, *folder.parents)))
    return Dnsmasq(program, USER if own else "root", str(folder))


def can_listen(address: str) -> bool:
    """Return whether this host (the calling thread's namespace) has an address, so that a server can start there."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError as error:  # another error, for example of a link-local address, is the server's own to tell
        return error.errno != errno.EADDRNOTAVAIL
    return True


def _passes(folder: Path) -> bool:
    """Return whether others may enter a folder; a folder that does not exist yet will allow it."""
    with contextlib.suppress(OSError):
        return bool(folder.stat().st_mode & stat.S_IXOTH)
    return True


def _mapped(number: int) -> bool:
    """Return whether this user namespace has the user (user_namespaces(7))."""
    lines = Path("/proc/self/uid_map").read_text(encoding="ascii").splitlines()
    ranges = (tuple(map(int, line.split())) for line in lines)
    return any(first <= number < first + count for first, _, count in ranges)


def upstream(text: str, without: Iterable[str]) -> tuple[str, ...]:
    """Return the resolvers of a resolv.conf, in order, without these addresses (ours: a query would loop)."""
    words = (line.split() for line in text.splitlines())
    named = (_address(line[1]) for line in words if len(line) > 1 and line[0] == "nameserver")
    return tuple(dict.fromkeys(one for one in named if one and one not in set(without)))


def _address(text: str) -> str:
    """Return an address in our notation, however it was written; '' if it is none."""
    address, mark, zone = text.lower().partition("%")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        packed = socket.inet_pton(family, address)
    except OSError:
        return ""
    if packed.startswith(_MAPPED):
        family, packed = socket.AF_INET, packed.removeprefix(_MAPPED)
    found = socket.inet_ntop(family, packed)
    return f"{found}{mark}{zone}" if zone.isalnum() or not mark else ""


class Pulse:
    """Asks all servers whether they live, by one packet each, and never waits for an answer."""

    def __init__(self) -> None:
        self._ways = {f: self._open(f) for f in (socket.AF_INET, socket.AF_INET6)}
        self._asked: dict[Zones, tuple[str, int, int]] = {}
        self._number = 0
        self.missed: dict[Zones, int] = {}
        """By networks: how many queries in a row their server has not answered."""

    @staticmethod
    def _open(family: socket.AddressFamily) -> socket.socket | None:
        try:
            way = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        except OSError:  # no IPv6 here
            return None
        way.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        return way

    def close(self) -> None:
        """Close the sockets."""
        for way in filter(None, self._ways.values()):
            way.close()

    def forget(self, server: Zones) -> None:
        """Start again with a server that was replaced."""
        self._asked.pop(server, None)
        self.missed.pop(server, None)

    def beat(self, servers: Mapping[Zones, tuple[str, int]]) -> None:
        """Collect the last answers, and ask again: each server's address and port by its networks."""
        heard = self._heard()
        for name, asked in self._asked.items():
            self.missed[name] = 0 if asked in heard else self.missed.get(name, 0) + 1
        self.missed = {name: count for name, count in self.missed.items() if name in servers}
        self._asked = {}
        self._number = (self._number + 1) & 0xFFFF
        for name, place in servers.items():
            way = self._ways[socket.AF_INET6 if ":" in place[0] else socket.AF_INET]
            with contextlib.suppress(OSError):  # the address was removed with the last container
                if way is not None and way.sendto(struct.pack("!H", self._number) + _QUESTION, place):
                    self._asked[name] = (*place, self._number)

    def _heard(self) -> set[tuple[str, int, int]]:
        heard = set()
        for way in filter(None, self._ways.values()):
            with contextlib.suppress(BlockingIOError, OSError):
                while True:
                    data, where = way.recvfrom(512)
                    heard.add((*where[:2], int.from_bytes(data[:2], "big")))
        return heard


def spent(pid: int) -> int:
    """Return the processor time that a process has used, in clock ticks; -1 if it is gone."""
    try:
        return process_stat.ticks(pid)
    except OSError:
        return -1
