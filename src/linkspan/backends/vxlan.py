"""VXLAN backend (RFC 7348): frames in UDP between any two hosts, one device and one VNI for each network.

A packet's walk, container A on host 1 to B (10.244.2.9) on host 2:

1. A's default route leads to the host end of its veth; host 1 looks up a *route*: 10.244.2.0/24 via
   10.244.2.0, host 2's own address in the network, dev lsx64, onlink (no subnet of the device holds it).
2. The *neighbour* entry of 10.244.2.0 on lsx64 gives host 2's VTEP MAC, which becomes the frame's target.
3. The *FDB entry* of that MAC on lsx64 gives host 2's underlay address; the kernel wraps the frame in UDP, port
   4789, with the VNI, and sends it by the host's ordinary routes.
4. On host 2, the input chain accepts it only from a peer's underlay address. The socket finds the device by the
   VNI, and the guard admits the inner packet only if its source is in a block of the host with this VTEP's MAC.
   A /32 route leads to B's veth.

Packets to a container of another network, where that is allowed, use that network's device. So the guard
admits a peer's blocks on the devices of such networks, too, with the MAC that the peer's VTEP has there.

A peer costs three entries (route, neighbour, forwarding entry; one route more for each further prefix, one
neighbour for each further family) and three set elements. The kernel learns, floods and asks nothing on a
miss, so the data path needs no agent, and packets to an unknown address end at the pool's ``unreachable``
route.

Overhead: 50 bytes over IPv4 (inner Ethernet 14, VXLAN 8, UDP 8, IPv4 20), 70 over IPv6. The device has the
MTU, so the host answers packets that are too big (fragmentation needed, packet too big) before it wraps them.
Inner and outer families are independent: the outer one is the underlay's, the inner ones are the pools'.

With ``direct=true`` a peer on the same segment gets a plain route by its underlay address, and no overhead.
It counts as on the segment if the records of both hosts say so (then each admits the other's plain packets)
and if it answers ARP or neighbour solicitation. Peers that do not answer yet, or stop answering, use the
tunnel, so each host admits the other by both.

With ``fast=true`` packets between containers of the network skip connection tracking and the rules, where that changes
nothing but the speed (``core/fast_path``).

Rejected: one layer 2 across all hosts (a bridge with the VXLAN as a port, one neighbour and one forwarding
entry for each *container*, ARP to answer); learning, and multicast or head-end flooding (a silent host is
unknown, a lying one is believed); answering the kernel's misses from user space (the first packets wait for
the agent); one device for all networks in external mode (routes with encapsulation would need no neighbours,
but isolation then hangs on every route's VNI, and `ip -d link` shows nothing of it).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from linkspan.backends import egress
from linkspan.backends.multi_host import (
    SWITCH,
    admitted,
    is_direct,
    offered,
    onlink_routes,
    plain_needs,
    reached,
    related,
    theirs,
    underlay,
)
from linkspan.backends.routed import TunnelBackend
from linkspan.core import fast_path
from linkspan.core.addresses import Prefix, derived_mac, mac, mac_text, prefix
from linkspan.core.errors import Conflict, Invalid
from linkspan.core.host_view import HostView, Peer
from linkspan.core.model import Lease, Network
from linkspan.core.needs import Need
from linkspan.core.ruleset import element, tunnel_peer, tunnel_port
from linkspan.core.states.host import FdbEntry, Neighbour, Route, State, Vxlan, link_name

PORT = 4789
"""RFC 7348 section 5 (the kernel's own default, 8472, is older)."""

VNIS = range(1, 1 << 24)
"""RFC 7348 section 5: 24 bits; 0 is left out, as other systems use it for "none"."""

_VALID = 0x08000000  # RFC 7348 section 5: the flag I, the VNI is valid
_NOBODY, _EXPERIMENT = b"\2" + bytes(5), b"\x88\xb5"
"""A locally administered MAC that no device has, and IEEE 802's EtherType for local experiments."""


class VxlanBackend(TunnelBackend):
    """A device for each network."""

    name = "vxlan"
    summary = "VXLAN: a container's frame goes to the other host in UDP (port 4789)"
    overhead: Mapping[int, int] = {4: 50, 6: 70}
    no_exit = ""
    options: Mapping[str, str] = {
        "vni": f"1..{VNIS[-1]}",
        "port": "1..65535",
        **TunnelBackend.options,
        fast_path.OPTION: "true|false",
    }

    def check(self, network: Network) -> None:
        """Refuse unknown options, and numbers out of range."""
        super().check(network)
        for key, allowed in (("vni", VNIS), ("port", range(1, 65536))):
            text = network.options.get(key, str(allowed[0]))
            if not (text.isascii() and text.isdigit() and len(text) < 9 and int(text) in allowed):
                raise Invalid(
                    f"network {network.name}: {key}={text} is out of range",
                    f"give a number from {allowed[0]} to {allowed[-1]}",
                )
        if network.options.get(fast_path.OPTION, "false") not in SWITCH:
            raise Invalid(
                f"network {network.name}: fast={network.options[fast_path.OPTION]} is no switch", "give true or false"
            )
        if fast_path.is_fast(network) and is_direct(network):
            raise Invalid(
                f"network {network.name}: fast=true and direct=true exclude each other: a peer on the same link would "
                "answer past the fast path",
                "give --opt fast=true --opt direct=false (a migration keeps direct=true otherwise), or leave fast out",
            )
        if fast_path.is_fast(network) and network.internal:
            raise Invalid(
                f"network {network.name} is internal: all of its packets pass the rules, so it cannot be fast",
                "leave --opt fast or --internal out",
            )

    def completed(self, network: Network, others: Iterable[Network]) -> Network:
        """Give the network a VNI, starting at a number made from its name, so that two networks seldom collide."""
        used = {vni(other): other.name for other in others if other.backend == self.name}
        if "vni" in network.options:
            if holder := used.get(vni(network)):
                raise Conflict(
                    f"VNI {vni(network)} is used by network {holder}", "give another, or leave --opt vni out"
                )
            return network
        start = int.from_bytes(hashlib.blake2b(network.name.encode(), digest_size=3).digest(), "big")
        number = next(n for n in ((start + i) % VNIS[-1] + 1 for i in range(len(VNIS))) if n not in used)
        return msgspec.structs.replace(network, options={**network.options, "vni": str(number)})

    def claims(self, network: Network) -> tuple[str, ...]:
        """Return that the VNI belongs to this network alone."""
        return (f"vni/{vni(network)}",)

    def device(self, network: Network) -> str:
        """Return the device's name: ``lsx`` and the VNI in hexadecimal."""
        return device(network)

    def fast_device(self, network: Network) -> str:
        """Return the device if the network has the option ``fast``."""
        return device(network) if fast_path.is_fast(network) else ""

    def announce(self, view: HostView, network: Network) -> Mapping[str, str]:
        """Return the VTEP's MAC and the address to which peers send."""
        return {"mac": mac_text(_mac(view, network)), **super().announce(view, network)}

    def received(self, view: HostView, network: Network) -> Iterable[State]:
        """Return the device, and the rule that only peers reach its port."""
        here = underlay(view, network)
        name, port, local = device(network), _port(network), here.bound(here.outer)
        mtu = min(network.mtu, here.mtu - self.overhead[here.outer])
        yield Vxlan(name, vni(network), _mac(view, network), mtu, port, local)
        yield tunnel_port("udp", port)
        if network.internal:
            yield element("internal_links", name)
        if fast_path.is_fast(network):
            yield from fast_path.network_states(view, network, name, self.overhead[here.outer])

    def peer(self, view: HostView, network: Network, peer: Peer) -> Iterable[State]:
        """Return the peer's states, and those for its part of the way to the outside."""
        yield from super().peer(view, network, peer)
        by = device(network)
        if fast_path.is_fast(network):
            vtep, targets = offered(network, peer, self.name)["mac"], list(reached(peer))
            hops = {one.family: Prefix(theirs(network, peer, one.family), 0).address for one in targets}
            yield from fast_path.peer_states(view, by, vtep, targets, hops)
        if egress.families(view, network, peer):
            own = {address.family: address.packed for address in map(prefix, peer.lease.addresses)}
            yield from egress.routes(view, network, peer, by, own, plain=False)
            yield element("egress_ways", by, offered(network, peer, self.name)["mac"])

    def check_offer(self, lease: Lease, offer: Mapping[str, str]) -> None:
        """Accept only an offer with an address to send to, and the MAC that follows from its host."""
        super().check_offer(lease, offer)
        if offer.get("mac") != mac_text(_vtep(lease.host, lease.network)):
            raise Invalid(f"its VTEP's MAC is {offer.get('mac', 'missing')!r}, which is not the MAC of its host")

    def plain(self, view: HostView, network: Network) -> bool:
        """Return whether plain packets pass: a peer sends to another allowed network by that network's device."""
        return any(map(is_direct, (network, *self._related(view, network))))

    def _related(self, view: HostView, network: Network) -> list[Network]:
        return [other for other in related(view, network) if other.backend == self.name]

    def met(
        self, view: HostView, network: Network, peer: Peer, address: Prefix, targets: Sequence[Prefix]
    ) -> Iterable[State]:
        """Return the peer's neighbour and FDB entries, and the element that admits its tunnel packets."""
        vtep, by = mac(offered(network, peer, self.name)["mac"]), device(network)
        yield FdbEntry(by, vtep, address.packed)
        yield tunnel_peer(address, "udp", _port(network))
        for family in sorted({target.family for target in targets}):
            yield Neighbour(by, theirs(network, peer, family), vtep)

    def let_in(
        self, view: HostView, network: Network, peer: Peer, address: Prefix, targets: Sequence[Prefix]
    ) -> Iterable[State]:
        """Return the elements that admit the prefixes from the peer's VTEPs: of this network, and of allowed ones."""
        vteps = [(device(network), offered(network, peer, self.name)["mac"])]
        vteps += [(device(one), mac_text(_vtep(peer.host.id, one.name))) for one in self._related(view, network)]
        return (admitted("vteps", vtep, target) for target in targets for vtep in vteps)

    def routes(
        self, view: HostView, network: Network, peer: Peer, address: Prefix, targets: Sequence[Prefix]
    ) -> Iterable[Route]:
        """Return routes whose next hop is the peer's own address, at its VTEP."""
        return onlink_routes(view, network, peer, device(network), targets)

    def needs(self, view: HostView, network: Network, peer: Peer) -> Iterable[Need]:
        """Return that the UDP port reaches the peer; the inner frame has the network's VNI, and no receiver."""
        address, port = self.far(view, network, peer), _port(network)
        header = struct.pack("!II", _VALID, vni(network) << 8)
        frame = header + _NOBODY + _mac(view, network) + _EXPERIMENT
        what, size = f"UDP port {port} (VXLAN)", network.mtu + self.overhead[address.family]
        source = underlay(view, network).bound(address.family)
        fix = f"let UDP port {port} pass between the hosts (firewalls, a cloud's security groups)"
        yield Need(what, "udp", source, address.packed, size, fix, port, inside=lambda _: frame)
        if is_direct(network):
            yield from plain_needs(view, network, peer, spare=True)


def vni(network: Network) -> int:
    """Return the network's VNI. Raises Invalid if none was given or allocated."""
    if "vni" not in network.options:
        raise Invalid(f"network {network.name} has no VNI", "give one: --opt vni=100")
    return int(network.options["vni"])


def device(network: Network) -> str:
    """Return the device's name: ``lsx`` and the VNI in hexadecimal."""
    return link_name(f"lsx{vni(network):x}")


def _port(network: Network) -> int:
    return int(network.options.get("port", PORT))


def _mac(view: HostView, network: Network) -> bytes:
    assert view.host is not None
    return _vtep(view.host.id, network.name)


def _vtep(host: str, network: str) -> bytes:
    return derived_mac("vtep", host, network)


BACKEND = VxlanBackend()
