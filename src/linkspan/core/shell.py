"""Shell in which a plan's commands are typed: how it reaches a container, and its state folder."""

from __future__ import annotations

import shlex
import socket
from collections.abc import Callable
from pathlib import PurePosixPath

import msgspec

from linkspan.core.addresses import SOCKET_FAMILY
from linkspan.core.states.host import HOST

Paths = Callable[[int], str]
"""Maps a namespace's inode to a path of it."""

STATE_DIR = '"${STATE_DIR:-/var/lib/linkspan}"'
"""The state folder for a reader who has none yet."""

HIDDEN = "***"
"""Replaces a secret in a command."""

_NAMED = PurePosixPath("/run/netns")


class Shell(msgspec.Struct, frozen=True):
    """A shell on the host.

    ``paths`` finds a container's namespace, ``state_dir`` is the state folder as the shell reads it, and
    ``tunnels`` are the prefixes of the names of linkspan's tunnel devices.
    """

    paths: Paths
    state_dir: str = STATE_DIR
    tunnels: tuple[str, ...] = ()

    def name(self, netns: int) -> str:
        """Return the name of a namespace that ``ip -n`` finds, or ''."""
        path = PurePosixPath(self.paths(netns))
        return path.name if path.parent in (_NAMED, PurePosixPath("/var/run/netns")) else ""

    def inside(self, netns: int) -> str:
        """Return the words that run a command in a namespace, '' for the host's own."""
        return "" if netns == HOST else f"nsenter --net={shlex.quote(self.paths(netns))} "

    def ip(self, netns: int) -> str:
        """Return the first words of ``ip`` for a namespace."""
        if netns != HOST and (name := self.name(netns)):
            return f"ip -n {shlex.quote(name)}"
        return self.inside(netns) + "ip"


def address_text(packed: bytes) -> str:
    """Return a packed address as text."""
    return socket.inet_ntop(SOCKET_FAMILY[4 if len(packed) == 4 else 6], packed)
