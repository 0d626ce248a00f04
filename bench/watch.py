"""Route events of kernels, for the benchmarks that wait for routes: this is no program."""

from __future__ import annotations

import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence

from linkspan.core.addresses import Prefix, prefix
from linkspan.kernel.io.netlink import attributes
from linkspan.lab import sockets

PATIENCE = 60.0
_ROUTES = 0x40  # RTMGRP_IPV4_ROUTE in linux/rtnetlink.h
_NEW, _DEL, _UNICAST, _DST = 24, 25, 1, 1
_BUFFER = 33  # SO_RCVBUFFORCE: 10,000 notifications have to find room
_HEADER = struct.Struct("=IHHII")


class Watch:
    """The notifications of a namespace's kernel about unicast routes in a pool."""

    def __init__(self, netns: str, pool: str) -> None:
        self._pool = prefix(pool)
        with sockets.inside(netns):
            self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self.socket.setsockopt(socket.SOL_SOCKET, _BUFFER, 64 << 20)
        self.socket.bind((0, _ROUTES))
        self.there: set[Prefix] = set()
        """Destinations that have come and not gone."""

    def read(self) -> None:
        """Take in what has come."""
        data = self.socket.recv(1 << 20)
        while len(data) >= _HEADER.size:
            length, kind = _HEADER.unpack_from(data)[:2]
            payload, data = data[_HEADER.size : length], data[(length + 3) & ~3 :]
            if kind in (_NEW, _DEL) and payload[7] == _UNICAST:
                destination = Prefix(bytes(attributes(payload, 12).get(_DST, bytes(4))), payload[1])
                if self._pool.holds(destination):
                    (self.there.add if kind == _NEW else self.there.discard)(destination)

    def close(self) -> None:
        """Listen no more."""
        self.socket.close()


def wait(watches: Sequence[Watch], holds: Callable[[], bool], what: str) -> None:
    """Read from all until a condition holds."""
    by = {watch.socket: watch for watch in watches}
    end = time.monotonic() + PATIENCE
    while not holds():
        ready = select.select(list(by), [], [], 1)[0]
        for one in ready:
            by[one].read()
        if time.monotonic() > end:
            sys.exit(f"error: not within {PATIENCE:.0f} s: {what}")
