"""Messages of policy rules (ip-rule(8)): their head, their numbers, and rules as the kernel reports them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from linkspan.core.addresses import BITS, SOCKET_FAMILY, Prefix
from linkspan.kernel.io.netlink import GETRULE, Socket, attributes

# linux/fib_rules.h
DST, SRC, IIF, PRIORITY, FWMARK, SUPPRESS, TABLE, FWMASK, OIF = 1, 2, 3, 6, 10, 14, 15, 16, 17
UID, PROTOCOL, IP_PROTO, SPORTS, DPORTS = 20, 21, 22, 23, 24
INVERT = 0x2
TO_TABLE = 1  # FR_ACT_TO_TBL
HEADER = struct.Struct("=BBBBBxxBI")
"""struct fib_rule_hdr: family, lengths of destination and source, TOS, table, action, flags."""


class ReportedRule(NamedTuple):
    """A rule as the kernel reports it: its family (4 or 6), its head, and its attributes (FRA_*)."""

    family: int
    lengths: tuple[int, int]
    """Of the destination's and the source's prefix."""
    tos: int
    table: int
    """The table if its number is below 256; ``number(TABLE)`` has it in any case."""
    action: int
    flags: int
    found: dict[int, bytes]

    @property
    def source(self) -> Prefix:
        """Return the source's prefix, that of all addresses if it does not select by source."""
        return Prefix(bytes(self.found.get(SRC, bytes(BITS[self.family] // 8))), self.lengths[1])

    @property
    def target(self) -> Prefix:
        """Return the destination's prefix."""
        return Prefix(bytes(self.found.get(DST, bytes(BITS[self.family] // 8))), self.lengths[0])

    def number(self, kind: int, default: int = 0) -> int:
        """Return a 32-bit attribute."""
        return int(struct.unpack("=I", self.found[kind])[0]) if kind in self.found else default


def reported(socket: Socket, family: int) -> Iterator[ReportedRule]:
    """Yield the rules of a family in the socket's namespace. Raises KernelError."""
    number = SOCKET_FAMILY[family]
    for payload in socket.dump(GETRULE, HEADER.pack(number, 0, 0, 0, 0, 0, 0), "list rules"):
        there, to_length, from_length, tos, table, action, flags = HEADER.unpack_from(payload)
        if there == number:
            found = attributes(payload, HEADER.size)
            yield ReportedRule(family, (to_length, from_length), tos, table, action, flags, found)
