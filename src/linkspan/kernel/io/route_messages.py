"""Route messages: their head, and the numbers and values of the attributes that several modules read or write."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from linkspan.kernel.io.netlink import attributes

# linux/rtnetlink.h
DST, SRC, IIF, OIF, GATEWAY, PRIORITY, PREFSRC, METRICS, MULTIPATH = 1, 2, 3, 4, 5, 6, 7, 8, 9
TABLE, MARK, VIA, ENCAP_TYPE, ENCAP, IP_PROTO, SPORT, DPORT = 15, 16, 18, 21, 22, 27, 28, 29
METRIC_MTU, METRIC_HOPLIMIT = 2, 10
UNICAST, LOCAL, UNREACHABLE = 1, 2, 7  # RTN_*
TABLE_MAIN, TABLE_LOCAL = 254, 255
BIRD = 12  # RTPROT_BIRD
FIB_MATCH = 0x2000  # RTM_F_FIB_MATCH: answer with the route that matches
ENCAP_XFRM, IF_ID = 10, 1  # linux/lwtunnel.h: LWTUNNEL_ENCAP_XFRM, LWT_XFRM_IF_ID
RTMSG = struct.Struct("=BBBBBBBBI")


def metrics_of(found: Mapping[int, bytes]) -> dict[int, int]:
    """Return the metrics (RTAX_*) in a route's attributes."""
    metrics = attributes(found.get(METRICS, b""))
    return {kind: struct.unpack("=I", value)[0] for kind, value in metrics.items() if len(value) == 4}


def if_id(found: Mapping[int, bytes]) -> int:
    """Return the XFRM interface's if_id in a route's attributes, 0 if there is none."""
    if ENCAP not in found or found.get(ENCAP_TYPE) != struct.pack("=H", ENCAP_XFRM):
        return 0
    return int(struct.unpack("=I", attributes(found[ENCAP])[IF_ID])[0])
