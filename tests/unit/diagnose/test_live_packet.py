"""A live trace's packet is known again by its mark, whatever is around it, and nothing else is taken for it."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

import pytest

from linkspan.diagnose.trace.live_packet import way

MARK = bytes(range(1, 17))
SEQUENCE = int.from_bytes(MARK[:4], "big")
SYN, SYN_ACK, RST_ACK, ACK = 0x02, 0x12, 0x14, 0x10


def ip(protocol: int, body: bytes, family: int = 4) -> bytes:
    """Put an IP header before a body."""
    if family == 6:
        return struct.pack("!IHBB", 6 << 28, len(body), protocol, 64) + bytes(32) + body
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, protocol, 0) + bytes(8) + body


def tcp(flags: int, sequence: int, acknowledged: int = 0) -> bytes:
    """Make a TCP header."""
    return struct.pack("!HHIIBBHHH", 40000, 80, sequence, acknowledged, 0x50, flags, 1000, 0, 0)


def bare(segment: bytes) -> bytes:
    """Put nothing around it but IP."""
    return ip(socket.IPPROTO_TCP, segment)


def in_vxlan(segment: bytes) -> bytes:
    """Put a VXLAN over IPv6 around it."""
    frame = bytes(14) + ip(socket.IPPROTO_TCP, segment, 6)
    return ip(socket.IPPROTO_UDP, struct.pack("!HHHH", 1, 4789, 0, 0) + b"\x08\0\0\0\0\0\x64\0" + frame, 6)


def in_ipip(segment: bytes) -> bytes:
    """Put another IP header around it."""
    return ip(4, bare(segment))


def quoted(segment: bytes) -> bytes:
    """Quote it in an ICMP error."""
    return ip(socket.IPPROTO_ICMP, bytes((3, 13, 0, 0, 0, 0, 0, 0)) + bare(segment))


@pytest.mark.parametrize("around", [bare, in_vxlan, in_ipip])
def test_a_syn_and_its_answer_are_known_by_the_sequence_number(around: Callable[[bytes], bytes]) -> None:
    """SYN-ACK and RST are both answers; another connection's are nothing."""
    assert way("tcp", MARK, around(tcp(SYN, SEQUENCE))) == 0
    assert way("tcp", MARK, around(tcp(SYN_ACK, 99, SEQUENCE + 1))) == 1
    assert way("tcp", MARK, around(tcp(RST_ACK, 0, SEQUENCE + 1))) == 1
    for other in (tcp(SYN, SEQUENCE + 1), tcp(SYN_ACK, SEQUENCE, 7), tcp(ACK, 0, SEQUENCE + 1)):
        assert way("tcp", MARK, around(other)) is None


def test_an_error_that_quotes_the_packet_is_not_the_packet() -> None:
    """An ICMP error that quotes the packet, and a truncated packet, do not count as the packet."""
    assert way("tcp", MARK, quoted(tcp(SYN, SEQUENCE))) is None
    assert way("tcp", MARK, bare(tcp(SYN, SEQUENCE))[:30]) is None
    assert way("tcp", MARK, b"") is None
    echo = ip(socket.IPPROTO_ICMP, bytes((8, 0, 0, 0, 0, 1, 0, 1)) + MARK)
    assert (way("icmp", MARK, echo), way("tcp", MARK, echo)) == (0, None)
    error = bytes((3, 1, 0, 0, 0, 0, 0, 0))
    assert way("icmp", MARK, ip(socket.IPPROTO_ICMP, error + echo)) is None


@pytest.mark.parametrize("around", [lambda echo: echo, lambda echo: ip(4, echo)])
def test_a_ping_of_any_size_and_its_answer_are_known_by_the_mark(around: Callable[[bytes], bytes]) -> None:
    """The mark is before the padding, so an echo of any size and its reply have it."""
    for family, kinds in ((4, (8, 0)), (6, (128, 129))):
        protocol = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}[family]
        for number, kind in enumerate(kinds):
            echo = ip(protocol, bytes((kind, 0, 0, 0, 0, 1, 0, 1)) + MARK + bytes(1000), family)
            assert way("icmp", MARK, around(echo)) == number
            assert way("icmp", bytes(16), around(echo)) is None
