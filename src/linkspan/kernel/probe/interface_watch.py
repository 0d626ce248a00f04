"""Interface watch: listens in a container's namespace for changes of one interface."""

from __future__ import annotations

import errno
import struct

from linkspan.core.errors import KernelError
from linkspan.kernel.io.link_messages import ADDRESS, IFNAME, MTU, ifinfo
from linkspan.kernel.io.namespaces import Namespaces
from linkspan.kernel.io.neighbour_messages import AF_BRIDGE
from linkspan.kernel.io.netlink import GETLINK, NEWLINK, ROUTE, Message, Socket, attributes, string, text

_LINKS = 1  # RTNLGRP_LINK in linux/rtnetlink.h

Values = tuple[bytes, int]
"""MAC and MTU."""


class InterfaceWatch:
    """One interface, watched from inside its namespace, which lives at least until the watch is closed."""

    def __init__(self, namespaces: Namespaces, ifname: str, fd: int) -> None:
        """Listen in an open namespace (worker thread), whose descriptor stays the caller's. Raises LinkspanError."""
        self._ifname = ifname
        with namespaces.holding(fd) as number, namespaces.entered(number):
            self._socket = Socket(ROUTE, (_LINKS,))
        try:
            self.found = self._present()
            """The values at the beginning, None if there is no such interface; earlier changes are in them."""
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor, for a loop to watch."""
        return self._socket.fileno()

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()

    def changed(self) -> Values | None:
        """Read the changes that have come, and return the values after the last one, None if there was none."""
        last = None
        try:
            while True:
                for kind, _, body in self._socket.receive():
                    if kind == NEWLINK and body[0] != AF_BRIDGE and (link := _shown(body))[0] == self._ifname:
                        last = link[1:]
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
        return last

    def _present(self) -> Values | None:
        what = f"find {self._ifname} in the container"
        try:
            body = self._socket.get(Message(GETLINK, 0, ifinfo() + text(IFNAME, self._ifname), what))
        except KernelError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return _shown(body)[1:]


def _shown(body: bytes) -> tuple[str, bytes, int]:
    """Return the name, the MAC and the MTU in a link message's body."""
    found = attributes(body, 16)
    mtu = struct.unpack("=I", found[MTU])[0] if MTU in found else 0
    return string(found.get(IFNAME, b"")), bytes(found.get(ADDRESS, b"")), mtu
