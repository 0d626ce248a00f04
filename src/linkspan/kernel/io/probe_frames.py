"""Probe frames of a controller, which look for hosts and links: a switch sends them, and a flow of ours answers.

A host is asked by ARP without a sender's address (an ARP probe, RFC 5227 1.1): the kernel answers that
whatever routes it has. For IPv6 it is solicited from the gateway's link-local address. Both are sent to the
MAC that the host announces, so no other host is disturbed, and the answer goes to the gateway's MAC.
"""

from __future__ import annotations

import struct

from linkspan.core.addresses import link_local
from linkspan.kernel.io.packets import checksum

_ARP, _IPV6, _LLDP = b"\x08\x06", b"\x86\xdd", b"\x88\xcc"
_ICMPV6, _HOPS = 58, 255  # RFC 4443, RFC 4861 7.1.1
_LOCAL = 7
"""IEEE 802.1AB 8.5: the sender's system defines the meaning of a chassis id (subtype 7) and a port id (subtype 7)."""


def question(gateway: bytes, mac: bytes, address: bytes) -> bytes:
    """Return a frame that asks the host with a MAC for one of its underlay addresses."""
    if len(address) == 4:
        request = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + gateway + bytes(4) + bytes(6) + address
        return mac + gateway + _ARP + request
    source = link_local(gateway).packed
    body = struct.pack("!BBHI", 135, 0, 0, 0) + address + b"\x01\x01" + gateway
    total = checksum(source + address + struct.pack("!II", len(body), _ICMPV6) + body)
    body = body[:2] + struct.pack("!H", total) + body[4:]
    header = struct.pack("!IHBB", 6 << 28, len(body), _ICMPV6, _HOPS) + source + address
    return mac + gateway + _IPV6 + header + body


def announcement(gateway: bytes, sender: bytes, switch: str, port: int) -> bytes:
    """Return an LLDP frame that names its sender to the switch behind a port; only we know ``sender``."""
    chassis, number = switch.encode()[:200], str(port).encode()
    parts = ((1, bytes([_LOCAL]) + chassis), (2, bytes([_LOCAL]) + number), (3, struct.pack("!H", 3)), (0, b""))
    body = b"".join(struct.pack("!H", kind << 9 | len(value)) + value for kind, value in parts)
    return (gateway + sender + _LLDP + body).ljust(60, b"\0")
