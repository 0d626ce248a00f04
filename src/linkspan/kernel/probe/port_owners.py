"""Port owners: who uses a port of the host, asked before it is published, so that no listener is cut off silently.

The driver asks the kernel by trying to bind, which is exact and takes 0.02 ms. Only if that fails, it
searches the sockets' owners, which walks over the descriptors of all processes: so never on the agent's loop,
and once for many ports. A client's connection that happens to use the port is not in the way: the translation
affects only packets to one of the host's addresses at that port, and replies to a client's connection have
their own conntrack entry.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import threading
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from linkspan.core.addresses import Prefix, prefix
from linkspan.core.errors import Invalid, of_errno

_KINDS = {
    "tcp": (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    "udp": (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    "sctp": (socket.SOCK_STREAM, 132),  # IPPROTO_SCTP, which Python's socket lacks on some builds
}
_LISTEN, _CLOSE = "0A", "07"
"""States in /proc/net: a listener of TCP, an unconnected socket of UDP (include/net/tcp_states.h)."""
_ABSENT = (errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT)
_BINDING = threading.Lock()
"""Only one thread binds at a time: each would take the other's attempt for a listener."""
_UNSEEN = "a process of another container or the kernel"

Asked = tuple[str, str, int]
"""A question: the protocol, the host's address ("" for all), and the port."""
Row = tuple[bytes, int, str, str]
"""A socket of the namespace: its address, port, state and inode."""


def holder(protocol: str, host_ip: str, port: int) -> str:
    """Return who listens at the port, as ``holders`` does; "" if nobody."""
    asked = (protocol, host_ip, port)
    return holders([asked]).get(asked, "")


def holders(asked: Iterable[Asked], besides: Collection[tuple[bytes, int]] = ()) -> dict[Asked, str]:
    """Return who listens at each of the ports, as ``process 12 (nginx)``, in the calling thread's namespace.

    A free port is left out. ``besides`` are addresses and ports whose listeners do not block a request for
    all addresses. Processes are searched once for all ports together.

    Raises Invalid if the host does not have an address (and does not allow to bind to one that comes later),
    and KernelError if the kernel answers neither yes nor no.
    """
    look = _Look(besides)
    inodes = {one: found for one in dict.fromkeys(asked) if (found := look.inode(one)) is not None}
    names = _processes({inode for inode in inodes.values() if inode})
    return {one: names.get(inode, _UNSEEN) for one, inode in inodes.items()}


def first_free(asked: Iterable[Asked], besides: Collection[tuple[bytes, int]] = ()) -> Asked | None:
    """Return the first free port, None if all are in use; raises as ``holders`` does."""
    look = _Look(besides)
    return next((one for one in asked if look.inode(one) is None), None)


def listeners(protocol: str, port: int) -> list[tuple[str, str]]:
    """Return who listens at a port: (address, ``process 12 (nginx)``)."""
    look = _Look(())
    if not look.taken((protocol, "", port)):
        return []
    found = [(row[0], row[3]) for row in look.rows(protocol) if row[1] == port and row[2] == _LISTEN]
    names = _processes({inode for _, inode in found})
    return [
        (Prefix(address.removeprefix(bytes(10) + b"\xff\xff"), 0).address, names.get(inode, _UNSEEN))
        for address, inode in found
    ]


class _Look:
    """One lookup of the ports of a namespace: each protocol's sockets are read once, at the first port in use."""

    def __init__(self, besides: Collection[tuple[bytes, int]]) -> None:
        self._besides = besides
        self._rows: dict[str, list[Row]] = {}

    def rows(self, protocol: str) -> list[Row]:
        """Return the sockets of a protocol."""
        if protocol not in self._rows:
            self._rows[protocol] = list(_table(protocol))
        return self._rows[protocol]

    def inode(self, asked: Asked) -> str | None:
        """Return the inode of the socket at a port, "" if it cannot be known, None if nobody uses the port."""
        if not self.taken(asked):
            return None
        inodes, clients = self._inodes(asked)
        return next(iter(inodes), None if clients else "")

    def taken(self, asked: Asked) -> bool:
        """Try to bind; :: means all addresses and, in one call, covers IPv4, too."""
        protocol, host_ip, port = asked
        packed = prefix(host_ip).packed if host_ip else b""
        only = int(bool(host_ip))  # a request for :: itself is IPv6 only
        any_family = [(socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")]
        wanted = [(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, host_ip)] if host_ip else any_family
        kind, number = _KINDS[protocol]
        for family, address in wanted:
            try:
                probe = socket.socket(family, kind | socket.SOCK_CLOEXEC, number)
            except OSError as error:
                if error.errno in _ABSENT:
                    continue  # without IPv6, ask for 0.0.0.0; without SCTP, nobody uses it
                raise of_errno(error.errno or 0, f"look whether {protocol} port {port} is free") from error
            with _BINDING, probe:
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
                if protocol == "tcp":
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # TIME_WAIT belongs to nobody
                try:
                    probe.bind((address, port))
                except OSError as error:
                    if error.errno == errno.EADDRINUSE:
                        return True
                    if error.errno == errno.EADDRNOTAVAIL and host_ip:
                        raise _absent(protocol, host_ip, port) from error
                    if error.errno != errno.EINVAL:  # a link-local address, which wants a zone
                        raise of_errno(
                            error.errno or 0, f"look whether {protocol} port {port} is free"
                        ) from error
                    return bool(self._inodes(asked)[0])
            return False
        return False

    def _inodes(self, asked: Asked) -> tuple[list[str], bool]:
        """Return the inodes of the sockets at the port, and whether others use it: clients' connections."""
        protocol, host_ip, port = asked
        packed = prefix(host_ip).packed if host_ip else b""
        found, clients = [], False
        for address, number, state, inode in self.rows(protocol):
            if number != port or not _meet(address, packed):
                continue
            ignored = not host_ip and (address, number) in self._besides
            if state in (_LISTEN, _CLOSE) and not ignored:
                found.append(inode)
            else:
                clients = True
        return found, clients


def _absent(protocol: str, host_ip: str, port: int) -> Invalid:
    """Return the error for an address that the host lacks; net.*.ip_nonlocal_bind allows it, as haproxy needs."""
    setting = f"net.ipv{6 if ':' in host_ip else 4}.ip_nonlocal_bind"
    return Invalid(
        f"port {port}/{protocol} cannot be published at {host_ip}: the host does not have this address",
        f"`ip address` shows those it has; for one that comes later: sysctl -w {setting}=1",
    )


def _meet(bound: bytes, wanted: bytes) -> bool:
    """Return whether a socket's address has one in common with those wanted (none given: all addresses).

    An IPv4-mapped one is the IPv4 address; :: may include IPv4, too (the bind has shown that something does).
    """
    bound = bound.removeprefix(bytes(10) + b"\xff\xff")
    if not wanted or bound == wanted or bound == bytes(16):
        return True
    return len(bound) == len(wanted) and not (any(bound) and any(wanted))


def _table(protocol: str) -> Iterator[Row]:
    """Yield (address, port, state, inode) of the namespace's sockets."""
    net = Path("/proc/thread-self/net")
    if protocol == "sctp":
        with contextlib.suppress(OSError):
            for line in (net / "sctp/eps").read_text(encoding="ascii").splitlines()[1:]:
                words = line.split()  # ENDPT SOCK STY SST HBKT LPORT UID INODE LADDRS
                for address in words[8:]:
                    with contextlib.suppress(OSError):
                        yield _packed(address), int(words[5]), _LISTEN, words[7]
        return
    for name in (protocol, f"{protocol}6"):
        with contextlib.suppress(OSError):
            for line in (net / name).read_text(encoding="ascii").splitlines()[1:]:
                words = line.split()
                address, _, number = words[1].partition(":")
                # Each group of eight digits is one 32-bit word in the host's byte order.
                groups = [int(address[n : n + 8], 16) for n in range(0, len(address), 8)]
                yield struct.pack(f"={len(groups)}I", *groups), int(number, 16), words[3], words[9]


def _packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def _processes(inodes: Collection[str]) -> dict[str, str]:
    """Return the processes that have these sockets open, by inode; one walk over all processes, until all are found."""
    links, found = {f"socket:[{inode}]": inode for inode in inodes}, dict[str, str]()
    for process in Path("/proc").iterdir() if links else ():
        if not process.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            for fd in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    if inode := links.get(str(fd.readlink())):
                        found[inode] = f"process {process.name} ({(process / 'comm').read_text().strip()})"
                        del links[f"socket:[{inode}]"]
        if not links:
            break
    return found
