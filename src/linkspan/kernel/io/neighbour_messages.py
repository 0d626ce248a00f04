"""Neighbour messages (neighbours and FDB entries): their head, and the numbers that several modules read."""

from __future__ import annotations

import struct

# linux/neighbour.h
DST, LLADDR, PROTOCOL = 1, 2, 12
PERMANENT, NOARP, INCOMPLETE, FAILED = 0x80, 0x40, 0x01, 0x20
NDMSG = struct.Struct("=BxxxiHBB")
AF_BRIDGE = 7  # linux/socket.h: the family of FDB entries
