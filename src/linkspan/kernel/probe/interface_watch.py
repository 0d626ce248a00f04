"""Interface watch: listens in a container's namespace for changes of one interface."""

from __future__ import annotations

import errno

from linkspan.kernel.io import link_messages
from linkspan.kernel.io.namespaces import Namespaces
from linkspan.kernel.io.neighbour_messages import AF_BRIDGE
from linkspan.kernel.io.netlink import NEWLINK, ROUTE, Socket

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
                    if kind == NEWLINK and body[0] != AF_BRIDGE:
                        there = link_messages.link(body)
                        last = (there.mac, there.mtu) if there.name == self._ifname else last
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
        return last

    def _present(self) -> Values | None:
        there = link_messages.find(self._socket, self._ifname)
        return None if there is None else (there.mac, there.mtu)
