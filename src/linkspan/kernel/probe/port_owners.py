"""Who holds a port of the host: asked before it is published, so that nobody's listener is cut off in silence.

The kernel is asked by trying to bind, which is exact and takes 0.02 ms; only where it refuses are the
sockets' owners searched. A client's connection that happens to use the port is not in the way: the
translation sees only what is sent to one of the host's addresses at that port, and replies to a client's
connection pass by their own conntrack entry.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Collection, Iterator
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


def holder(protocol: str, host_ip: str, port: int, besides: Collection[bytes] = ()) -> str:
    """Return who listens at the port in the calling thread's namespace, as ``process 12 (nginx)``; '' if nobody.

    ``host_ip`` '' asks for every address; who listens at one of ``besides`` is not in the way. Raises Invalid where
    the host does not have the address (and does not allow to bind to one that comes later), and KernelError where
    the kernel answers neither yes nor no.
    """
    if not _taken(protocol, host_ip, port):
        return ""
    inodes, clients = _inodes(protocol, host_ip, port, besides)
    for inode in inodes:
        return _process(inode)
    return "" if clients else "a process of another container or the kernel"


def listeners(protocol: str, port: int) -> list[tuple[str, str]]:
    """Return who listens at a port: (address, ``process 12 (nginx)``)."""
    if not _taken(protocol, "", port):
        return []
    return [
        (Prefix(address.removeprefix(bytes(10) + b"\xff\xff"), 0).address, _process(inode))
        for address, number, state, inode in _table(protocol)
        if number == port and state == _LISTEN
    ]


def _taken(protocol: str, host_ip: str, port: int) -> bool:
    """Try to bind; every address is :: which, in one call, covers IPv4, too."""
    packed = prefix(host_ip).packed if host_ip else b""
    only = int(bool(host_ip))  # :: that was asked for is IPv6 alone
    any_family = [(socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")]
    wanted = [(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, host_ip)] if host_ip else any_family
    kind, number = _KINDS[protocol]
    for family, address in wanted:
        try:
            probe = socket.socket(family, kind | socket.SOCK_CLOEXEC, number)
        except OSError as error:
            if error.errno in _ABSENT:
                continue  # without IPv6, ask for 0.0.0.0; without SCTP, nobody holds it
            raise of_errno(error.errno or 0, f"look whether {protocol} port {port} is free") from error
        with probe:
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
            if protocol == "tcp":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # TIME_WAIT is nobody's
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
                return bool(_inodes(protocol, host_ip, port)[0])
        return False
    return False


def _absent(protocol: str, host_ip: str, port: int) -> Invalid:
    """The kernel's own switch allows what haproxy and keepalived do: to use an address before it is there."""
    setting = f"net.ipv{6 if ':' in host_ip else 4}.ip_nonlocal_bind"
    return Invalid(
        f"port {port}/{protocol} cannot be published at {host_ip}: the host has no such address",
        f"`ip address` shows those it has; for one that comes later: sysctl -w {setting}=1",
    )


def _inodes(
    protocol: str, host_ip: str, port: int, besides: Collection[bytes] = ()
) -> tuple[list[str], bool]:
    """Return the inodes of the sockets that hold the port, and whether others use it: clients' connections."""
    packed = prefix(host_ip).packed if host_ip else b""
    found, clients = [], False
    for address, number, state, inode in _table(protocol):
        if number != port or not _meet(address, packed):
            continue
        if state in (_LISTEN, _CLOSE) and address not in besides:
            found.append(inode)
        else:
            clients = True
    return found, clients


def _meet(bound: bytes, wanted: bytes) -> bool:
    """Tell whether a socket's address has one in common with those wanted (none given: every address).

    An IPv4-mapped one is the IPv4 address; :: may hold IPv4, too (the bind has told that something does).
    """
    bound = bound.removeprefix(bytes(10) + b"\xff\xff")
    if not wanted or bound == wanted or bound == bytes(16):
        return True
    return len(bound) == len(wanted) and not (any(bound) and any(wanted))


def _table(protocol: str) -> Iterator[tuple[bytes, int, str, str]]:
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


def _process(inode: str) -> str:
    """Name the process that has the socket open."""
    link = f"socket:[{inode}]"
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                for fd in (process / "fd").iterdir():
                    with contextlib.suppress(OSError):
                        if str(fd.readlink()) == link:
                            return f"process {process.name} ({(process / 'comm').read_text().strip()})"
    return "a process of another container or the kernel"
