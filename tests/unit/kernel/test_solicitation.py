"""Answers to neighbour solicitation: who is not on the link has no say."""

from __future__ import annotations

import socket
import struct

import pytest

from linkspan.kernel.probe.arp import _Solicitation

TARGET = bytes.fromhex("fd000099000100000000000000000009")
MAC = bytes.fromhex("0242c0000209")
ADVERTISEMENT = struct.pack("!BBHI", 136, 0, 0, 0x40000000) + TARGET + b"\x02\x01" + MAC


class Wire:
    """A raw socket with one message, which came with a hop limit."""

    def __init__(self, hops: int | None) -> None:
        self._about = [(socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT, struct.pack("=i", hops))] if hops else []

    def recvmsg(self, size: int, room: int) -> tuple[bytes, list[tuple[int, int, bytes]], int, None]:
        """Return it."""
        assert size >= len(ADVERTISEMENT)
        assert room >= socket.CMSG_SPACE(4)
        return ADVERTISEMENT, self._about, 0, None


@pytest.mark.parametrize(("hops", "heard"), [(255, (TARGET, MAC)), (254, None), (64, None), (None, None)])
def test_an_answer_from_beyond_a_router_is_none(hops: int | None, heard: tuple[bytes, bytes] | None) -> None:
    """A container of another host could say that every address is in use, and no host would take one (RFC 4861)."""
    way = object.__new__(_Solicitation)
    way.socket = Wire(hops)  # type: ignore[assignment]
    assert way.heard(way.receive()) == heard
