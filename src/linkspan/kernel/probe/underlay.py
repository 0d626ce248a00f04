"""Underlay of the host: its interface, addresses and MTU, and how the kernel reaches a peer."""

from __future__ import annotations

from collections.abc import Iterable

from linkspan.core.addresses import HIDDEN, Prefix, mac_text, place, prefix
from linkspan.core.errors import KernelError, LinkspanError, NotFound
from linkspan.core.model import CAN_REACH, Underlay
from linkspan.core.states.host import HOST
from linkspan.kernel.io import neighbour_messages
from linkspan.kernel.io.address_messages import DEPRECATED, TEMPORARY, UNIVERSE, held
from linkspan.kernel.io.link_messages import Link
from linkspan.kernel.io.sockets import Sockets
from linkspan.kernel.probe import route_lookup
from linkspan.kernel.probe.route_lookup import Question

_ETHERNET = 6
"""Bytes of a MAC; a tunnel's link-layer address is an IP address."""


def way(sockets: Sockets, address: bytes) -> tuple[str, bool]:
    """Return the device by which the kernel reaches an address, and whether without a router; '' if it cannot."""
    try:
        answer = route_lookup.ask(sockets.at(HOST), Question(address))
    except KernelError:
        return "", False
    return sockets.names(HOST).get(answer.link, ""), bool(answer.link) and not answer.gateway


def resolved(sockets: Sockets, device: str, address: bytes) -> bool:
    """Return whether the kernel's neighbour table has a MAC for an address, however old."""
    try:
        entry = neighbour_messages.neighbour(sockets.at(HOST), sockets.index(HOST, device), address)
    except LinkspanError:
        return False
    return entry is not None and entry.resolved


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
        mac=_mac(sockets.link(HOST, ifname)),
        macs=macs(sockets.links(HOST), sockets.index(HOST, ifname)),
    )


def _mac(link: Link) -> str:
    return mac_text(link.mac) if len(link.mac) == _ETHERNET else ""


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
    found = held(sockets.at(HOST))
    return frozenset(one.prefix.address for one in found if one.scope == UNIVERSE)


def _addresses(sockets: Sockets, ifname: str) -> list[Prefix]:
    """Return a link's permanent global addresses, IPv4 first."""
    found = []
    for one in held(sockets.at(HOST), sockets.index(HOST, ifname)):
        passing = one.flags & (TEMPORARY | DEPRECATED) and one.prefix.family == 6
        if one.scope == UNIVERSE and not passing and not one.is_egress:
            found.append(one.prefix)
    return sorted(found, key=lambda p: p.family)
