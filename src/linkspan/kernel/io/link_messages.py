"""Link messages: their head, and the numbers of the attributes that several modules read or write."""

from __future__ import annotations

import struct

# linux/if.h
IFF_UP = 0x1
# linux/if_link.h
ADDRESS, IFNAME, MTU, MASTER, LINKINFO, NET_NS_FD, PROP_LIST, ALT_IFNAME = 1, 3, 4, 10, 18, 28, 52, 53
INFO_KIND, INFO_DATA, INFO_SLAVE_KIND, INFO_SLAVE_DATA = 1, 2, 4, 5
VETH_PEER, BRPORT_HAIRPIN = 1, 4
DEVGROUP = 27  # IFLA_GROUP
LINK_NETNSID = 37  # IFLA_LINK_NETNSID
NESTED = 0x8000
IFINFO = struct.Struct("=BxHiII")


def ifinfo(up: bool | None = None) -> bytes:
    """Pack a link message's head: for a link by name, set up or down, or (None) unchanged."""
    return IFINFO.pack(0, 0, 0, IFF_UP if up else 0, 0 if up is None else IFF_UP)
