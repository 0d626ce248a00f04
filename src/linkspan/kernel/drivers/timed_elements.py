"""Elements with an end of their own: the kernel takes each out of its set when its time is over.

They are no states, because they change by themselves. So nobody removes them as foreign, and no observation finds that
they differ. An agent that starts reads them, each with what is left of its time.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Iterator

import msgspec

from linkspan.core.addresses import BITS, Prefix
from linkspan.core.errors import KernelError
from linkspan.kernel.drivers.nftables_elements import transact
from linkspan.kernel.io.netlink import ATTR, F_CREATE, Message, Socket, attr, attributes, text

# linux/netfilter/nf_tables.h
_NEW_ELEMENT, _GET_ELEMENT, _DELETE_ELEMENT = (10 << 8) | 12, (10 << 8) | 13, (10 << 8) | 14
_TABLE, _SET, _ELEMENTS = 1, 2, 3  # NFTA_SET_ELEM_LIST_*
_ITEM, _KEY, _TIMEOUT, _EXPIRATION, _VALUE = 1, 1, 4, 5, 1  # NFTA_LIST_ELEM, NFTA_SET_ELEM_*, NFTA_DATA_VALUE
_NESTED, _TYPE = 0x8000, 0x3FFF
_INET = bytes([1, 0, 0, 0])  # NFPROTO_INET
_AT_ONCE = 1000
"""Elements of one message: the list is an attribute, whose length has 16 bits."""


class Timed(msgspec.Struct, frozen=True):
    """An address in a set of an inet table, and the seconds until it leaves it; 0: at once."""

    set: str
    address: Prefix
    seconds: float


def put(netlink: Socket, table: str, elements: Iterable[Timed]) -> None:
    """Put elements in one transaction, those that are there already with a new end. Raises KernelError.

    Kernels before 6.12 do not move the end of an element that is added again, so each is deleted and added. To delete
    one that is not there would be an error: so each is added before, which changes nothing if it is there. Of several
    for one address the last one counts: to delete it twice would be an error, too.
    """
    by_set: dict[str, dict[Prefix, Timed]] = {}
    for one in elements:
        by_set.setdefault(one.set, {})[one.address] = one
    batch = [message for name, some in by_set.items() for message in _of_set(table, name, list(some.values()))]
    # An element may end between being added and being deleted, if this thread is held up there.
    if batch and (error := transact(netlink, batch)) and (error := transact(netlink, batch)):
        raise error


def _of_set(table: str, name: str, elements: list[Timed]) -> Iterator[Message]:
    for start in range(0, len(elements), _AT_ONCE):
        some = elements[start : start + _AT_ONCE]
        with_end, bare = (b"".join(_packed(one, ends=ends) for one in some) for ends in (True, False))
        for kind, items in ((_NEW_ELEMENT, with_end), (_DELETE_ELEMENT, bare), (_NEW_ELEMENT, with_end)):
            body = _INET + text(_TABLE, table) + text(_SET, name) + attr(_ELEMENTS | _NESTED, items)
            yield Message(kind, F_CREATE if kind == _NEW_ELEMENT else 0, body, f"elements of {name}")


def _packed(one: Timed, *, ends: bool) -> bytes:
    key = attr(_KEY | _NESTED, attr(_VALUE, one.address.packed))
    milliseconds = struct.pack(">Q", max(1, round(one.seconds * 1000)))
    return attr(_ITEM | _NESTED, key + (attr(_TIMEOUT, milliseconds) if ends else b""))


def read(netlink: Socket, table: str, name: str) -> list[Timed]:
    """Return the elements of a set that still have time, none if there is no such set. Raises KernelError."""
    wanted = _INET + text(_TABLE, table) + text(_SET, name)
    try:
        payloads = netlink.dump(_GET_ELEMENT, wanted, f"list set {name}")
    except KernelError as error:
        if error.errno == errno.ENOENT:
            return []
        raise
    return [one for payload in payloads for one in _listed(name, attributes(payload, 4).get(_ELEMENTS, b""))]


def _listed(name: str, items: bytes) -> Iterator[Timed]:
    offset = 0
    while offset + 4 <= len(items):
        length, kind = ATTR.unpack_from(items, offset)
        if length < 4:
            break
        if kind & _TYPE == _ITEM:
            found = attributes(items[offset + 4 : offset + length])
            packed = attributes(found.get(_KEY, b"")).get(_VALUE, b"")
            left = int.from_bytes(found.get(_EXPIRATION, b""), "big")
            if len(packed) * 8 in BITS.values() and left:
                yield Timed(name, Prefix(packed, len(packed) * 8), left / 1000)
        offset += (length + 3) & ~3
