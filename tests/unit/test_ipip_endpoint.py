"""The user-space IPIP endpoint's table and its answers."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

from linkspan.core.addresses import prefix
from linkspan.ipip_endpoint import (
    KNOWN,
    PLAIN,
    Table,
    Tables,
    _checksum,
    about_datagram,
    about_merged,
    frag_needed,
)
from support.polling import until


def packed(text: str) -> bytes:
    """Return an address in bytes."""
    return prefix(text).packed


def test_the_longest_prefix_wins() -> None:
    """An address that moved out of its block goes to its new host; an address in no prefix goes nowhere."""
    table = Table("10.77.2.0/24 192.0.2.2\n10.77.2.9/32 192.0.2.3\n0.0.0.0/0 192.0.2.9\n", bytes)
    assert table.find(packed("10.77.2.5")) == packed("192.0.2.2")
    assert table.find(packed("10.77.2.9")) == packed("192.0.2.3")
    assert table.find(packed("198.51.100.1")) == packed("192.0.2.9")
    assert Table("10.77.2.0/24 192.0.2.2\n", bytes).find(packed("10.77.3.0")) is None


def test_what_leaves_to_the_outside_goes_by_its_source(tmp_path: Path) -> None:
    """By the second table, which follows its file; without that table nothing has such a way."""
    table, exits = tmp_path / "table", tmp_path / "exits"
    table.write_text("10.77.2.0/24 192.0.2.2\n")
    tables = Tables(table, exits, bytes)
    assert tables.out(packed("10.77.1.5")) is None
    exits.write_text("10.77.0.0/16 192.0.2.3\n")
    until(lambda: tables.out(packed("10.77.1.5")) == packed("192.0.2.3"), "the row counts")
    assert tables.out(packed("198.51.100.1")) is None
    exits.unlink()
    until(lambda: tables.out(packed("10.77.1.5")) is None, "it counts no more")
    assert tables.current.find(packed("10.77.2.5")) == packed("192.0.2.2")
    exits.write_text("10.77.0.0/16 192.0.2.3\n")
    assert Tables(table, None, bytes).out(packed("10.77.1.5")) is None


def test_lines_that_are_no_rows_are_left_out() -> None:
    """Half a line, a bad address, IPv6."""
    table = Table("10.77.2.0/24\nx/24 192.0.2.2\nfd00::/64 192.0.2.2\n\n10.77.2.0/24 192.0.2.2", bytes)
    assert table.find(packed("10.77.2.5")) == packed("192.0.2.2")


def test_what_is_known_stays_bounded() -> None:
    """A scan of a large pool does not fill the memory."""
    table = Table("10.0.0.0/8 192.0.2.2\n", bytes)
    for number in range(KNOWN + 10):
        table.find(struct.pack("!I", (10 << 24) + number))
    assert len(table.known) <= KNOWN


def test_frag_needed_quotes_the_packet_and_names_the_mtu() -> None:
    """It comes from the address that was not reached, and both checksums are right."""
    header = struct.pack("!BBHHHBBH", 0x45, 0, 1480, 1, 0x4000, 64, socket.IPPROTO_TCP, 0)
    packet = header + packed("10.77.1.5") + packed("10.77.2.5") + bytes(1460)
    answer = frag_needed(packet, 1380)
    assert answer[12:20] == packed("10.77.2.5") + packed("10.77.1.5")
    assert answer[20:22] == b"\x03\x04"
    assert struct.unpack("!H", answer[26:28]) == (1380,)
    assert answer[28:48] == packet[:20]
    assert _checksum(answer[:20]) == _checksum(answer[20:]) == b"\0\0"
    assert len(answer) <= 576


def test_no_answer_is_given_to_errors_and_later_fragments() -> None:
    """RFC 1122 forbids it."""
    addresses = packed("10.77.1.5") + packed("10.77.2.5")
    error = struct.pack("!BBHHHBBH", 0x45, 0, 28, 1, 0x4000, 64, 1, 0) + addresses + b"\x03\x01" + bytes(6)
    fragment = struct.pack("!BBHHHBBH", 0x45, 0, 28, 1, 0x4001, 64, 17, 0) + addresses + bytes(8)
    assert frag_needed(error, 1380) == b""
    assert frag_needed(fragment, 1380) == b""


def tcp(payload: bytes, *, flags: int = 0x4000, merged: bool = False) -> bytes:
    """Return an IPv4 packet with TCP, timestamps included: with its checksum, or as GRO leaves merged ones."""
    size = 20 + 32 + len(payload)
    header = struct.pack("!BBHHHBBH", 0x45, 0, size, 1, flags, 64, socket.IPPROTO_TCP, 0)
    header += packed("10.77.1.5") + packed("10.77.2.5")
    pseudo = header[12:20] + struct.pack("!HH", socket.IPPROTO_TCP, size - 20)
    segment = struct.pack("!HHIIBBHHH", 1000, 80, 7, 9, 8 << 4, 0x10, 500, 0, 0) + bytes(12) + payload
    open_sum = bytes(0xFF - byte for byte in _checksum(pseudo))
    check = open_sum if merged else _checksum(pseudo + segment)
    return header + segment[:16] + check + segment[18:]


def test_a_merged_packet_is_told_from_one_that_was_sent_so() -> None:
    """Its checksum is left open, at byte 16 of what follows 20; it may be parted into packets that every host takes."""
    about = struct.unpack("=BBHHHH", about_merged(tcp(bytes(5000), merged=True)))
    assert about == (1, 1, 52, 576 - 52, 20, 16)
    assert about_merged(tcp(bytes(range(256)) * 5)) == PLAIN
    assert about_merged(tcp(b"", merged=True)[:39]) == PLAIN
    assert about_merged(tcp(bytes(5000), flags=0x2000, merged=True)) == PLAIN, "a fragment is never merged"


def test_an_open_checksum_of_udp_is_told_from_one_that_was_sent_so() -> None:
    """It is at byte 6 of what follows 20; the numbers are those that a kernel sent by a veth pair."""
    header = struct.pack("!BBHHHBBH", 0x45, 0, 29, 62107, 0, 63, 17, 0) + packed("192.0.2.9") + packed("10.77.2.5")
    left_open = header + struct.pack("!HHHH", 42172, 50819, 9, 52853) + b"!"
    assert struct.unpack("=BBHHHH", about_datagram(left_open)) == (1, 0, 0, 0, 20, 6)
    assert about_datagram(header + struct.pack("!HHHH", 42172, 50819, 9, 47110) + b"!") == PLAIN
    assert about_datagram(left_open[:27]) == PLAIN
    assert about_datagram(left_open[:6] + b"\x20\0" + left_open[8:]) == PLAIN, "of a fragment nothing is known"
