"""Elements of plain sets and maps, by nfnetlink: the hot path of attach and detach.

libnftables reads all tables and sets from the kernel before each transaction, some 20 round trips. An element of
a plain set needs none of them: its key is the parts in network order, each padded to four bytes in a
concatenation (NFT_REG32_SIZE in linux/netfilter/nf_tables.h).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterable, Sequence

import msgspec

from linkspan.core.errors import KernelError
from linkspan.core.states.host import NftElement, NftSet
from linkspan.kernel.io.netlink import F_CREATE, Message, Socket, attr, text

# linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NEW_ELEMENT, _DELETE_ELEMENT = (_SUBSYSTEM << 8) | 12, (_SUBSYSTEM << 8) | 14
_TABLE, _SET, _ELEMENTS = 1, 2, 3
_ITEM, _KEY, _DATA, _VALUE = 1, 1, 2, 1
_NESTED = 0x8000
_FAMILIES = {"inet": 1, "bridge": 7}
_PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}  # IANA protocol numbers

_PACKERS: dict[str, Callable[[str], bytes]] = {
    "ifname": lambda part: part.encode().ljust(16, b"\0"),  # IFNAMSIZ
    "ether_addr": lambda part: bytes.fromhex(part.replace(":", "")),
    "ipv4_addr": lambda part: socket.inet_pton(socket.AF_INET, part),
    "ipv6_addr": lambda part: socket.inet_pton(socket.AF_INET6, part),
    "inet_proto": lambda part: bytes([_PROTOCOLS[part]]),
    "inet_service": lambda part: struct.pack(">H", int(part)),
    "mark": lambda part: struct.pack("=I", int(part)),
}


class Layout(msgspec.Struct, frozen=True):
    """The types of a set's elements: of the key's parts, and of the data's."""

    key: tuple[str, ...]
    data: tuple[str, ...]


def layout(state: NftSet) -> Layout | None:
    """Return a set's layout, None for a set that needs libnftables: intervals, other types."""
    key = tuple(state.type.split(" . "))
    data = tuple(state.data.split(" . ")) if state.data else ()
    known = not (state.interval or state.dynamic) and all(part in _PACKERS for part in (*key, *data))
    return Layout(key, data) if known else None


def _packed(types: Sequence[str], parts: Sequence[str]) -> bytes:
    values = [_PACKERS[type_](part) for type_, part in zip(types, parts, strict=True)]
    return values[0] if len(values) == 1 else b"".join(v + bytes(-len(v) % 4) for v in values)


def _value(kind: int, data: bytes) -> bytes:
    return attr(kind | _NESTED, attr(_VALUE, data))


def _message(verb: int, elements: Sequence[NftElement], of: Layout) -> Message:
    """Return one message for the elements of one set."""
    first = elements[0]
    items = b""
    for element in elements:
        item = _value(_KEY, _packed(of.key, element.parts))
        if of.data and verb == _NEW_ELEMENT:
            item += _value(_DATA, _packed(of.data, element.data))
        items += attr(_ITEM | _NESTED, item)
    header = bytes([_FAMILIES[first.family], 0, 0, 0])
    body = header + text(_TABLE, first.table) + text(_SET, first.set) + attr(_ELEMENTS | _NESTED, items)
    flags = F_CREATE if verb == _NEW_ELEMENT else 0
    return Message(verb, flags, body, f"elements of {first.family} {first.table} {first.set}")


def transact(
    netlink: Socket, elements: Iterable[NftElement], layouts: dict[tuple[str, str, str], Layout], *, add: bool
) -> KernelError | None:
    """Add or delete elements in one transaction; return the first error, after which nothing was changed."""
    by_set: dict[tuple[str, str, str], list[NftElement]] = {}
    for element in elements:
        by_set.setdefault((element.family, element.table, element.set), []).append(element)
    verb = _NEW_ELEMENT if add else _DELETE_ELEMENT
    messages = [_message(verb, found, layouts[name]) for name, found in by_set.items()]
    border = struct.pack(">BBH", 0, 0, _SUBSYSTEM)
    return netlink.transaction(
        Message(_BATCH_BEGIN, 0, border, "begin"), messages, Message(_BATCH_END, 0, border, "end")
    )
