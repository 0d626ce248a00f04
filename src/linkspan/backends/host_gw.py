"""host-gw backend (plain routes): each host is the router of its block, and nothing is wrapped.

A packet's walk, container A on host 1 to B (10.244.2.9) on host 2: A's default route leads to host 1. There
the route 10.244.2.0/24 via 192.0.2.2 dev eth0 leads to host 2 by an ordinary neighbour entry, which the
kernel resolves by ARP (or ND). Host 2's guard accepts the source on eth0 because it is in host 1's block, and
a /32 route leads to B's veth. The segment sees the containers' own addresses.

A peer costs one route and one set element for each of its prefixes. Overhead: none, and the throughput is the
underlay's own. In exchange, all hosts must be on one segment. A router in between has no routes to the pools,
and would drop the packets or, worse, send them by its default route. So linkspan refuses a peer by name in
three cases: the kernel does not reach it without a router, one of the two does not have the other in its
prefix, or it never answered ARP (or neighbour solicitation). A peer that answered before and falls silent
keeps its routes: there is no other way, and it may be back at any moment. Clouds that check source addresses
drop these packets (`doctor --peers` finds out). A peer's packets must have one of the MACs in its record
(``check-mac``), which keeps out every sender with a MAC of its own. A sender that also forges a peer's MAC
passes as the peer: there is no outer address to check.

The host's own address in the network is on a bridge without ports. A dummy device is not in every kernel, and
an address on lo could not be distinguished from an administrator's.

Rejected: announcing the routes to routers (bgp does that); proxy ARP for the pools.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from linkspan.backends import egress
from linkspan.backends.multi_host import (
    CHECK_MAC,
    admitted_neighbour,
    facing,
    offered,
    plain_needs,
    plain_route,
    plain_states,
    reached,
)
from linkspan.backends.routed import RoutedBackend
from linkspan.core.addresses import Prefix
from linkspan.core.errors import Unavailable
from linkspan.core.host_view import HostView, Peer
from linkspan.core.model import Network
from linkspan.core.needs import Need
from linkspan.core.states.host import State


class HostGwBackend(RoutedBackend):
    """Routes through the peers' own addresses."""

    name = "host-gw"
    summary = "host-gw: plain routes; the other host is the gateway to its containers"
    neighbours = True
    no_exit = ""
    options: Mapping[str, str] = {CHECK_MAC: "true|false"}

    def network(self, view: HostView, network: Network) -> Iterable[State]:
        """Return the guards, and the link with this host's own addresses."""
        yield from plain_states(view, network)
        yield from egress.network_states(view, network)

    def peer(self, view: HostView, network: Network, peer: Peer) -> Iterable[State]:
        """Return the peer's routes. Raises Unavailable if a router is in between, or if it never answered ARP (ND)."""
        found = self._gateways(view, network, peer)
        if peer.standing == "silent":
            texts = " and ".join(Prefix(found[f], 0).address for f in {t.family for t in reached(peer)})
            raise _refused(network, peer, f"nobody answers for {texts} on {peer.device}")
        for target in reached(peer):
            yield from admitted_neighbour(view, network, peer, target)
            yield from plain_route(view, network, peer, target, found[target.family])
        yield from egress.routes(view, network, peer, peer.device, found, plain=True)

    def needs(self, view: HostView, network: Network, peer: Peer) -> Iterable[Need]:
        """Return that the pool's packets reach the peer unwrapped."""
        self._gateways(view, network, peer)
        yield from plain_needs(view, network, peer)

    def _gateways(self, view: HostView, network: Network, peer: Peer) -> dict[int, bytes]:
        """Return the peer's addresses on the link. Raises Unavailable if a family of its prefixes has none."""
        offered(network, peer, self.name)
        found = facing(view, network, peer)
        for family in {target.family for target in reached(peer)}:
            if not peer.on_link:
                raise _refused(network, peer, "a router is between this host and the peer")
            if family not in found:
                raise _refused(
                    network, peer, f"it and this host have no underlay addresses in the same IPv{family} prefix"
                )
        return found


def _refused(network: Network, peer: Peer, why: str) -> Unavailable:
    return Unavailable(
        f"host {peer.host.name} cannot be reached by host-gw in network {network.name}: {why}",
        "use backend vxlan or ipip, with direct=true for the hosts that are on one segment",
    )


BACKEND = HostGwBackend()
