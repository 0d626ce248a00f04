"""Voter call: a datagram by which a voter shows a host that does not answer where the cluster's etcd is.

A host knows the voters' addresses from etcd's list of members. If the only voter gets another address, or if all voters
are replaced while the host is off, it asks for them in vain. So each voter calls the hosts that are silent, at the
addresses in their records, and a host that reaches no voter listens.

Anybody may send such a datagram, so nothing in it counts. It only says that the host should look for etcd at the
address from which it came. There TLS proves that a voter of this cluster answers, before the host logs in.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable

from linkspan.core.store_url import OWN_SIGNER

PORT = OWN_SIGNER
"""UDP port of hosts; the signer has the TCP port of this number."""
WORD = b"linkspan voter call 1"
"""The content, for whoever looks at packets."""
MOST_READ = 256
"""Datagrams that are read at a time: a flood of them must not hold up the agent."""
MOST_CALLERS = 4
"""Addresses that are tried at a time: each may cost seconds."""


def call(own: str, hosts: Iterable[str]) -> None:
    """Call hosts at their addresses, from a voter's own one. What cannot be sent now is sent the next time."""
    family = _family(own)
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sending:
            sending.setblocking(False)
            sending.bind((own, 0))
            for host in hosts:
                if _family(host) == family:
                    with contextlib.suppress(OSError):  # no route now, or the queue is full
                        sending.sendto(WORD, (host, PORT))
    except OSError:  # the address is gone
        return


class Ear:
    """Hears calls while it is open."""

    def __init__(self) -> None:
        self._listening: tuple[socket.socket, ...] = ()

    def open(self) -> None:
        """Listen from now on, unless it does; an address family that this machine lacks is left out."""
        if not self._listening:
            self._listening = tuple(filter(None, map(_listening, (socket.AF_INET, socket.AF_INET6))))

    def close(self) -> None:
        """Listen no longer."""
        for one in self._listening:
            one.close()
        self._listening = ()

    def callers(self) -> tuple[str, ...]:
        """Return the addresses that called since the last time: some of them, if they are many."""
        found: dict[str, None] = {}
        for one in self._listening:
            with contextlib.suppress(OSError):  # no more
                for _ in range(MOST_READ):
                    word, sender = one.recvfrom(len(WORD) + 1)
                    if word == WORD:
                        found[sender[0]] = None
        return tuple(found)[-MOST_CALLERS:]


def _listening(family: socket.AddressFamily) -> socket.socket | None:
    made = None
    try:
        made = socket.socket(family, socket.SOCK_DGRAM)
        made.setblocking(False)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(("", PORT))
    except OSError:
        if made is not None:
            made.close()
        return None
    return made


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
