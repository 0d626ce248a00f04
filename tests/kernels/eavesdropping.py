"""What a stranger on the underlay sees, and what a host that was broken into can send."""

from __future__ import annotations

import socket

from overlay import Cluster


class Wire:
    """What passes the switch, as an eavesdropper has it."""

    def __init__(self, cluster: Cluster) -> None:
        with cluster.world.entered("sw"):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))  # ETH_P_ALL
        self._socket.settimeout(0.5)

    def frames(self) -> list[bytes]:
        """Return what has passed, when nothing more does."""
        found = []
        try:
            while True:
                found.append(self._socket.recv(65535))
        except TimeoutError:
            return found

    def close(self) -> None:
        """Close it."""
        self._socket.close()


def raw(cluster: Cluster, number: int, packet: bytes) -> None:
    """Send a packet as it is from a host, which routes it."""
    with cluster.world.entered(f"h{number}"):
        out = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    with out:
        out.sendto(packet, (socket.inet_ntop(socket.AF_INET, packet[16:20]), 0))
