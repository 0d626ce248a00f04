"""Peer credentials of a unix socket: who calls."""

from __future__ import annotations

import socket
import struct

from aiohttp import web


def peer(request: web.Request) -> tuple[int, int]:
    """Return the caller's (pid, uid) from the kernel."""
    assert request.transport is not None
    return credentials(request.transport.get_extra_info("socket"))


def credentials(connection: socket.socket) -> tuple[int, int]:
    """Return the (pid, uid) of the process at the other end of a connection."""
    pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid
