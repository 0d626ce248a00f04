"""What must get over the underlay, as a backend declares it and a probe tries it."""

from __future__ import annotations

from collections.abc import Callable

import msgspec


def _nothing(_left: int) -> bytes:
    return b""


class Need(msgspec.Struct, frozen=True):
    """What must get over the underlay from this host to a peer, as a packet that a probe can send.

    ``what`` says it to people, and is the same on both hosts. ``size`` is that of the largest packet, from the outer
    IP header on. With a ``port`` the outer headers are IP's and those of ``protocol`` (nft's word for it);
    ``inside`` returns what follows them, given how many bytes the packet still has. ``from_port`` tells that the tunnel
    sends from that same port; else the sender's kernel chooses one.
    A ``neighbour`` is the peer's address on the link to which the packet goes, by no router; ``spare`` says that the
    network has another way where that one does not answer.
    """

    what: str
    protocol: str
    source: bytes
    target: bytes
    size: int
    fix: str
    port: int = 0
    from_port: bool = False
    inside: Callable[[int], bytes] = _nothing
    neighbour: bytes = b""
    spare: bool = False
