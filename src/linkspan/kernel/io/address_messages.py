"""Address messages: their head, the numbers of their attributes, and addresses as the kernel reports them."""

from __future__ import annotations

import struct
from typing import NamedTuple

from linkspan.core.addresses import SOCKET_FAMILY, Prefix
from linkspan.kernel.io.netlink import GETADDR, Socket, attributes

# linux/if_addr.h
ADDRESS, LOCAL, BROADCAST, CACHEINFO, FLAGS, METRIC = 1, 2, 4, 6, 8, 9
TEMPORARY, DEPRECATED, PERMANENT = 0x01, 0x20, 0x80  # IFA_F_*; the first is _SECONDARY for IPv4
UNIVERSE = 0  # RT_SCOPE_UNIVERSE in linux/rtnetlink.h
EGRESS_METRIC = 76_000
"""Metric (IFA_RT_PRIORITY) of egress addresses. It has no effect, because they make no route of their own: it marks
them as ours."""
IFADDR = struct.Struct("=BBBBI")


class HeldAddress(NamedTuple):
    """An address as the kernel reports it: its link's index, its scope (RT_SCOPE_*), and its attributes (IFA_*)."""

    link: int
    prefix: Prefix
    scope: int
    found: dict[int, bytes]

    @property
    def flags(self) -> int:
        """Return IFA_F_*."""
        return int(struct.unpack("=I", self.found[FLAGS])[0]) if FLAGS in self.found else PERMANENT

    @property
    def is_egress(self) -> bool:
        """Return whether it is a network's egress address, which linkspan has put there for a moment."""
        return self.found.get(METRIC) == struct.pack("=I", EGRESS_METRIC)


def held(socket: Socket, link: int = 0) -> list[HeldAddress]:
    """Return the IPv4 and IPv6 addresses of the socket's namespace, or those of one link. Raises KernelError."""
    found = []
    for payload in socket.dump(GETADDR, IFADDR.pack(0, 0, 0, 0, link), "list addresses"):
        family, length, _, scope, index = IFADDR.unpack_from(payload)
        if family in SOCKET_FAMILY.values() and link in (0, index):
            told = attributes(payload, IFADDR.size)
            prefix = Prefix(bytes(told.get(LOCAL) or told[ADDRESS]), length)
            found.append(HeldAddress(index, prefix, scope, told))
    return found
