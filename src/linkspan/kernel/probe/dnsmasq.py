"""The names' server on this machine: where it is, as whom it runs, and whether one that runs still answers."""

from __future__ import annotations

import contextlib
import functools
import pwd
import shutil
import socket
import stat
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

from linkspan.core.states.programs import Dnsmasq, Zones

USER = "dnsmasq"
"""Debian's package makes this user for it."""
_MAPPED = bytes(10) + b"\xff\xff"
"""RFC 4291 section 2.5.5.2: before an IPv4 address that is written as one of IPv6."""
_QUESTION = struct.pack("!5H", 0x0100, 1, 0, 0, 0) + b"\7version\4bind\0" + struct.pack("!2H", 16, 3)
"""TXT version.bind of class CHAOS: every state of its data answers that, and nobody else is asked."""


@functools.cache
def uid() -> int:
    """Return the user's number, -1 where there is no such user."""
    try:
        return pwd.getpwnam(USER).pw_uid
    except KeyError:
        return -1


def found(folder: Path) -> Dnsmasq | None:
    """Return how to start it with files in this folder, None where it is not installed.

    It becomes its own user where that may read the folder, and where there are users: a namespace may have root alone.
    """
    program = shutil.which("dnsmasq")
    if program is None:
        return None
    own = uid() >= 0 and _mapped(uid()) and all(map(_passes, (folder, *folder.parents)))
    return Dnsmasq(program, USER if own else "root", str(folder))


def _passes(folder: Path) -> bool:
    """Tell whether others may go through a folder; one that is not there yet is made so."""
    with contextlib.suppress(OSError):
        return bool(folder.stat().st_mode & stat.S_IXOTH)
    return True


def _mapped(number: int) -> bool:
    """Tell whether this user namespace has the user (user_namespaces(7))."""
    lines = Path("/proc/self/uid_map").read_text(encoding="ascii").splitlines()
    ranges = (tuple(map(int, line.split())) for line in lines)
    return any(first <= number < first + count for first, _, count in ranges)


def upstream(text: str, without: Iterable[str]) -> tuple[str, ...]:
    """Return the resolvers of a resolv.conf, in order, but for those addresses (ours: a question would go round)."""
    words = (line.split() for line in text.splitlines())
    named = (_address(line[1]) for line in words if len(line) > 1 and line[0] == "nameserver")
    return tuple(dict.fromkeys(one for one in named if one and one not in set(without)))


def _address(text: str) -> str:
    """Return an address as we write it, however it was written; '' for what is none."""
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
    """Asks the servers whether they live, all by one packet each, and never waits for an answer."""

    def __init__(self) -> None:
        self._ways = {f: self._open(f) for f in (socket.AF_INET, socket.AF_INET6)}
        self._asked: dict[Zones, tuple[str, int, int]] = {}
        self._number = 0
        self.missed: dict[Zones, int] = {}
        """By networks: how many questions in a row their server has not answered."""

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
        """Begin anew with a server that is another one now."""
        self._asked.pop(server, None)
        self.missed.pop(server, None)

    def beat(self, servers: Mapping[Zones, tuple[str, int]]) -> None:
        """Take the answers of the last time, and ask anew: each server's address and port by its networks."""
        heard = self._heard()
        for name, asked in self._asked.items():
            self.missed[name] = 0 if asked in heard else self.missed.get(name, 0) + 1
        self.missed = {name: count for name, count in self.missed.items() if name in servers}
        self._asked = {}
        self._number = (self._number + 1) & 0xFFFF
        for name, place in servers.items():
            way = self._ways[socket.AF_INET6 if ":" in place[0] else socket.AF_INET]
            with contextlib.suppress(OSError):  # the address went with the last container
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
    """Return the processor time that a process has used, in ticks (proc(5)); -1 where it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return -1
    return int(fields[11]) + int(fields[12])
