"""A stranger on the underlay: what it sees, and what a compromised host can send."""

from __future__ import annotations

import socket
from collections.abc import Callable

from linkspan.core.addresses import prefix
from linkspan.core.model import Network
from support.netns.forgery import Listener, datagram
from support.netns.listener import PORT
from support.netns.overlay import Cluster
from support.netns.traced_cluster import address
from support.replay import replay


class Wire:
    """Frames that pass the switch, as an eavesdropper sees them."""

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


KNOWN = b"forged"
"""What is looked for on the wire: ``datagram`` carries it, and a listener waits for it."""


def known_sent(cluster: Cluster, one: int, other: int, demo: Network) -> None:
    """Let a container send what is known to another one, with its own address, some times."""
    with cluster.world.entered(f"c{one}"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        for _ in range(5):
            out.sendto(KNOWN * 8, (address(cluster, other, demo), 7777))


def raw(cluster: Cluster, number: int, packet: bytes) -> None:
    """Send a packet as it is from a host, which routes it."""
    with cluster.world.entered(f"h{number}"):
        out = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    with out:
        out.sendto(packet, (socket.inet_ntop(socket.AF_INET, packet[16:20]), 0))


def sends_its_own_only(cluster: Cluster, number: int, demo: Network, net: int, listener: Listener) -> None:
    """Hold that of what a host encrypts for the first one's container only its own block's sources get there."""

    def passes(source: str) -> bool:
        raw(cluster, number, datagram(source, address(cluster, 1, demo)))
        return listener.heard()

    assert passes(f"10.{net}.{number}.5"), "its own passes"
    assert not passes(f"10.{net}.{5 - number}.5"), "the other peer's does not"
    assert not passes(f"10.{net}.1.9"), "nor this host's own"
    assert not passes("198.51.100.1"), "nor the outside's"
    assert passes(f"10.{net}.{number}.5")


def is_taken_once(
    cluster: Cluster, number: int, demo: Network, listener: Listener, encrypted: Callable[[bytes], bool]
) -> None:
    """Hold that what a host sends the first one's container gets there once, whoever sends it again.

    What was held back shows that a stranger's packets do come to the host.
    """
    wire, source = Wire(cluster), prefix(f"192.0.2.{number}").packed

    def sent(times: int) -> list[bytes]:
        with cluster.world.entered(f"c{number}"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            for _ in range(times):
                out.sendto(b"once", (address(cluster, 1, demo), PORT))
        return [frame for frame in wire.frames() if frame[26:30] == source and encrypted(frame)]

    def delivered(frames: list[bytes]) -> bool:
        with cluster.world.entered("sw"):
            stranger = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        with stranger:
            stranger.bind(("p1", 0))
            replay(stranger, frames)
        return listener.heard()

    wire.frames()
    came = sent(3)
    assert len(came) >= 3
    assert [listener.heard() for _ in range(4)] == [True, True, True, False]
    cluster.world.sh("sw", "ip link set p1 down")
    held = sent(1)
    cluster.world.sh("sw", "ip link set p1 up")
    assert [delivered(frames) for frames in (came, held, held, came)] == [False, True, False, False]
    wire.close()
