"""Hops of a trace, and the reason why one of them was the last."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence

import msgspec

from linkspan.core.addresses import SOCKET_FAMILY, Prefix
from linkspan.core.model import Endpoint, Network, Underlay
from linkspan.core.states.host import HOST
from linkspan.core.wire import ESP, VXLAN, WIREGUARD
from linkspan.diagnose.trace.packet import Outer, Packet

OUTSIDE = -1
"""The ``netns`` of everything beyond this host."""


class Hop(msgspec.Struct, frozen=True):
    """One step. ``port`` is the port through which a bridge forwards it.

    ``seen`` is set by a live trace: whether the packet was captured at the port or device. ``mtu`` is the
    largest (innermost) packet that has passed up to here.
    """

    host: str
    namespace: str
    device: str
    action: str
    detail: str
    headers: tuple[str, ...] = ()
    port: str = ""
    seen: bool | None = None
    mtu: int = 0


class Unknown(msgspec.Struct, frozen=True):
    """A place (HOST/NAMESPACE or HOST/NAMESPACE/DEVICE) where trace cannot decide what happens, and why.

    ``beyond``: the packet leaves all hosts of linkspan's there, or comes from outside, so nobody can be
    asked. ``later``: the packet passes, but later ones may not: no single packet settles that.
    """

    at: str
    why: str
    beyond: bool = False
    later: bool = False


class Broken(Exception):
    """The walk ends here, with the reason."""

    def __init__(self, hop: Hop, reason: str) -> None:
        super().__init__(reason)
        self.hop = hop
        self.reason = reason


class Translation(msgspec.Struct):
    """Connection tracking's memory of the request, for the answer.

    ``dnat`` is the packet before its destination was changed, ``masked`` the source before and after,
    ``arrived`` the packet at its end. ``marks`` are the connection's marks and ``untracked`` those without a
    connection, by namespace.
    """

    arrived: Packet | None = None
    dnat: Packet | None = None
    masked: tuple[bytes, bytes] | None = None
    marks: dict[int, int | None] = msgspec.field(default_factory=dict)
    untracked: list[int] = msgspec.field(default_factory=list)


class Other(msgspec.Struct, frozen=True):
    """Another host: ``addresses`` are its own, by network, and under '' those of its underlay."""

    name: str
    addresses: Mapping[str, tuple[bytes, ...]] = {}
    endpoints: Sequence[Endpoint] = ()


class Gateway(msgspec.Struct, frozen=True):
    """A router that is the underlay's switches, for networks with these pools; their controller continues the walk."""

    pools: tuple[Prefix, ...]
    addresses: tuple[bytes, ...]
    mac: bytes


class Map(msgspec.Struct, frozen=True):
    """Linkspan's knowledge of the host: where links lead, and which network is which.

    ``peers`` are the other hosts' ids by each of their underlay addresses, ``others`` the same hosts by their
    ids, ``keys`` the same by their public keys. ``silent`` says why a host does not answer this host's own
    pings, by network, host id and family. ``gateways`` are those of networks that switches carry.
    """

    host: str
    endpoints: Sequence[Endpoint]
    networks: Mapping[str, Network]
    peers: Mapping[bytes, str] = {}
    underlay: Underlay | None = None
    id: str = ""
    others: Mapping[str, Other] = {}
    keys: Mapping[str, str] = {}
    silent: Mapping[tuple[str, str, int], str] = {}
    gateways: tuple[Gateway, ...] = ()

    def name(self, netns: int, ifname: str = "") -> str:
        """Return a namespace's name for people: the container's, with the network if two have the same.

        The network is that of the interface, where one is given.
        """
        if netns == HOST:
            return "host"
        found = self.at(netns, ifname) or next((e for e in self.endpoints if e.netns == netns), None)
        if found is None:
            return str(netns)
        name = found.name or found.id[:12]
        others = any((e.name or e.id[:12]) == name and e.netns != netns for e in self.endpoints)
        return f"{name}@{found.network}" if others or name == "host" else name

    def at(self, netns: int, ifname: str) -> Endpoint | None:
        """Return the endpoint of the interface."""
        return next((e for e in self.endpoints if (e.netns, e.ifname) == (netns, ifname)), None)

    def behind(self, host_ifname: str) -> Endpoint | None:
        """Return the endpoint behind a link of the host."""
        return next((e for e in self.endpoints if host_ifname and e.host_ifname == host_ifname), None)

    def elsewhere(self, address: bytes) -> str:
        """Return the id of the other host that has an address in a network, or whose container has it; '' for none."""
        for id_, other in self.others.items():
            held = any(p.packed == address for e in other.endpoints for p in e.prefixes)
            if held or any(address in own for own in other.addresses.values()):
                return id_
        return ""

    def beyond(self, address: bytes) -> Endpoint | None:
        """Return another host's endpoint with an address."""
        held = (e for other in self.others.values() for e in other.endpoints)
        return next((e for e in held if any(p.packed == address for p in e.prefixes)), None)

    def holding(self, address: bytes) -> Endpoint | None:
        """Return the endpoint with an allocated address."""
        return next((e for e in self.endpoints if any(p.packed == address for p in e.prefixes)), None)


def where(hop: Hop) -> str:
    """Return a hop's place as HOST/NAMESPACE/DEVICE, without the device if the hop has none."""
    return f"{hop.host}/{hop.namespace}" + (f"/{hop.device}" if hop.device else "")


def show(address: bytes) -> str:
    """Return an address as text."""
    return socket.inet_ntop(SOCKET_FAMILY[4 if len(address) == 4 else 6], address)


def forwarding_off(family: int, device: str) -> str:
    """Return for people that a setting keeps the host from forwarding."""
    setting = f"net.ipv{family}.conf.{device}.forwarding"
    return f"forwarding is off ({setting}=0): the host does not forward received packets"


def headers(packet: Packet, outer: Outer | None = None) -> tuple[str, ...]:
    """Return a packet's headers from the outside in, as text."""
    if outer is not None:
        around = headers(outer.packet())[:2]
        if outer.kind == VXLAN:
            return (*around, f"udp {outer.port}", f"vxlan {outer.vni}", *headers(packet))
        if outer.kind == WIREGUARD:
            return (*around, f"udp {outer.port}", WIREGUARD, *headers(packet)[1:])
        if outer.kind == ESP:
            return (*around, *([f"udp {outer.port}"] if outer.port else []), f"esp {outer.key}", *headers(packet)[1:])
        return (*around, *headers(packet)[1:])
    source = show(packet.source) if packet.source else "?"
    word = "ip" if packet.family == 4 else "ip6"
    if packet.protocol == "arp":
        return ("eth", f"arp who-has {show(packet.target)} tell {source}")
    inner = "icmp" if packet.protocol == "icmp" else f"{packet.protocol} {packet.source_port}>{packet.port}"
    return ("eth", f"{word} {source}>{show(packet.target)}", inner)
