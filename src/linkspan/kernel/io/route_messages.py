"""Route messages: their head, and the numbers of the attributes that several modules read or write."""

from __future__ import annotations

import struct

# linux/rtnetlink.h
DST, SRC, IIF, OIF, GATEWAY, PRIORITY, PREFSRC, METRICS, MULTIPATH = 1, 2, 3, 4, 5, 6, 7, 8, 9
METRIC_MTU, METRIC_HOPLIMIT = 2, 10
UNICAST, LOCAL = 1, 2  # RTN_*
TABLE_MAIN, TABLE_LOCAL = 254, 255
RTMSG = struct.Struct("=BBBBBBBBI")
