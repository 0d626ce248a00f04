"""Packets that somebody forged, and the container's socket that hears those that get through."""

from __future__ import annotations

import socket
import struct

from linkspan.core.addresses import mac, prefix
from linkspan.ipip_endpoint import _checksum
from support.netns.listener import PORT, Ear
from support.netns.overlay import Cluster

HOST_2 = "192.0.2.2"


def packet(source: str, target: str, protocol: int, payload: bytes) -> bytes:
    """Return an IPv4 packet."""
    addresses = prefix(source).packed + prefix(target).packed
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0) + addresses
    return header[:10] + _checksum(header) + header[12:] + payload


def datagram(source: str, target: str = "10.77.2.5") -> bytes:
    """Return an IPv4 packet with the word "forged" for the container on host 2."""
    return packet(source, target, socket.IPPROTO_UDP, struct.pack("!HHHH", PORT, PORT, 14, 0) + b"forged")


def vxlan(source: str, vtep: str, to: str, vni: int = 100) -> bytes:
    """Return a VXLAN payload (RFC 7348 section 5) with such a packet."""
    frame = mac(to) + mac(vtep) + b"\x08\x00" + datagram(source)
    return struct.pack("!II", 0x08000000, vni << 8) + frame


class Listener(Ear):
    """A socket of the container on host 2, or on another."""

    def __init__(self, cluster: Cluster, number: int = 2, net: int = 77) -> None:
        super().__init__(cluster.world, f"c{number}", f"10.{net}.{number}.5")


def send(cluster: Cluster, netns: str, payload: bytes, *, udp: bool, target: str = HOST_2) -> None:
    """Send a VXLAN payload (UDP 4789) or an IPIP one (protocol 4) from a namespace."""
    kind, protocol = (socket.SOCK_DGRAM, 0) if udp else (socket.SOCK_RAW, socket.IPPROTO_IPIP)
    with cluster.world.entered(netns), socket.socket(socket.AF_INET, kind, protocol) as out:
        out.sendto(payload, (target, 4789 if udp else 0))
