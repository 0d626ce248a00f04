"""Addresses on links: on the host those of our links (and our own others), in a container those of its interfaces.

With an address the kernel makes routes: one that delivers packets to the address (table local), and one to
the prefix. An address on the host is useless without them. The kernel makes more routes if an address has a
peer (a route to it alone) or another broadcast address (which it accepts itself), and chooses another source
if the scope is narrow or the flags say so. Only a new address gets exactly the routes of linkspan's
addresses, so one that differs is removed and added again.
"""

from __future__ import annotations

import errno
import functools
import shlex
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence

from linkspan.core.addresses import BITS, SOCKET_FAMILY, Prefix
from linkspan.core.driver_contract import Support
from linkspan.core.errors import KernelError, LinkspanError
from linkspan.core.kinds import Event, Kind, Sort, on_device
from linkspan.core.shell import Shell
from linkspan.core.states.host import HOST, Address, Key, Neighbour, Route, State
from linkspan.kernel.io import batch, route_messages
from linkspan.kernel.io.address_messages import (
    ADDRESS,
    BROADCAST,
    FLAGS,
    IFADDR,
    LOCAL,
    METRIC,
    PERMANENT,
    TEMPORARY,
    HeldAddress,
    held,
)
from linkspan.kernel.io.link_messages import names_of, own_of
from linkspan.kernel.io.netlink import (
    DELADDR,
    F_CREATE,
    F_REPLACE,
    GETROUTE,
    NEWADDR,
    Message,
    attr,
    attributes,
    u32,
)
from linkspan.kernel.io.route_messages import DST, OIF, RTMSG, TABLE_LOCAL, TABLE_MAIN, UNICAST
from linkspan.kernel.io.sockets import Sockets
from linkspan.kernel.local_host import LocalHost

_NODAD = 0x02  # linux/if_addr.h
_FLAWS = {0x08: "dadfailed", 0x20: "deprecated", 0x40: "tentative", 0x100: "mngtmpaddr"}
_SCOPES = {200: "scope site", 253: "scope link", 254: "scope host"}
_KERNEL = 2  # RTPROT_KERNEL in linux/rtnetlink.h


class AddressDriver:
    """Address."""

    def __init__(self, sockets: Sockets) -> None:
        self._sockets = sockets
        self._wrong: dict[Key, list[bytes]] = {}
        """Of the host's addresses, those that were amiss at the last look: the peer of each in the kernel.

        The kernel tells IPv4 addresses apart by their peers, too, so one address may be there several times.
        """

    def probe(self) -> Support:
        """Return support: every kernel has addresses."""
        return Support("kernel")

    def observe(self, netns: int) -> Iterable[State]:
        """Return the global addresses on our links, or on all but lo in a container."""
        links = self._sockets.links(netns)
        names = names_of(links)
        ours = set((own_of(links) if netns == HOST else names).values()) - {"lo"}
        routes = self._routes() if netns == HOST and ours else frozenset()
        wrong: dict[Key, list[bytes]] = {}
        found: dict[Key, Address] = {}
        for one in held(self._sockets.at(netns)):
            name = names.get(one.link, "lo")
            if name not in ours or _kernel_made(one, netns):
                continue
            address = Address(name, one.prefix, netns)
            if netns == HOST:
                amiss = [*_amiss(one)]
                if not _routes_of(one.link, one.prefix) <= routes and self._up(name):
                    amiss.append("no route")
                if amiss:
                    wrong.setdefault(address.key, []).append(_peer(one))
                before = found.get(address.key, address).amiss
                address = Address(name, one.prefix, netns, (*before, *amiss))
            found[address.key] = address
        if netns == HOST:
            self._wrong = wrong
        return found.values()

    def _up(self, name: str) -> bool:
        """Return whether a link is up: a link that is down has no routes, and another driver sets it up."""
        return self._sockets.link(HOST, name).up

    def _routes(self) -> frozenset[_KernelRoute]:
        """Return the routes that the kernel made for the host's addresses."""
        found = set()
        for family in SOCKET_FAMILY.values():
            for table, type_ in ((TABLE_LOCAL, route_messages.LOCAL), (TABLE_MAIN, UNICAST)):
                body = RTMSG.pack(family, 0, 0, 0, table, _KERNEL, 0, 0, 0)
                for payload in self._dumped(body):
                    if (payload[4], payload[5], payload[7]) == (table, _KERNEL, type_):
                        attached = attributes(payload, 12)
                        index = struct.unpack("=I", attached.get(OIF, bytes(4)))[0]
                        found.add((index, bytes(attached.get(DST, b"")), payload[1]))
        return frozenset(found)

    def _dumped(self, body: bytes) -> list[bytes]:
        try:
            return self._sockets.at(HOST).dump(GETROUTE, body, "list the kernel's routes")
        except KernelError as error:
            if error.errno == errno.ENOENT:  # a table exists from its first route on
                return []
            raise

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Add and remove addresses; one whose link is gone counts as removed."""
        gone = (errno.EADDRNOTAVAIL, errno.ENODEV)
        for state in (*put, *delete):
            for peer in self._wrong.pop(state.key, ()):
                batch.send(self._sockets, [state], functools.partial(_message, kind=DELADDR, peer=peer), gone)
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


def _kernel_made(one: HeldAddress, netns: int) -> bool:
    """Return whether the kernel made an address: fe80::/64 or, in a container, by router advertisement.

    The latter is not permanent. On the host, our links ignore advertisements.
    """
    if netns != HOST and not one.flags & PERMANENT:
        return True
    return one.prefix.packed[:2] == b"\xfe\x80" and one.prefix.length == 64


def _amiss(one: HeldAddress) -> Iterator[str]:
    """Yield, in iproute2's words, properties of an address that differ from linkspan's, and misdirect packets."""
    _, prefix, scope, told = one
    if (peer := _peer(one)) != prefix.packed:
        yield f"peer {Prefix(peer, prefix.length)}"
    if scope and prefix.family == 4:  # IPv6's scope follows from the address
        yield _SCOPES.get(scope, f"scope {scope}")
    if prefix.family == 4 and told.get(BROADCAST, b"") != _broadcast(prefix):
        yield "brd"
    flags = one.flags
    if not flags & PERMANENT:
        yield "valid_lft"
    if flags & TEMPORARY:
        yield "secondary" if prefix.family == 4 else "temporary"
    yield from (word for flag, word in _FLAWS.items() if flags & flag)
    if any(told.get(METRIC, b"")):
        yield "metric"


def _peer(one: HeldAddress) -> bytes:
    """Return the other end's address, or the address itself if there is no other end."""
    return bytes(one.found.get(ADDRESS, bytes(len(one.prefix.packed))))


def _broadcast(prefix: Prefix) -> bytes:
    """Return the broadcast address of an IPv4 prefix, b"" if it has none."""
    if prefix.length >= BITS[4] - 1:
        return b""
    return (int.from_bytes(prefix.packed, "big") | (1 << (32 - prefix.length)) - 1).to_bytes(4, "big")


def _message(state: Address, index: int, kind: int, peer: bytes = b"") -> Message:
    packed, family = state.prefix.packed, state.prefix.family
    body = IFADDR.pack(SOCKET_FAMILY[family], state.prefix.length, 0, 0, index)
    body += attr(LOCAL, packed) + attr(ADDRESS, peer or packed)
    if kind == NEWADDR:
        body += u32(FLAGS, _NODAD)
        if family == 4 and (broadcast := _broadcast(state.prefix)):
            body += attr(BROADCAST, broadcast)
    verb = "add" if kind == NEWADDR else "remove"
    flags = F_CREATE | F_REPLACE if kind == NEWADDR else 0
    return Message(kind, flags, body, f"{verb} address {state.prefix} on {state.device}")


def driver(host: LocalHost) -> AddressDriver:
    """Return the driver of addresses."""
    return AddressDriver(host.sockets)


def _add(state: Address, shell: Shell) -> tuple[str, ...]:
    more = " nodad" if state.prefix.family == 6 else " brd +" if state.prefix.length < 31 else ""
    return (f"{shell.ip(state.netns)} addr replace {state.prefix} dev {shlex.quote(state.device)}{more}",)


KINDS = (
    Kind(
        state=Address,
        rank=50,
        driver=driver,
        known_by="its link",
        purpose="an address on a link",
        sort=Sort.PLACE,
        commands=_add,
        on=on_device,
        falls=True,
        # The kernel drops routes that use it as their source and, with a link's last IPv4 address, all
        # neighbours.
        takes_along=(Route, Neighbour),
        events=frozenset({Event.ADDRESS, Event.ADDRESS_GONE}),
    ),
)
