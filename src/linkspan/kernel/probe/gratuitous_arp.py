"""Gratuitous ARP: announce an address that is given again, so that no cache sends its packets to the old owner.

For IPv4 an ARP announcement (RFC 5227 2.3: a request whose sender and target are the address), for IPv6 an
unsolicited neighbour advertisement to all nodes (RFC 4861 7.2.6) with the override flag.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable

from linkspan.core.addresses import Prefix
from linkspan.core.errors import of_errno

_ARP, _IPV6 = 0x0806, 0x86DD  # linux/if_ether.h
_ICMPV6, _ADVERTISEMENT, _OVERRIDE = 58, 136, 0x20000000
_ALL_NODES = bytes.fromhex("ff02" + 13 * "00" + "01")
_ALL_NODES_MAC = bytes.fromhex("333300000001")  # RFC 2464 7
_BROADCAST = b"\xff" * 6


def frame(mac: bytes, address: Prefix) -> bytes:
    """Return the Ethernet frame that announces one address."""
    ip = address.packed
    if address.family == 4:
        arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + ip + bytes(6) + ip
        return _BROADCAST + mac + struct.pack("!H", _ARP) + arp
    option = b"\x02\x01" + mac  # target link-layer address, in units of eight bytes
    message = struct.pack("!BBHI", _ADVERTISEMENT, 0, 0, _OVERRIDE) + ip + option
    pseudo = ip + _ALL_NODES + struct.pack("!IxxxB", len(message), _ICMPV6)
    message = message[:2] + struct.pack("!H", _checksum(pseudo + message)) + message[4:]
    header = struct.pack("!IHBB", 6 << 28, len(message), _ICMPV6, 255) + ip + _ALL_NODES
    return _ALL_NODES_MAC + mac + struct.pack("!H", _IPV6) + header + message


def announce(device: str, mac: bytes, addresses: Iterable[Prefix]) -> None:
    """Send one announcement for each address from a device of the calling thread's namespace.

    Raises KernelError if the device is gone or down.
    """
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as raw:
            raw.bind((device, 0))
            for address in addresses:
                raw.send(frame(mac, address))
    except OSError as error:
        raise of_errno(error.errno or 0, f"announce addresses on {device}") from error


def _checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071) of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total
