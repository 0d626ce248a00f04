"""A socket that hears whether datagrams arrive, of either family."""

from __future__ import annotations

import socket

from support.netns.world import World

PORT = 7777


class Ear:
    """A UDP socket in a namespace, at one address or (``::``) at all."""

    def __init__(self, world: World, netns: str, address: str = "::") -> None:
        with world.entered(netns):
            kind = socket.AF_INET6 if ":" in address else socket.AF_INET
            self._socket = socket.socket(kind, socket.SOCK_DGRAM)
            if address == "::":
                self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            self._socket.bind((address, PORT))
        self._socket.settimeout(0.3)

    def heard(self) -> bool:
        """Return whether anything came, within 0.3 s: what does arrive takes less than 1 ms."""
        try:
            return bool(self._socket.recv(100))
        except TimeoutError:
            return False

    def close(self) -> None:
        """Close it."""
        self._socket.close()
