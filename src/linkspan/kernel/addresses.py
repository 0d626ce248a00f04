"""Addresses on links: on the host those of our links (and what we put), in a container those of its interfaces."""

from __future__ import annotations

import errno
import functools
import struct
from collections.abc import Iterable, Mapping, Sequence

from linkspan.addresses import BITS, SOCKET_FAMILY, Prefix
from linkspan.contracts import Support
from linkspan.errors import LinkspanError
from linkspan.kernel import batch
from linkspan.kernel.netlink import (
    DELADDR,
    F_CREATE,
    F_REPLACE,
    GETADDR,
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
OURS = ("ls-", "lsr", "lsp", "lsx", "lsipip", "lsipsec", "lswg", "ipsec")
"""Our links' names begin so; whether a link of such a name is ours, its alternative name tells."""


class AddressDriver:
    """Address."""

    kinds: tuple[type[State], ...] = (Address,)

    def __init__(self, sockets: Sockets) -> None:
        self._sockets = sockets

    def probe(self) -> Support:
        """Every kernel has addresses."""
        return Support("kernel")

    def observe(self, netns: int) -> Iterable[State]:
        """Return the global addresses on our links, or on all but lo in a container."""
        names = self._sockets.names(netns)
        ours = self._sockets.own_links() if netns == HOST else frozenset(names.values())
        for payload in self._sockets.at(netns).dump(GETADDR, _IFADDR.pack(0, 0, 0, 0, 0), "list addresses"):
            family, length, _, scope, index = _IFADDR.unpack_from(payload)
            name = names.get(index, "lo")
            if family not in SOCKET_FAMILY.values() or name == "lo" or scope not in (0, 253):
                continue
            if name not in ours:
                continue
            found = attributes(payload, 8)
            address = Address(name, Prefix(bytes(found.get(_LOCAL) or found[_ADDRESS]), length), netns)
            if not _kernel_made(found, address.prefix):
                yield address

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Add and remove addresses; one whose link is gone is gone."""
        failed = batch.send(self._sockets, put, functools.partial(_message, kind=NEWADDR))
        gone = (errno.EADDRNOTAVAIL, errno.ENODEV)
        return failed | batch.send(self._sockets, delete, functools.partial(_message, kind=DELADDR), gone)


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
