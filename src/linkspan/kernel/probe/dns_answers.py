"""DNS answers that rules log: what a name server of this host tells containers, as it leaves for them."""

from __future__ import annotations

from collections.abc import Iterator

from linkspan.kernel.io import dns_messages
from linkspan.kernel.io.dns_messages import Answer
from linkspan.kernel.probe import nflog
from linkspan.kernel.probe.nflog import Nflog


class DnsAnswers:
    """Listens to a group of nflog in the calling thread's namespace."""

    def __init__(self, group: int, length: int) -> None:
        """Listen to the first ``length`` bytes of packets. Raises KernelError if it cannot."""
        self._nflog = Nflog(group, length, at_once=True)

    def close(self) -> None:
        """Stop listening."""
        self._nflog.close()

    def fileno(self) -> int:
        """Return the descriptor, for a loop to watch."""
        return self._nflog.fileno()

    def read(self) -> Iterator[Answer]:
        """Yield the answers about addresses that are there now."""
        for packet in self._nflog.packets():
            yield from answers(packet)


def answers(packet: bytes) -> Iterator[Answer]:
    """Yield the answers about addresses that an IP packet has: by TCP those that are whole in it."""
    protocol, payload = nflog.carried(packet)
    messages = [payload] if protocol == "udp" else _framed(payload)
    yield from filter(None, map(dns_messages.answer, messages))


def _framed(stream: bytes) -> Iterator[bytes]:
    """Yield the messages in a part of a TCP stream that begins with one (RFC 1035 section 4.2.2)."""
    while len(stream) > 2:
        length = int.from_bytes(stream[:2], "big")
        message, stream = stream[2 : 2 + length], stream[2 + length :]
        if len(message) == length:
            yield message
