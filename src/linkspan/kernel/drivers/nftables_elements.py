"""Elements of plain sets and maps, by nfnetlink: the hot path of attach and detach, and of many peers at once.

libnftables reads all tables, sets and chains from the kernel before each transaction, some 20 round trips. An element
of a plain set needs none of them: its key is the parts in network order, each padded to four bytes in a
concatenation (NFT_REG32_SIZE in linux/netfilter/nf_tables.h). The data of a map is packed in the same way, or it is
a verdict.
"""

from __future__ import annotations

import functools
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import msgspec

from linkspan.core.errors import KernelError, of_errno
from linkspan.core.states.host import NftElement, NftSet
from linkspan.kernel.drivers.nftables_chains import FAMILIES, verdict
from linkspan.kernel.io.netlink import ATTR, F_CREATE, Message, Socket, attr, text

# linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NEW_ELEMENT, _DELETE_ELEMENT = (_SUBSYSTEM << 8) | 12, (_SUBSYSTEM << 8) | 14
_TABLE, _SET, _ELEMENTS = 1, 2, 3
_ITEM, _KEY, _DATA, _VALUE = 1, 1, 2, 1
_NESTED = 0x8000
_PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}  # IANA protocol numbers

_PACKERS: dict[str, Callable[[str], bytes]] = {
    "ifname": lambda part: part.encode().ljust(16, b"\0"),  # IFNAMSIZ
    "ether_addr": lambda part: bytes.fromhex(part.replace(":", "")),
    "ipv4_addr": lambda part: socket.inet_pton(socket.AF_INET, part),
    "ipv6_addr": lambda part: socket.inet_pton(socket.AF_INET6, part),
    "inet_proto": lambda part: bytes([_PROTOCOLS[part]]),
    "inet_service": lambda part: struct.pack(">H", int(part)),
    "mark": lambda part: struct.pack("=I", int(part)),
    "iface_index": lambda part: struct.pack("=I", link_index(part)),
}
_SIZES = {
    "ifname": 16,
    "ether_addr": 6,
    "ipv4_addr": 4,
    "ipv6_addr": 16,
    "inet_proto": 1,
    "inet_service": 2,
    "mark": 4,
    "iface_index": 4,
}
_FULL = 60000
"""Bytes of elements in one message: the list is an attribute, whose length has 16 bits."""


_VERDICTS = ("verdict",)
"""The data of a verdict map: ``jump CHAIN`` or another one of ``nftables_chains.verdict``."""


class Layout(msgspec.Struct, frozen=True):
    """The types of a set's elements: of the key's parts, and of the data's."""

    key: tuple[str, ...]
    data: tuple[str, ...]


def layout(state: NftSet) -> Layout | None:
    """Return a set's layout, None for a set that needs libnftables: intervals, other types."""
    key = tuple(state.type.split(" . "))
    data = tuple(state.data.split(" . ")) if state.data else ()
    parts = key if data == _VERDICTS else (*key, *data)
    known = not (state.interval or state.dynamic) and all(part in _PACKERS for part in parts)
    return Layout(key, data) if known else None


def link_index(name: str) -> int:
    """Return the index of a link of the calling thread's namespace. Raises KernelError if there is none."""
    try:
        return socket.if_nametoindex(name)
    except OSError as error:
        raise of_errno(error.errno or 0, f"find link {name}") from error


def _size(types: Sequence[str]) -> int:
    """Return the length of a key or data of these types, in bytes."""
    sizes = [_SIZES[one] for one in types]
    return sizes[0] if len(sizes) == 1 else sum((one + 3) & ~3 for one in sizes)


def _value(kind: int, types: Sequence[str], before: bytes = b"") -> Callable[[Sequence[str]], bytes]:
    """Return what packs a key or data of these types as an attribute, behind the bytes ``before``."""
    size = _size(types)
    head = before + ATTR.pack(8 + ((size + 3) & ~3), kind | _NESTED) + ATTR.pack(4 + size, _VALUE)
    packers, pads = [_PACKERS[one] for one in types], [bytes(-_SIZES[one] % 4) for one in types]
    if len(types) == 1:
        (pack,), (pad,) = packers, pads
        return lambda parts: head + pack(parts[0]) + pad

    def packed(parts: Sequence[str]) -> bytes:
        found = head
        for pack, part, pad in zip(packers, parts, pads, strict=True):
            found += pack(part) + pad
        return found

    return packed


@functools.cache
def _packer(of: Layout, *, add: bool) -> Callable[[NftElement], bytes]:
    """Return what packs an element of a set for a message; a deletion names it by its key alone."""
    with_data = bool(of.data) and add
    if with_data and of.data == _VERDICTS:
        to = _value(_KEY, of.key)

        def leading(element: NftElement) -> bytes:
            return attr(_ITEM | _NESTED, to(element.parts) + attr(_DATA | _NESTED, verdict(element.data[0])))

        return leading
    length = 4 + sum(8 + ((_size(one) + 3) & ~3) for one in ((of.key, of.data) if with_data else (of.key,)))
    key = _value(_KEY, of.key, ATTR.pack(length, _ITEM | _NESTED))
    if not with_data:
        return lambda element: key(element.parts)
    data = _value(_DATA, of.data)
    return lambda element: key(element.parts) + data(element.data)


def _of_set(elements: Sequence[NftElement], of: Layout, *, add: bool) -> Iterator[Message]:
    """Yield messages that add or delete the elements of one set."""
    first, pack = elements[0], _packer(of, add=add)
    header = bytes([FAMILIES[first.family], 0, 0, 0]) + text(_TABLE, first.table) + text(_SET, first.set)
    verb, flags = (_NEW_ELEMENT, F_CREATE) if add else (_DELETE_ELEMENT, 0)
    what = f"elements of {first.family} {first.table} {first.set}"
    items = [pack(element) for element in elements]
    at_once = _FULL // max(map(len, items))
    for start in range(0, len(items), at_once):
        body = header + attr(_ELEMENTS | _NESTED, b"".join(items[start : start + at_once]))
        yield Message(verb, flags, body, what)


def messages(
    elements: Iterable[NftElement], layouts: Mapping[tuple[str, str, str], Layout], *, add: bool
) -> Iterator[Message]:
    """Yield messages that add or delete elements of sets with these layouts."""
    by_set: dict[tuple[str, str, str], list[NftElement]] = {}
    for element in elements:
        by_set.setdefault((element.family, element.table, element.set), []).append(element)
    for name, found in by_set.items():
        yield from _of_set(found, layouts[name], add=add)


def transact(netlink: Socket, batch: Sequence[Message]) -> KernelError | None:
    """Send messages as one transaction; return the first error, after which nothing was changed."""
    border = struct.pack(">BBH", 0, 0, _SUBSYSTEM)
    return netlink.transaction(
        Message(_BATCH_BEGIN, 0, border, "begin"), batch, Message(_BATCH_END, 0, border, "end")
    )
