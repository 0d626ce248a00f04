"""DNS answers that rules log: what a name server of this host tells containers, as it leaves for them."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from linkspan.kernel.io import dns_messages
from linkspan.kernel.io.dns_messages import Answer
from linkspan.kernel.probe import nflog
from linkspan.kernel.probe.nflog import Nflog


class Heard(msgspec.Struct, frozen=True):
    """An answer, and the address of the server that gave it."""

    server: str
    answer: Answer


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

    def read(self) -> Iterator[Heard]:
        """Yield the answers about addresses that are there now."""
        for packet in self._nflog.packets():
            yield from answers(packet)


def answers(packet: bytes) -> Iterator[Heard]:
    """Yield the answers about addresses that an IP packet has.

    Those by TCP that are whole in it are as if they were truncated: they say what was asked, and nothing else. A client
    decides where a stream is cut into packets. So it could have a part of another answer, whose author it knows, look
    like an answer about any name.
    """
    if (found := nflog.carried(packet)) is None:
        return
    flow, payload = found
    if flow.protocol == "udp":
        told = dns_messages.answer(payload)
    else:
        told = dns_messages.answer(payload[2:]) if int.from_bytes(payload[:2], "big") == len(payload) - 2 else None
        told = told and msgspec.structs.replace(told, truncated=True, addresses=())
    if told is not None:
        yield Heard(flow.source.address, told)
