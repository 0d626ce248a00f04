from __future__ import annotations

import struct

from linkspan.core.addresses import mac, prefix
from linkspan.kernel.probe.gratuitous_arp import frame

MAC = mac("02:00:0a:63:01:02")


def test_ipv4_is_announced_by_an_arp_request_for_itself() -> None:
    """Sender and target are the address, to everybody on the link (RFC 5227 2.3)."""
    packet = frame(MAC, prefix("10.99.1.2/24"))
    ip = bytes([10, 99, 1, 2])
    assert packet[:14] == b"\xff" * 6 + MAC + b"\x08\x06"
    assert packet[14:] == bytes.fromhex("0001080006040001") + MAC + ip + bytes(6) + ip


def test_ipv6_is_announced_by_an_advertisement_with_a_right_checksum() -> None:
    """To all nodes, hop limit 255, override set, with the link-layer address (RFC 4861 4.4)."""
    packet = frame(MAC, prefix("fd99:1::2/64"))
    assert packet[:14] == bytes.fromhex("333300000001") + MAC + b"\x86\xdd"
    header, message = packet[14:54], packet[54:]
    length, following, hops = struct.unpack_from("!HBB", header, 4)
    assert (length, following, hops) == (len(message), 58, 255)
    assert message[0] == 136
    assert message[4] == 0x20
    assert message[8:24] == header[8:24] == prefix("fd99:1::2").packed
    assert message[24:] == b"\x02\x01" + MAC
    words = header[8:40] + struct.pack("!II", len(message), 58) + message
    total = sum(struct.unpack(f"!{len(words) // 2}H", words))
    assert (total & 0xFFFF) + (total >> 16) == 0xFFFF, "the checksum makes the sum all ones (RFC 1071)"
