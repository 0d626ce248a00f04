"""Connection attempt by any protocol: whether rules on the way refuse it. A closed port is no refusal of theirs."""

from __future__ import annotations

import errno
import select
import socket
import time

from linkspan.core.errors import KernelError
from linkspan.kernel.probe.ping import Echo

WAIT = 1.5
"""Seconds for an answer: one retransmission of a SYN is within (RFC 6298 has the first after 1 s)."""
SILENCE = 0.5
"""Seconds in which a refusal of a datagram comes; a server need not answer it."""
_TELL_ERRORS = {socket.AF_INET: (0, 11), socket.AF_INET6: (41, 25)}
"""IP_RECVERR and IPV6_RECVERR (linux/in.h, in6.h): a socket learns of each ICMP error."""
_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
PROTOCOLS = (*_KINDS, "icmp")
"""Those that can be tried."""


def passes(target: str, protocol: str, port: int) -> bool:
    """Try a connection from the calling thread's namespace; return whether it arrives, as far as the sender learns.

    By TCP and ICMP silence means that it does not, by UDP that it does. It takes at most two seconds. Raises
    KernelError if the kernel lets nobody try.
    """
    if protocol == "icmp":
        return _echoes(target)
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    with socket.socket(family, _KINDS[protocol] | socket.SOCK_CLOEXEC) as way:
        way.setsockopt(*_TELL_ERRORS[family], 1)
        way.settimeout(WAIT if protocol == "tcp" else SILENCE)
        try:
            way.connect((target, port))
            if protocol == "udp":
                way.send(b"")
                way.recv(1)
        except TimeoutError:
            return protocol == "udp"
        except OSError as error:
            return error.errno == errno.ECONNREFUSED
    return True


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
