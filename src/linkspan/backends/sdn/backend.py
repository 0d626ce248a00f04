"""SDN backend: the underlay's switches are the router of the containers, and a controller programs them.

A packet's walk, container A on host 1 to B (10.244.2.9) on host 2: A's default route leads to host 1. There
the pool's one *route*, 10.244.0.0/16 via 169.254.76.1 dev eth0 onlink, leads to the virtual gateway, whose
MAC is a permanent *neighbour*. No machine has that address. The switch at host 1's port has two *flows* for
the packet. One accepts it because its source is in host 1's prefixes, and it comes from host 1's port and
MAC. The other lowers its TTL, sets the gateway's MAC as source and host 2's as destination, and sends it
towards host 2's port. Host 2's guard accepts it on eth0 from the gateway's MAC, and a /32 route leads to B's
veth.

A host needs the same for 3 hosts and for 3,000: a route for each pool, a neighbour for each family, and one
element that admits the gateway's packets. A peer costs this host nothing, and the switches two flows for each
of its prefixes (``flows``). Overhead: none.

The gateway is virtual, so none of the hosts' own traffic passes it: their real gateway stays as it is. Its
addresses (link-local, because only the link needs to know them) and its MAC are options in the network's
record. The first network chooses them, and all others share them.

An underlay of routers needs none of that: with ``gateway`` and ``mac`` of an existing router, hosts send to
it, and the controller's driver gives it the routes. The kernel then manages its neighbour entry, because the
host's own traffic uses it too.

Migration: the pool's route is the widest, so each peer's tunnel routes take precedence while they exist.

Rejected: one gateway for each network (a host then needs as many neighbours, and isolation uses the source's
prefix anyway); proxy ARP (every container in every switch's and host's table); the host's real gateway (its
own packets would meet our flows).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from linkspan.backends.multi_host import offered, own, plain_states, underlay
from linkspan.backends.routed import RoutedBackend
from linkspan.core.addresses import GATEWAY_MAC, Prefix, link_local, mac, prefix
from linkspan.core.errors import Conflict, Invalid
from linkspan.core.host_view import HostView, Peer
from linkspan.core.model import Network
from linkspan.core.ruleset import element
from linkspan.core.states.host import Neighbour, Route, State

GATEWAY = "169.254.76.1"
"""In the link-local range (RFC 3927): no router forwards there, and no pool may overlap with it."""


class SdnBackend(RoutedBackend):
    """A route to the gateway; the switches do everything else."""

    name = "sdn"
    summary = "SDN: the underlay's switch (Open vSwitch) is the router; a controller programs it"
    no_exit = "the underlay's switches carry packets of its pools only"
    options: Mapping[str, str] = {"gateway": "IPV4[,IPV6]", "mac": "MAC"}

    def check(self, network: Network) -> None:
        """Refuse unknown options, and an invalid gateway."""
        super().check(network)
        if "mac" in network.options:
            try:
                mac(network.options["mac"])
            except Invalid as error:
                raise error.within(f"network {network.name}: --opt mac") from error
        elif "gateway" in network.options:
            raise Invalid(
                f"network {network.name}: gateway={network.options['gateway']} has no MAC",
                "also give --opt mac=02:00:00:00:00:01: the guard recognises the gateway's packets by it",
            )
        for text in network.options.get("gateway", "").split(","):
            if text and any(pool.holds(prefix(text).single()) for pool in network.prefixes):
                raise Invalid(
                    f"network {network.name}: gateway {text} is in its own pool", "give one outside the pools"
                )

    def completed(self, network: Network, others: Iterable[Network]) -> Network:
        """Give the network the gateway that all networks of this backend share."""
        shared = next((o.options for o in others if o.backend == self.name and o.name != network.name), {})
        default = {"gateway": f"{GATEWAY},{link_local(mac(GATEWAY_MAC)).address}", "mac": GATEWAY_MAC}
        if "mac" in network.options and "gateway" not in network.options:
            text = network.options["mac"]
            default = {"gateway": f"{GATEWAY},{link_local(mac(text)).address}", "mac": text}
        options = {**default, **shared, **network.options}
        for key in shared:
            if options[key] != shared[key]:
                raise Conflict(
                    f"network {network.name}: {key} {options[key]} differs from that of the other networks, "
                    f"{shared[key]}",
                    f"leave --opt {key} out: all networks of backend sdn share one gateway",
                )
        return msgspec.structs.replace(network, options=options)

    def network(self, view: HostView, network: Network) -> Iterable[State]:
        """Return the pools' routes through the gateway, its neighbour entries, and what admits its packets."""
        yield from plain_states(view, network)
        here = underlay(view, network)
        families = {pool.family for pool in network.prefixes}
        gateways = {g.family: g for g in gateway(network) if g.family in families}
        if missing := families - gateways.keys():
            raise Invalid(
                f"network {network.name}: its gateway has no address of IPv{min(missing)}",
                "give one address of each family: --opt gateway=192.0.2.254,2001:db8::fe",
            )
        for one in gateways.values():
            if is_virtual(network):
                yield Neighbour(here.ifname, one.packed, mac(network.options["mac"]))
        yield element("gateways", here.ifname, network.options["mac"])
        for pool in network.prefixes:
            via, source = gateways[pool.family].packed, own(view, network, pool.family)
            yield Route(pool, here.ifname, via, source, onlink=True)

    def peer(self, view: HostView, network: Network, peer: Peer) -> Iterable[State]:
        """Return nothing: the switches know the peer. Raises Unavailable if it does not receive by them."""
        offered(network, peer, self.name)
        return ()


def gateway(network: Network) -> tuple[Prefix, ...]:
    """Return the addresses of a network's gateway, without length, IPv4 first; none if it has another backend."""
    texts = network.options.get("gateway", "").split(",") if network.backend == SdnBackend.name else ()
    return tuple(sorted((prefix(text).single() for text in texts if text), key=lambda p: p.family))


def is_virtual(network: Network) -> bool:
    """Return whether the gateway is virtual: a router has an address of its own, which is not link-local."""
    return all(g.packed.startswith((b"\xa9\xfe", b"\xfe\x80")) for g in gateway(network))


BACKEND = SdnBackend()
