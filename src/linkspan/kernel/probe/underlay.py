"""Underlay of the host: its interface, addresses and MTU, and how the kernel reaches a peer."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable
from typing import NamedTuple

from linkspan.core.addresses import HIDDEN, SOCKET_FAMILY, Prefix, mac_text, place, prefix
from linkspan.core.errors import KernelError, LinkspanError, NotFound
from linkspan.core.model import CAN_REACH, Underlay
from linkspan.core.states.host import HOST
from linkspan.kernel.io import route_messages
from linkspan.kernel.io.link_messages import ADDRESS, INFO_KIND, LINKINFO, MASTER
from linkspan.kernel.io.neighbour_messages import DST, FAILED, INCOMPLETE, LLADDR, NDMSG
from linkspan.kernel.io.netlink import (
    GETADDR,
    GETNEIGH,
    GETROUTE,
    Message,
    Sockets,
    attr,
    attributes,
    string,
)
from linkspan.kernel.io.route_messages import GATEWAY, OIF, RTMSG

_IFADDR = struct.Struct("=BBBBI")
_SCOPE_UNIVERSE = 0
_LINK = 5  # IFLA_LINK in linux/if_link.h
_ETHERNET = 6
"""Bytes of a MAC; a tunnel's link-layer address is an IP address."""
_TEMPORARY, _DEPRECATED = 0x01, 0x20  # IFA_F_TEMPORARY, IFA_F_DEPRECATED in linux/if_addr.h


def way(sockets: Sockets, address: bytes) -> tuple[str, bool]:
    """Return the device by which the kernel reaches an address, and whether without a router; '' if it cannot."""
    family = SOCKET_FAMILY[4 if len(address) == 4 else 6]
    body = RTMSG.pack(family, len(address) * 8, 0, 0, 0, 0, 0, 0, 0) + attr(route_messages.DST, address)
    try:
        answer = sockets.at(HOST).get(Message(GETROUTE, 0, body, "look up route"))
    except KernelError:
        return "", False
    found = attributes(answer, 12)
    if OIF not in found:
        return "", False
    return sockets.names(HOST).get(struct.unpack("=I", found[OIF])[0], ""), GATEWAY not in found


def resolved(sockets: Sockets, device: str, address: bytes) -> bool:
    """Return whether the kernel's neighbour table has a MAC for an address, however old."""
    try:
        body = NDMSG.pack(SOCKET_FAMILY[4 if len(address) == 4 else 6], sockets.index(HOST, device), 0, 0, 0)
        answer = sockets.at(HOST).get(Message(GETNEIGH, 0, body + attr(DST, address), "find neighbour"))
    except LinkspanError:
        return False
    return LLADDR in attributes(answer, NDMSG.size) and not NDMSG.unpack_from(answer)[2] & (INCOMPLETE | FAILED)


def observe(sockets: Sockets, choice: str, advertise: tuple[str, ...] = ()) -> Underlay | None:
    """Return the underlay that ``choice`` names: an interface, or ``can-reach=IP``.

    None if ``choice`` is empty, or if no route leads to the address. ``advertise`` are the addresses by which others
    reach it, which may have a port, or HIDDEN. Raises NotFound if the named interface does not exist.
    """
    ifname = choice
    if choice.startswith(CAN_REACH):
        ifname, _ = way(sockets, prefix(choice.removeprefix(CAN_REACH)).packed)
    if not ifname:
        return None
    try:
        mtu = sockets.mtu(HOST, ifname)
    except KernelError as error:
        raise NotFound(f"underlay interface {ifname} does not exist", "`ip link` shows them") from error
    places = [place(text) for text in advertise if text != HIDDEN]
    return Underlay(
        ifname,
        tuple(str(a) for a in _addresses(sockets, ifname)),
        mtu,
        tuple(address.address for address, _ in places),
        advertise_port=next((port for _, port in places if port), 0),
        hidden=HIDDEN in advertise,
        mac=mac_text(sockets.mac(HOST, ifname)),
        macs=macs(_links(sockets), sockets.index(HOST, ifname)),
    )


class Link(NamedTuple):
    """A link: its index, and the indexes of its master and of its lower link, 0 for none."""

    number: int
    kind: str
    mac: bytes
    master: int = 0
    lower: int = 0


def _links(sockets: Sockets) -> list[Link]:
    found = []
    for index, _, attrs in sockets.links(HOST):
        info = attributes(attrs[LINKINFO], 0) if LINKINFO in attrs else {}
        master, lower = (int.from_bytes(attrs.get(word, b""), sys.byteorder) for word in (MASTER, _LINK))
        found.append(Link(index, string(info.get(INFO_KIND, b"")), attrs.get(ADDRESS, b""), master, lower))
    return found


def macs(links: Iterable[Link], index: int) -> tuple[str, ...]:
    """Return the MACs that frames of a link may have: its own, and a bond's or team's ports', below a VLAN too."""
    every = {link.number: link for link in links}
    found, at = set(), every.get(index)
    while at is not None:
        found.add(at.mac)
        if at.kind in ("bond", "team"):
            found |= {link.mac for link in every.values() if link.master == at.number}
        at = every.pop(at.lower, None) if at.kind == "vlan" else None
    return tuple(sorted(mac_text(mac) for mac in found if len(mac) == _ETHERNET))


def every_address(sockets: Sockets) -> frozenset[str]:
    """Return all addresses of this host that others may reach: neither loopback nor link-local ones."""
    found = set()
    for payload in sockets.at(HOST).dump(GETADDR, _IFADDR.pack(0, 0, 0, 0, 0), "list addresses"):
        family, _, _, scope, _ = _IFADDR.unpack_from(payload)
        if scope == _SCOPE_UNIVERSE and family in SOCKET_FAMILY.values():
            attrs = attributes(payload, 8)
            found.add(Prefix(bytes(attrs.get(2) or attrs[1]), 0).address)
    return frozenset(found)


def _addresses(sockets: Sockets, ifname: str) -> list[Prefix]:
    """Return a link's permanent global addresses, IPv4 first."""
    index = sockets.index(HOST, ifname)
    found = []
    for payload in sockets.at(HOST).dump(GETADDR, _IFADDR.pack(0, 0, 0, 0, index), "list addresses"):
        family, length, flags, scope, at = _IFADDR.unpack_from(payload)
        if at != index or scope != _SCOPE_UNIVERSE or family not in SOCKET_FAMILY.values():
            continue
        if flags & (_TEMPORARY | _DEPRECATED) and family == SOCKET_FAMILY[6]:
            continue
        attrs = attributes(payload, 8)
        found.append(Prefix(bytes(attrs.get(2) or attrs[1]), length))
    return sorted(found, key=lambda p: p.family)
