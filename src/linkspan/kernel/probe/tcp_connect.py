"""TCP connection attempt, as a program would make it: it shows more than any table of the kernel."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import time
from pathlib import Path
from typing import Literal

from linkspan.core.errors import KernelError
from linkspan.kernel.probe.ping import Echo

Outcome = Literal["open", "closed", "refused", "unanswered", "unreachable", "no source"]
"""``closed``: accepted, and ended at once; ``no source``: this host does not have the source address."""

_OUTCOMES: dict[int, Outcome] = {
    errno.ECONNREFUSED: "refused",
    errno.ETIMEDOUT: "unanswered",
    errno.EADDRNOTAVAIL: "no source",
    errno.ENETUNREACH: "unreachable",
    errno.EHOSTUNREACH: "unreachable",
}
_TTL = {socket.AF_INET: (socket.IPPROTO_IP, socket.IP_TTL)}
_HOPS = (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS)
WAIT = 1.5
"""Seconds for an answer: one retransmission of a SYN is within (RFC 6298 has the first after 1 s)."""
HEARD = 0.5
"""Seconds after the connection is established within which a peer that does not know us ends it."""


def approach(source: str, target: str, port: int, ttl: int = 64) -> Outcome:
    """Open a connection from ``source`` ('': any), see whether the peer keeps it, and end it; takes at most 2 s."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as way:
        way.settimeout(WAIT)
        try:
            way.setsockopt(*_TTL.get(family, _HOPS), ttl)
            if source:
                way.bind((source, 0))
            way.connect((target, port))
        except TimeoutError:
            return "unanswered"
        except OSError as error:
            return _OUTCOMES.get(error.errno or 0, "unreachable")
        way.settimeout(HEARD)
        try:
            return "open" if way.recv(1) else "closed"
        except TimeoutError:
            return "open"
        except OSError:
            return "closed"


def listenable(address: str, port: int) -> bool:
    """Return whether a program could listen at an address of this host ('': any) now."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # TIME_WAIT belongs to nobody
        try:
            tried.bind((address, port))
        except OSError:
            return False
    return True


def pings(address: str) -> bool:
    """Return whether the address answers an echo request within WAIT; false if the kernel has no route to it."""
    with contextlib.suppress(KernelError), contextlib.closing(Echo(6 if ":" in address else 4)) as echo:
        echo.ask(address)
        end = time.monotonic() + WAIT
        while (left := end - time.monotonic()) > 0 and select.select([echo], [], [], left)[0]:
            if address in echo.answers():
                return True
    return False


def md5_refusals() -> dict[str, int]:
    """Return how many TCP segments the kernel has dropped for their signature (RFC 2385), by reason.

    ``NotFound``: unsigned, but we have a password; ``Unexpected``: signed, but we have none; ``Failure``:
    signed with another one.
    """
    names, values = Path("/proc/thread-self/net/netstat").read_text(encoding="ascii").splitlines()[:2]
    found = dict(zip(names.split(), values.split(), strict=True))
    return {why: int(found.get(f"TCPMD5{why}", 0)) for why in ("NotFound", "Unexpected", "Failure")}
