"""Link messages: their head, the numbers of their attributes, and links as the kernel reports them."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable
from typing import NamedTuple

from linkspan.core.errors import KernelError
from linkspan.core.states.host import ALTNAME
from linkspan.kernel.io.netlink import (
    ATTR,
    GETLINK,
    NLA_TYPE,
    Message,
    Socket,
    attr,
    attributes,
    string,
    text,
    u32,
)

# linux/if.h
IFF_UP, IFF_NOARP = 0x1, 0x80
# linux/if_link.h
ADDRESS, IFNAME, MTU, LOWER, MASTER, LINKINFO, NET_NS_FD = 1, 3, 4, 5, 10, 18, 28
DEVGROUP, LINK_NETNSID, PROP_LIST, ALT_IFNAME = 27, 37, 52, 53
INFO_KIND, INFO_DATA, INFO_SLAVE_KIND, INFO_SLAVE_DATA = 1, 2, 4, 5
VETH_PEER, BRPORT_HAIRPIN = 1, 4
MACVLANS = ("macvlan", "macvtap")
_MACVLAN_MODE, _PASSTHRU = 1, struct.pack("=I", 8)
NESTED = 0x8000
IFINFO = struct.Struct("=BxHiII")
_WITHOUT_STATISTICS = u32(29, 1 << 3)
"""IFLA_EXT_MASK with RTEXT_FILTER_SKIP_STATS (linux/rtnetlink.h): IPv6's statistics are a quarter of the bytes."""
_INDEX_AND_FLAGS = struct.Struct("=4xiI")


def ifinfo(up: bool | None = None) -> bytes:
    """Pack a link message's head: for a link by name, set up or down, or (None) unchanged."""
    return IFINFO.pack(0, 0, 0, IFF_UP if up else 0, 0 if up is None else IFF_UP)


class Link(NamedTuple):
    """A link as the kernel reports it: its index, its flags (IFF_*) and its attributes (IFLA_*)."""

    number: int
    flags: int
    found: dict[int, bytes]

    @property
    def name(self) -> str:
        """Return the link's name."""
        return string(self.found[IFNAME])

    @property
    def up(self) -> bool:
        """Return whether the link is set up."""
        return bool(self.flags & IFF_UP)

    @property
    def kind(self) -> str:
        """Return the type of link (``ip -d link``), '' for hardware."""
        return string(self.info.get(INFO_KIND, b""))

    @property
    def info(self) -> dict[int, bytes]:
        """Return what the message has of the type of link, and of that of its master (IFLA_INFO_*)."""
        return attributes(self.found.get(LINKINFO, b""))

    @property
    def data(self) -> dict[int, bytes]:
        """Return the attributes of this type of link."""
        return attributes(self.info.get(INFO_DATA, b""))

    @property
    def bridge_port(self) -> dict[int, bytes]:
        """Return the attributes that the link has as a port of a bridge (IFLA_BRPORT_*), none if it is no such port."""
        info = self.info
        return attributes(info.get(INFO_SLAVE_DATA, b"")) if info.get(INFO_SLAVE_KIND) == b"bridge\0" else {}

    @property
    def mac(self) -> bytes:
        """Return the link-layer address: a MAC, or a tunnel's IP address; b'' without."""
        return bytes(self.found.get(ADDRESS, b""))

    @property
    def mtu(self) -> int:
        """Return the MTU, 0 if the message has none."""
        return self.number_of(MTU)

    @property
    def master(self) -> int:
        """Return the index of the bridge or bond of which it is a port, 0 if it is none."""
        return self.number_of(MASTER)

    @property
    def lower(self) -> int:
        """Return the index of the link that it is on, 0 if there is none, or if that is in another namespace."""
        return 0 if LINK_NETNSID in self.found else self.number_of(LOWER)

    @property
    def group(self) -> int:
        """Return the device group."""
        return self.number_of(DEVGROUP)

    @property
    def altnames(self) -> list[str]:
        """Return the alternative names."""
        data, offset, names = self.found.get(PROP_LIST, b""), 0, []
        while offset + 4 <= len(data):
            length, kind = ATTR.unpack_from(data, offset)
            if kind & NLA_TYPE == ALT_IFNAME:
                names.append(string(data[offset + 4 : offset + length]))
            offset += max(4, (length + 3) & ~3)
        return names

    @property
    def ours(self) -> bool:
        """Return whether it is linkspan's, whatever its name is: an alternative name says so."""
        return any(name.startswith(ALTNAME) for name in self.altnames)

    @property
    def takes_all(self) -> bool:
        """Return whether it takes every frame that its lower link receives: a macvlan in mode passthru."""
        return self.kind in MACVLANS and self.data.get(_MACVLAN_MODE) == _PASSTHRU

    def number_of(self, kind: int) -> int:
        """Return a 32-bit attribute, 0 without."""
        return int(struct.unpack("=I", self.found[kind])[0]) if kind in self.found else 0


def link(payload: bytes) -> Link:
    """Unpack a link message's body."""
    number, flags = _INDEX_AND_FLAGS.unpack_from(payload)
    return Link(number, flags, attributes(payload, IFINFO.size))


def links(socket: Socket, kind: str = "") -> list[Link]:
    """Return the links of the socket's namespace, all or those of one type."""
    only = attr(LINKINFO, text(INFO_KIND, kind)) if kind else b""
    return [one for one in map(link, bodies(socket, only)) if kind in ("", one.kind)]


def bodies(socket: Socket, only: bytes = b"") -> list[bytes]:
    """Return the body of each message about a link of the socket's namespace; ``only`` has attributes that filter.

    Two messages about a link that has not changed are mostly equal: they have no statistics. A bridge's have timers.
    """
    return socket.dump(GETLINK, ifinfo() + only + _WITHOUT_STATISTICS, "list links")


def by_name(socket: Socket, name: str) -> Link:
    """Return a link; raises KernelError (ENODEV) with its name."""
    return link(_asked(socket, name))


def index_of(socket: Socket, name: str) -> int:
    """Return a link's index, which every change needs; raises KernelError (ENODEV) with its name."""
    return int(_INDEX_AND_FLAGS.unpack_from(_asked(socket, name))[0])


def find(socket: Socket, name: str, by: int = IFNAME) -> Link | None:
    """Return the link with this name, or (``by`` ALT_IFNAME) with this alternative name; None if there is none."""
    try:
        return link(_asked(socket, name, by))
    except KernelError as error:
        if error.errno == errno.ENODEV:
            return None
        raise


def _asked(socket: Socket, name: str, by: int = IFNAME) -> bytes:
    return socket.get(Message(GETLINK, 0, ifinfo() + text(by, name) + _WITHOUT_STATISTICS, f"find link {name}"))


def by_index(socket: Socket, index: int) -> Link:
    """Return the link with an index; raises KernelError (ENODEV)."""
    body = IFINFO.pack(0, 0, index, 0, 0) + _WITHOUT_STATISTICS
    return link(socket.get(Message(GETLINK, 0, body, f"find link {index}")))


def names_of(links: Iterable[Link]) -> dict[int, str]:
    """Return links' names by their indexes."""
    return {one.number: one.name for one in links}


def own_of(links: Iterable[Link]) -> dict[int, str]:
    """Return the names of the host's links that are ours, by index."""
    return names_of(one for one in links if one.ours)
