"""Neighbours and FDB entries: permanent ones, on our tunnel devices or with our protocol number.

ARP and ND entries and a VXLAN device's FDB are one message with two families, and easily confused. A packet
to 10.244.2.9 behind a VXLAN: its *route* names the peer's address in the network (10.244.2.0) as the next
hop. The *neighbour* entry of that address gives the peer's VTEP MAC. The *FDB entry* of that MAC gives the
underlay address to which the frame is sent. A permanent entry on a device of ours is ours; on another device
(a gateway's entry on the underlay) entries with our protocol number are ours.

Notifications of a VXLAN's FDB do not say who changed it (the sender's port is 0, vxlan_fdb_notify in
drivers/net/vxlan), so the driver notes in ``own`` what it is about to change, and events look there.
"""

from __future__ import annotations

import errno
import functools
import shlex
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from linkspan.core.addresses import SOCKET_FAMILY, Prefix, mac_text
from linkspan.core.driver_contract import Support
from linkspan.core.errors import LinkspanError
from linkspan.core.kinds import Event, Kind, Kinds, Sort, on_device
from linkspan.core.shell import Shell, address_text
from linkspan.core.states.host import HOST, ROUTE_PROTOCOL, FdbEntry, Key, Neighbour, State
from linkspan.kernel.io.link_messages import names_of, own_of
from linkspan.kernel.io.neighbour_messages import (
    AF_BRIDGE,
    DST,
    LLADDR,
    NDMSG,
    NOARP,
    OF_BRIDGE,
    PERMANENT,
    PROTOCOL,
    SELF,
)
from linkspan.kernel.io.netlink import (
    ATTR,
    DELNEIGH,
    F_CREATE,
    F_REPLACE,
    GETNEIGH,
    NEWNEIGH,
    Message,
    attr,
    attributes,
)
from linkspan.kernel.io.sockets import Sockets
from linkspan.kernel.local_host import LocalHost

_OURS = bytes([ROUTE_PROTOCOL])
_ANY = 0
"""The family of a list of the neighbours of IPv4 and IPv6."""

_GONE = (errno.ENOENT, errno.ENODEV, errno.ENXIO)
_REMEMBERED = 1.0
"""Seconds for which a change counts as ours: its notification comes within the same send."""

# Attributes at fixed offsets, packed in one go: an address is a whole number of words, a MAC is padded. By
# the length of the address.
_ENTRY = {n: struct.Struct(f"=BxxxiHBBHH{n}sHH6s2x") for n in (4, 16)}
_FAMILY = {4: int(SOCKET_FAMILY[4]), 16: int(SOCKET_FAMILY[6])}
# The kernel's own order in a dump, address first for neighbours (neigh_fill_info), MAC first for FDB entries
# (vxlan_fdb_info): three times as fast as a search for each attribute, which is the fallback for another
# order.
_DUMPED = {n: struct.Struct(f"=HH{n}sHH6s") for n in (4, 16)}
_DUMPED_ENTRY = {n: struct.Struct(f"=HH6sxxHH{n}s") for n in (4, 16)}

_PLAIN_ENTRY = 52
"""Size in bytes of an entry with only an IPv4 address and its times (NDA_CACHEINFO)."""

_TIMES = 3  # NDA_CACHEINFO
# Most entries are IPv4's: an address and a MAC, in either order, and then the times. ``_SECOND`` has by the head of the
# first attribute where the second one is, and its head.
_V4, _MAC, _TIMES_HEAD = ATTR.pack(8, DST), ATTR.pack(10, LLADDR), ATTR.pack(20, _TIMES)
_SECOND = {_V4: (20, _MAC), _MAC: (24, _V4)}
_TIMES_AT = 32
_WHERE = ((6, "port"), (7, "vni"), (8, "via"))  # NDA_PORT, NDA_VNI, NDA_IFINDEX

_BY_MAC = struct.Struct("=BxxxiHBBHH6s2x")

Own = dict[tuple[int, int, bytes, bytes], float]
"""Our changes by (message type, device's index, MAC, underlay address), with their times."""


class NeighbourDriver:
    """Neighbour and FdbEntry.

    On our links only linkspan has entries that the kernel never checks again (permanent, NUD_NOARP, static or
    local ones of a bridge): others would misdirect packets.
    """

    def __init__(self, sockets: Sockets, kinds: Kinds) -> None:
        self._sockets = sockets
        self._tunnels, self._resolving = kinds.tunnels, kinds.resolving
        self.own: Own = {}

    def probe(self) -> Support:
        """Return support: every kernel has neighbours; one without VXLAN has no device for FDB entries."""
        return Support("kernel")

    def observe(self, netns: int) -> Iterable[State]:
        """Return permanent entries on our devices, and on other devices those with our protocol number."""
        if netns != HOST:
            return []
        links = self._sockets.links(HOST)
        names, ours = names_of(links), own_of(links)
        macs = {link.number: link.mac for link in links if link.number in ours}
        return [*self._neighbours(names, ours), *(self._entries(ours, macs) if ours else ())]

    def stamp(self) -> object:
        """Return what stays the same as long as the kernel reports the same entries that last, on the same links."""
        links = self._sockets.links(HOST)
        there = frozenset((link.number, link.name, link.mac, link.ours) for link in links)
        return there, hash(b"".join(map(_timeless, (*self._lasting(_ANY), *self._lasting(AF_BRIDGE)))))

    def _lasting(self, family: int) -> Iterator[bytes]:
        """Yield the entries of a family that the kernel never checks again, as it reports them."""
        what = "list forwarding entries" if family == AF_BRIDGE else "list neighbours"
        for payload in self._sockets.at(HOST).dump(GETNEIGH, bytes([family]) + bytes(11), what):
            state = NDMSG.unpack_from(payload)[2]
            if state & PERMANENT or (state & NOARP and not (family == _ANY and _is_of_group(payload))):
                yield payload

    def _neighbours(self, names: Mapping[int, str], ours: Mapping[int, str]) -> Iterable[Neighbour]:
        for payload in self._lasting(_ANY):
            _, index, state, _, _ = NDMSG.unpack_from(payload)
            if index not in names:
                continue
            if index in ours:
                found = Neighbour(names[index], *_address_and_mac(payload))
                if state & PERMANENT or self._is_astray(found):
                    yield found
            elif state & PERMANENT and attributes(payload, 12).get(PROTOCOL) == _OURS:
                yield Neighbour(names[index], *_address_and_mac(payload))

    def _is_astray(self, found: Neighbour) -> bool:
        """Return whether somebody else made a permanent neighbour: on a link that resolves, with a MAC."""
        return found.device.startswith(self._resolving) and len(found.mac) == 6

    def _entries(self, ours: Mapping[int, str], macs: Mapping[int, bytes]) -> Iterable[FdbEntry]:
        # A MAC has one entry: the kernel appends destinations only to all-zero and multicast ones
        # (vxlan_fdb_update).
        for payload in self._lasting(AF_BRIDGE):
            _, index, state, flags, _ = NDMSG.unpack_from(payload)
            if index not in ours:
                continue
            if ours[index].startswith(self._tunnels):
                if state & PERMANENT:
                    yield FdbEntry(ours[index], *_mac_and_address(payload), _elsewhere(payload))
            elif not flags & SELF:  # of a bridge's port; its own MAC is local
                mac = bytes(attributes(payload, 12).get(LLADDR, b""))
                if mac != macs[index]:
                    yield FdbEntry(ours[index], mac, b"")

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Add, replace and remove entries; one whose device is gone counts as removed."""
        failed: dict[Key, LinkspanError] = {}
        for states, kind in ((put, NEWNEIGH), (delete, DELNEIGH)):
            if states:
                failed.update(self._apply(states, kind))
        return failed

    def _apply(self, states: Sequence[State], kind: int) -> dict[Key, LinkspanError]:
        failed: dict[Key, LinkspanError] = {}
        messages, sent = [], []
        indexes: dict[str, int] = {}
        now = time.monotonic()
        for state in states:
            assert isinstance(state, (Neighbour, FdbEntry))
            try:
                if state.device not in indexes:
                    indexes[state.device] = self._sockets.index(HOST, state.device)
            except LinkspanError as error:
                if kind == NEWNEIGH:
                    failed[state.key] = error
                continue
            index = indexes[state.device]
            if isinstance(state, FdbEntry):
                self.own[kind, index, state.mac, state.remote] = now
            messages.append(_message(state, index, kind, tunnel=state.device.startswith(self._tunnels)))
            sent.append(state)
        for state, result in zip(sent, self._sockets.at(HOST).batch(messages), strict=True):
            gone = kind == DELNEIGH and result is not None and result.errno in _GONE
            if result is not None and not gone:
                failed[state.key] = result
        for change, since in list(self.own.items()):
            if now - since > _REMEMBERED:
                self.own.pop(change, None)
        return failed


def _is_of_group(payload: bytes) -> bool:
    """Return whether a neighbour is a multicast group: the kernel makes such entries, and removes them, by itself."""
    mac = attributes(payload, NDMSG.size).get(LLADDR, b"")
    return len(mac) == 6 and bool(mac[0] & 1)


def _timeless(payload: bytes) -> bytes:
    """Return an entry without the times that the kernel reports with it: since when it is there, and was used."""
    at, second = _SECOND.get(payload[12:16], (0, b""))
    if second and payload[at : at + 4] == second and payload[_TIMES_AT : _TIMES_AT + 4] == _TIMES_HEAD:
        return payload[:_TIMES_AT] + payload[_PLAIN_ENTRY:]
    at, unpack = NDMSG.size, ATTR.unpack_from
    while at + 4 <= len(payload):
        size, kind = unpack(payload, at)
        if kind == _TIMES:
            return payload[:at] + payload[at + size :]
        at += max((size + 3) & ~3, 4)
    return payload


def _address_and_mac(payload: bytes) -> tuple[bytes, bytes]:
    length = payload[12] - 4
    if length in _DUMPED and len(payload) >= 12 + _DUMPED[length].size:
        _, first, address, size, second, mac = _DUMPED[length].unpack_from(payload, 12)
        if (first, size, second) == (DST, 10, LLADDR):
            return address, mac
    found = attributes(payload, 12)
    return bytes(found[DST]), bytes(found.get(LLADDR, b""))


def _mac_and_address(payload: bytes) -> tuple[bytes, bytes]:
    length = payload[24] - 4 if len(payload) > 24 else 0
    if length in _DUMPED_ENTRY and len(payload) >= 12 + _DUMPED_ENTRY[length].size:
        size, first, mac, _, second, address = _DUMPED_ENTRY[length].unpack_from(payload, 12)
        if (size, first, second) == (10, LLADDR, DST):
            return mac, address
    found = attributes(payload, 12)
    return bytes(found[LLADDR]), bytes(found.get(DST, b""))


def _elsewhere(payload: bytes) -> tuple[str, ...]:
    """Return in words what sends an entry's frames to another port, VNI or device than ours."""
    if len(payload) <= _PLAIN_ENTRY:
        return ()
    found = attributes(payload, 12)
    return tuple(word for kind, word in _WHERE if kind in found)


def _message(state: Neighbour | FdbEntry, index: int, kind: int, *, tunnel: bool) -> Message:
    flags = F_CREATE | F_REPLACE if kind == NEWNEIGH else 0
    mac = 10, LLADDR, state.mac
    if isinstance(state, Neighbour):
        address, head = state.address, (_FAMILY[len(state.address)], index, PERMANENT, 0, 0)
    else:
        whose = SELF if tunnel else OF_BRIDGE
        address, head = state.remote, (AF_BRIDGE, index, PERMANENT, whose, 0)
    if head[0] == AF_BRIDGE and kind == DELNEIGH:  # by its MAC alone, wherever it leads now
        body = _BY_MAC.pack(*head, *mac)
    else:
        body = _ENTRY[len(address)].pack(*head, 4 + len(address), DST, address, *mac)
        if not tunnel:
            body += attr(PROTOCOL, _OURS)
    return Message(kind, flags, body, functools.partial(_what, state, kind))


def _what(state: Neighbour | FdbEntry, kind: int) -> str:
    verb = "add" if kind == NEWNEIGH else "remove"
    if isinstance(state, Neighbour):
        return f"{verb} neighbour {Prefix(state.address, 0).address} dev {state.device}"
    return f"{verb} forwarding entry {mac_text(state.mac)} dev {state.device}"


def driver(host: LocalHost) -> NeighbourDriver:
    """Return the driver of neighbours and FDB entries."""
    return NeighbourDriver(host.sockets, host.kinds)


def _add_neighbour(state: Neighbour, shell: Shell) -> tuple[str, ...]:
    ours = "" if state.device.startswith(shell.tunnels) else f" protocol {ROUTE_PROTOCOL}"
    where = f"lladdr {mac_text(state.mac)} dev {shlex.quote(state.device)}"
    return (f"ip neigh replace {address_text(state.address)} {where} nud permanent{ours}",)


def _add_entry(state: FdbEntry, _shell: Shell) -> tuple[str, ...]:
    where = f"dev {shlex.quote(state.device)} dst {address_text(state.remote)}"
    return (f"bridge fdb replace {mac_text(state.mac)} {where} self permanent",)


KINDS = (
    Kind(
        state=Neighbour,
        rank=55,
        driver=driver,
        known_by="permanent or noarp, on a link of ours; on another link protocol number 76",
        purpose="the MAC of the next hop: another host's end of the tunnel, or a gateway",
        sort=Sort.PLACE,
        commands=_add_neighbour,
        on=on_device,
        falls=True,
        events=frozenset({Event.NEIGHBOUR, Event.TUNNEL}),
    ),
    Kind(
        state=FdbEntry,
        rank=56,
        driver=driver,
        known_by="permanent or static, on a link of ours",
        purpose="the underlay address behind which that MAC is",
        sort=Sort.PLACE,
        commands=_add_entry,
        on=on_device,
        falls=True,
        events=frozenset({Event.ENTRY, Event.TUNNEL}),
    ),
)
