"""IPIP backend (RFC 2003): IPv4 packets in IPv4 packets, one device on each host for all networks.

A packet's walk, container A on host 1 to B (10.244.2.9) on host 2, if the kernel has IPIP: A's default route
leads to host 1. There the route 10.244.2.0/24 via 192.0.2.2 dev lsipip, onlink, names host 2's *underlay*
address as the next hop. The device has no fixed far end, so it uses the next hop as the outer destination: no
neighbour, no FDB entry. On host 2 the input chain accepts protocol 4 only from peers' underlay addresses, the
device unwraps, and the guard accepts the inner source only if it is in a peer's block.

If the kernel has no IPIP device, lsipip is a persistent TUN, the route names no next hop, and a helper
process (linkspan.ipip_endpoint) wraps and unwraps by a table of prefixes and underlay addresses. It checks
more than the kernel's device: the inner source must belong to the same host as the outer one. The packets on
the wire are the same, so both kinds of host work in one network.

Where a network leaves by another host's egress address, its table's default route has that host as next hop. The
helper has a second table for that, of pools and underlay addresses: it finds the far end by a packet's source if no
row of the first one has its destination, and admits packets of the outside from that host to this pool alone.

A peer costs one route for each of its prefixes (and a row of the table), and two set elements. Overhead: 20
bytes (the outer header). A host has one device, so its MTU is the underlay's minus 20; a network's smaller
MTU applies at its containers. ``direct=true`` works as for vxlan.

IPv4 only, inside and out: IPv6 would need other protocols (41, and ip6 tunnels), while VXLAN needs none.

Rejected: a device for each peer (4,000 devices); GRE (4 bytes more for nothing); the kernel's external mode
(encapsulating routes, for which neither TUN nor `plan` has an equivalent).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from linkspan.backends import egress
from linkspan.backends.multi_host import (
    admitted,
    is_direct,
    offered,
    own,
    plain_needs,
    underlay,
)
from linkspan.backends.routed import TunnelBackend
from linkspan.core.addresses import Prefix, prefix
from linkspan.core.errors import Invalid, Unavailable
from linkspan.core.host_view import Facts, HostView, Peer
from linkspan.core.model import Network
from linkspan.core.needs import Need
from linkspan.core.ruleset import FROM_HOLDER, element
from linkspan.core.states.host import Ipip, Route, State, TunnelExit, TunnelPrefix
from linkspan.core.states.programs import IpipHelper, Process

DEVICE = "lsipip"
_DUMMY = (192, 0, 0, 8)
_LAST, _EXPERIMENT = 1, 253
"""A TTL that no router forwards; RFC 3692's protocol number for experiments."""
OUTER = 20
"""Bytes of an IPv4 header without options (RFC 791 section 3.1)."""


class IpipBackend(TunnelBackend):
    """One device for all networks."""

    name = "ipip"
    summary = "IPIP: a container's packet goes to the other host in IP (protocol 4)"
    families: tuple[int, ...] = (4,)
    overhead: Mapping[int, int] = {4: OUTER, 6: OUTER}  # ``received`` refuses an underlay without IPv4
    no_exit = ""

    def check(self, network: Network) -> None:
        """Refuse unknown options and IPv6 pools."""
        super().check(network)
        for pool in network.prefixes:
            if pool.family != 4:
                raise Invalid(
                    f"network {network.name}: backend ipip carries IPv4 only, and pool {pool} is IPv6",
                    "use backend vxlan, or leave that pool out",
                )

    def lacks(self, facts: Facts) -> str:
        """Return that a program wraps the packets if the kernel has no IPIP devices."""
        return "ipip" if facts.program(IpipHelper) else ""

    def family(self, view: HostView, network: Network) -> int:
        """Return IPv4: IPIP carries IPv4 in IPv4."""
        return 4

    def device(self, network: Network) -> str:
        """Return the device that all networks share."""
        return DEVICE

    def received(self, view: HostView, network: Network) -> Iterable[State]:
        """Return the device, and the helper if the kernel has no IPIP."""
        here = underlay(view, network)
        local, helper = here.bound(4), view.facts.program(IpipHelper)
        if not local:
            raise _without(network)
        text = Prefix(local, 32).address
        yield Ipip(DEVICE, here.mtu - OUTER, b"" if helper else local, tun=bool(helper))
        yield element("ipip_local", text)
        if helper:
            words = helper.exits if any(one.egress and _uses(one) for one in view.networks) else ()
            yield Process("ipip", (*helper.argv, *words, "--device", DEVICE, "--local", text))

    def peer(self, view: HostView, network: Network, peer: Peer) -> Iterable[State]:
        """Return the peer's states, and those for its part of the way to the outside."""
        yield from super().peer(view, network, peer)
        if not egress.families(view, network, peer):
            return
        address, helper = self.far(view, network, peer), view.facts.program(IpipHelper)
        yield from egress.routes(view, network, peer, DEVICE, {4: b"" if helper else address.packed}, plain=False)
        yield element("egress_links", DEVICE)
        yield element("egress_tunnels", DEVICE, str(0 if helper else FROM_HOLDER))
        if helper:
            yield from (TunnelExit(pool, address.packed) for pool in network.prefixes)
        else:
            yield element("ipip_holders", address.address)

    def met(
        self, view: HostView, network: Network, peer: Peer, address: Prefix, targets: Sequence[Prefix]
    ) -> Iterable[State]:
        """Return the element that admits the peer's tunnel packets."""
        yield element("ipip_peers", address.address)

    def let_in(
        self, view: HostView, network: Network, peer: Peer, address: Prefix, targets: Sequence[Prefix]
    ) -> Iterable[State]:
        """Return the elements that admit the prefixes on the device, and table rows if a helper serves the device."""
        yield from (admitted("ways", (DEVICE,), target) for target in targets)
        if view.facts.program(IpipHelper):
            yield from (TunnelPrefix(target, address.packed) for target in targets)

    def routes(
        self, view: HostView, network: Network, peer: Peer, address: Prefix, targets: Sequence[Prefix]
    ) -> Iterable[Route]:
        """Return routes whose next hop is the far end; a helper finds the far end in its table."""
        via, source = b"" if view.facts.program(IpipHelper) else address.packed, own(view, network, 4)
        return (Route(target, DEVICE, via, source, onlink=bool(via)) for target in targets)

    def needs(self, view: HostView, network: Network, peer: Peer) -> Iterable[Need]:
        """Return that protocol 4 reaches the peer; the inner packet has no receiver."""
        address = prefix(offered(network, peer, self.name)["address"])
        source = underlay(view, network).bound(4)
        if not source:
            raise _without(network)
        fix = f"let IP protocol 4 pass between the hosts, or: linkspan network migrate {network.name} --backend vxlan"
        size = network.mtu + OUTER
        yield Need("IP protocol 4 (IPIP)", "ipip", source, address.packed, size, fix, inside=_for_nobody)
        if is_direct(network):
            yield from plain_needs(view, network, peer, spare=True)


def _uses(network: Network) -> bool:
    """Return whether a network uses the device, now or at the end of its migration."""
    return any(way.backend == IpipBackend.name for way in network.ways)


def _for_nobody(left: int) -> bytes:
    """Return an IPv4 header that no host delivers, forwards or answers: both addresses are RFC 7600's dummy."""
    words = [0x45, 0, left >> 8, left & 255, 0, 0, 0, 0, _LAST, _EXPERIMENT, 0, 0, *_DUMMY, *_DUMMY]
    total = sum(words[::2]) * 256 + sum(words[1::2])
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    words[10:12] = divmod(total ^ 0xFFFF, 256)
    return bytes(words)


def _without(network: Network) -> Unavailable:
    return Unavailable(
        f"network {network.name}: backend ipip needs an underlay address of IPv4, and this host has none",
        "give this host such an address, or use backend vxlan",
    )


BACKEND = IpipBackend()
