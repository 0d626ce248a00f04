"""Connection attempt by any protocol: whether rules on the way refuse it. A closed port is no refusal of theirs."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import time

from linkspan.core.errors import KernelError
from linkspan.kernel.probe.ping import Echo

WAIT = 1.5
"""Seconds for an answer: one retransmission of a SYN is within (RFC 6298 has the first after 1 s)."""
DATAGRAMS, SILENCE = 4, 0.45
"""Datagrams that are sent, and the seconds after each. Together they are longer than a second: of refusals, which are
ICMP errors, the kernel sends a receiver 6 at once, and then one a second (net.ipv4.icmp_ratelimit)."""
_TELL_ERRORS = {socket.AF_INET: (0, 11), socket.AF_INET6: (41, 25)}
"""IP_RECVERR and IPV6_RECVERR (linux/in.h, in6.h): a socket learns of each ICMP error."""
_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
PROTOCOLS = (*_KINDS, "icmp")
"""Those that can be tried."""


def passes(target: str, protocol: str, port: int) -> bool | None:
    """Try a connection from the calling thread's namespace; return whether it arrives, None if that is not known.

    By TCP and ICMP silence means that it does not. By UDP it means nothing: servers need not answer, and refusals get
    lost. It takes at most two seconds. Raises KernelError if the kernel lets nobody try.
    """
    if protocol == "icmp":
        return _echoes(target)
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    with socket.socket(family, _KINDS[protocol] | socket.SOCK_CLOEXEC) as way:
        way.setsockopt(*_TELL_ERRORS[family], 1)
        way.settimeout(WAIT)
        try:
            way.connect((target, port))
            return True if protocol == "tcp" else heard(way)
        except TimeoutError:
            return False
        except OSError as error:
            return error.errno == errno.ECONNREFUSED


def heard(way: socket.socket) -> bool | None:
    """Return True if there is an answer to empty datagrams, None if not. Raises OSError for a refusal."""
    way.settimeout(SILENCE)
    for _ in range(DATAGRAMS):
        way.send(b"")
        with contextlib.suppress(TimeoutError):
            way.recv(1)
            return True
    return None


def _echoes(target: str) -> bool:
    echo = Echo(6 if ":" in target else 4)
    try:
        deadline = time.monotonic() + WAIT
        try:
            echo.ask(target)
        except KernelError:
            return False
        while (left := deadline - time.monotonic()) > 0:
            if select.select([echo], [], [], left)[0] and target in echo.answers():
                return True
        return False
    finally:
        echo.close()
