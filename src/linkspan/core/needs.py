"""Needs: packets that must pass on the underlay, declared by a backend and tried by a probe."""

from __future__ import annotations

from collections.abc import Callable

import msgspec


def _nothing(_left: int) -> bytes:
    return b""


class Need(msgspec.Struct, frozen=True):
    """A packet that must reach a peer over the underlay, in a form that a probe can send.

    ``what`` describes it to people, and is the same on both hosts. ``size`` is that of the largest packet,
    from the outer IP header on. With a ``port`` the outer headers are IP's and those of ``protocol`` (nft's
    word for it). ``inside`` returns what follows them, given how many bytes the packet still has.
    ``from_port``: the tunnel sends from that same port; else the sender's kernel chooses one. A ``neighbour``
    is the peer's address on the link, to which the packet goes without a router. ``spare``: the network has
    another way if that neighbour does not answer.
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
