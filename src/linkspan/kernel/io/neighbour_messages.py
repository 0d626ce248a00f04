"""Neighbour messages (neighbours and FDB entries): their head, their numbers, and single entries of the kernel."""

from __future__ import annotations

import struct
from typing import NamedTuple

from linkspan.core.addresses import SOCKET_FAMILY
from linkspan.core.errors import KernelError
from linkspan.kernel.io.netlink import GETNEIGH, Message, Socket, attr, attributes, u32

# linux/neighbour.h
DST, LLADDR, _MASTER, PROTOCOL = 1, 2, 9, 12
PERMANENT, NOARP, INCOMPLETE, FAILED = 0x80, 0x40, 0x01, 0x20
SELF, OF_BRIDGE = 0x02, 0x04  # NTF_SELF, NTF_MASTER
NDMSG = struct.Struct("=BxxxiHBB")
AF_BRIDGE = 7  # linux/socket.h: the family of FDB entries


class Entry(NamedTuple):
    """An entry as the kernel reports it: its link's index, its state (NUD_*) and its attributes (NDA_*)."""

    link: int
    state: int
    found: dict[int, bytes]

    @property
    def mac(self) -> bytes:
        """Return the MAC, b'' if the entry has none."""
        return bytes(self.found.get(LLADDR, b""))

    @property
    def address(self) -> bytes:
        """Return the address: of the neighbour, or (FDB) on the underlay; b'' without."""
        return bytes(self.found.get(DST, b""))

    @property
    def resolved(self) -> bool:
        """Return whether the kernel has a MAC for the neighbour, however old."""
        return bool(self.mac) and not self.state & (INCOMPLETE | FAILED)


def neighbour(socket: Socket, link: int, address: bytes) -> Entry | None:
    """Return the neighbour table's entry for an address on a link, None if there is none."""
    family = SOCKET_FAMILY[4 if len(address) == 4 else 6]
    return _asked(socket, NDMSG.pack(family, link, 0, 0, 0) + attr(DST, address))


def tunnel_entry(socket: Socket, link: int, mac: bytes) -> Entry | None:
    """Return the FDB entry that a VXLAN device has for a MAC, None if there is none."""
    return _asked(socket, NDMSG.pack(AF_BRIDGE, link, 0, SELF, 0) + attr(LLADDR, mac))


def bridge_entry(socket: Socket, bridge: int, mac: bytes) -> Entry | None:
    """Return the FDB entry that a bridge has for a MAC, None if there is none; its link is the port."""
    return _asked(socket, NDMSG.pack(AF_BRIDGE, 0, 0, 0, 0) + attr(LLADDR, mac) + u32(_MASTER, bridge))


def _asked(socket: Socket, body: bytes) -> Entry | None:
    try:
        answer = socket.get(Message(GETNEIGH, 0, body, "find neighbour"))
    except KernelError:
        return None
    _, index, state, _, _ = NDMSG.unpack_from(answer)
    return Entry(index, state, attributes(answer, NDMSG.size))
