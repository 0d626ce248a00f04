"""Addresses on links: on the host those of our links (and what we put), in a container those of its interfaces.

With an address the kernel makes routes: one that takes packets to the address in (table local), one to the prefix. An
address on the host without them is of no use. Only a new address gets them, so such a one is removed and added.
"""

from __future__ import annotations

import errno
import functools
import struct
from collections.abc import Iterable, Mapping, Sequence

from linkspan.addresses import BITS, SOCKET_FAMILY, Prefix
from linkspan.contracts import Support
from linkspan.errors import KernelError, LinkspanError
from linkspan.kernel import batch
from linkspan.kernel.link_attributes import IFF_UP
from linkspan.kernel.netlink import (
    DELADDR,
    F_CREATE,
    F_REPLACE,
    GETADDR,
    GETROUTE,
    NEWADDR,
    Message,
    Sockets,
    attr,
    attributes,
    u32,
)
from linkspan.state import HOST, Address, Key, State

# linux/if_addr.h
_ADDRESS, _LOCAL, _FLAGS = 1, 2, 8
_NODAD, _PERMANENT = 0x02, 0x80
_IFADDR = struct.Struct("=BBBBI")
# linux/rtnetlink.h: struct rtmsg, RTPROT_KERNEL, RT_TABLE_MAIN, _LOCAL, RTN_UNICAST, _LOCAL, RTA_DST, _OIF
_RTMSG = struct.Struct("=BBBBBBBBI")
_KERNEL, _MAIN, _LOCAL_TABLE, _UNICAST, _LOCAL_TYPE, _DST, _OIF = 2, 254, 255, 1, 2, 1, 4
OURS = ("ls-", "lsr", "lsp", "lsx", "lsipip", "lsipsec", "lswg", "ipsec")
"""Our links' names begin so; whether a link of such a name is ours, its alternative name tells."""


class AddressDriver:
    """Address."""

    kinds: tuple[type[State], ...] = (Address,)

    def __init__(self, sockets: Sockets) -> None:
        self._sockets = sockets
        self._routeless: set[Key] = set()
        """Of the host's addresses, those whose routes were missing at the last look."""

    def probe(self) -> Support:
        """Every kernel has addresses."""
        return Support("kernel")

    def observe(self, netns: int) -> Iterable[State]:
        """Return the global addresses on our links, or on all but lo in a container."""
        names = self._sockets.names(netns)
        ours = set((self._sockets.own_links() if netns == HOST else names).values())
        routes = self._routes() if netns == HOST and ours else frozenset()
        self._routeless = self._routeless if netns != HOST else set()
        for payload in self._sockets.at(netns).dump(GETADDR, _IFADDR.pack(0, 0, 0, 0, 0), "list addresses"):
            family, length, _, scope, index = _IFADDR.unpack_from(payload)
            name = names.get(index, "lo")
            if family not in SOCKET_FAMILY.values() or name == "lo" or scope not in (0, 253):
                continue
            if name not in ours:
                continue
            found = attributes(payload, 8)
            address = Address(name, Prefix(bytes(found.get(_LOCAL) or found[_ADDRESS]), length), netns)
            if _kernel_made(found, address.prefix):
                continue
            if netns == HOST and not _routes_of(index, address.prefix) <= routes and self._up(name):
                self._routeless.add(address.key)
                address = Address(name, address.prefix, netns, ("no route",))
            yield address

    def _up(self, name: str) -> bool:
        """Tell whether a link is up: a link that is down has no routes, and is another driver's to set up."""
        return bool(self._sockets.flags(HOST, name) & IFF_UP)

    def _routes(self) -> frozenset[_KernelRoute]:
        """Return the routes that the kernel made for the host's addresses."""
        found = set()
        for family in SOCKET_FAMILY.values():
            for table, type_ in ((_LOCAL_TABLE, _LOCAL_TYPE), (_MAIN, _UNICAST)):
                body = _RTMSG.pack(family, 0, 0, 0, table, _KERNEL, 0, 0, 0)
                for payload in self._dumped(body):
                    if (payload[4], payload[5], payload[7]) == (table, _KERNEL, type_):
                        attached = attributes(payload, 12)
                        index = struct.unpack("=I", attached.get(_OIF, bytes(4)))[0]
                        found.add((index, bytes(attached.get(_DST, b"")), payload[1]))
        return frozenset(found)

    def _dumped(self, body: bytes) -> list[bytes]:
        try:
            return self._sockets.at(HOST).dump(GETROUTE, body, "list the kernel's routes")
        except KernelError as error:
            if error.errno == errno.ENOENT:  # a table comes with its first route
                return []
            raise

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Add and remove addresses; one whose link is gone is gone."""
        gone = (errno.EADDRNOTAVAIL, errno.ENODEV)
        if stale := [state for state in put if state.key in self._routeless]:
            batch.send(self._sockets, stale, functools.partial(_message, kind=DELADDR), gone)
            self._routeless.clear()
        failed = batch.send(self._sockets, put, functools.partial(_message, kind=NEWADDR))
        return failed | batch.send(self._sockets, delete, functools.partial(_message, kind=DELADDR), gone)


_KernelRoute = tuple[int, bytes, int]
"""The link's index, the destination and its length."""


def _routes_of(index: int, prefix: Prefix) -> set[_KernelRoute]:
    """Return the routes that the kernel makes with an address."""
    routes = {(index, prefix.packed, BITS[prefix.family])}
    if prefix.length < BITS[prefix.family]:
        routes.add((index, prefix.network().packed, prefix.length))
    return routes


def _kernel_made(found: dict[int, bytes], prefix: Prefix) -> bool:
    """Tell an address that the kernel made: by router advertisement (not permanent), or fe80::/64 of its own."""
    permanent = _FLAGS not in found or struct.unpack("=I", found[_FLAGS])[0] & _PERMANENT
    return not permanent or (prefix.packed[:2] == b"\xfe\x80" and prefix.length == 64)


def _message(state: Address, index: int, kind: int) -> Message:
    packed, family = state.prefix.packed, state.prefix.family
    scope = 253 if family == 6 and packed[:2] == b"\xfe\x80" else 0
    body = _IFADDR.pack(SOCKET_FAMILY[family], state.prefix.length, 0, scope, index)
    body += attr(_LOCAL, packed) + attr(_ADDRESS, packed)
    if kind == NEWADDR:
        body += u32(_FLAGS, _NODAD)
        if family == 4 and state.prefix.length < BITS[4] - 1:
            host = (1 << (32 - state.prefix.length)) - 1
            body += attr(4, (int.from_bytes(packed, "big") | host).to_bytes(4, "big"))  # IFA_BROADCAST
    verb = "add" if kind == NEWADDR else "remove"
    flags = F_CREATE | F_REPLACE if kind == NEWADDR else 0
    return Message(kind, flags, body, f"{verb} address {state.prefix} on {state.device}")
