"""Base classes of backends across hosts: routed containers, and tunnels to one address of each peer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from linkspan.backends import egress
from linkspan.backends.base import BaseBackend
from linkspan.backends.bridge import routed_endpoint, shaped
from linkspan.backends.multi_host import (
    CHECK_MAC,
    admitted_neighbour,
    check_options,
    facing,
    gateways,
    is_direct,
    loose_underlay,
    network_states,
    offered,
    own_addresses,
    plain_route,
    reached,
    sent_to,
    tunnel_sysctls,
    underlay,
)
from linkspan.core.addresses import Prefix, prefix
from linkspan.core.errors import Unavailable
from linkspan.core.host_view import HostView, Peer
from linkspan.core.model import Endpoint, Lease, Network
from linkspan.core.states.host import Route, State


class RoutedBackend(BaseBackend):
    """Crosses hosts; each container has a link of its own, on which its host routes."""

    crosses_hosts = True
    options: Mapping[str, str] = {}
    """The options of its networks, with the allowed values."""

    def check(self, network: Network) -> None:
        """Refuse unknown options."""
        check_options(network, self.options)

    def network(self, view: HostView, network: Network) -> Iterable[State]:
        """Return pools that fail closed, the guards, and what egress addresses need."""
        yield from network_states(view, network)
        yield from egress.network_states(view, network)

    def announce(self, view: HostView, network: Network) -> Mapping[str, str] | None:
        """Return an empty offer: the host record has everything, and the offer only says that the host receives."""
        underlay(view, network)
        return {}

    def endpoint(self, network: Network, endpoint: Endpoint) -> Iterable[State]:
        """Return a routed endpoint."""
        yield from routed_endpoint(network, endpoint)
        yield from shaped(endpoint)


class TunnelBackend(RoutedBackend):
    """A tunnel device to which routes lead; each peer announces the one underlay address at which it receives.

    A subclass says what the device is, how it sends to a peer, and how the guard recognises packets from the
    peer. With ``direct=true`` peers on the same link also get plain routes.
    """

    options: Mapping[str, str] = {"direct": "true|false", CHECK_MAC: "true|false"}

    def device(self, network: Network) -> str:
        """Return the name of the device of a network, which may serve other networks too."""
        raise NotImplementedError

    def received(self, view: HostView, network: Network) -> Iterable[State]:
        """Return the device, and all other states for receiving."""
        raise NotImplementedError

    def met(
        self, view: HostView, network: Network, peer: Peer, address: Prefix, targets: Sequence[Prefix]
    ) -> Iterable[State]:
        """Return how the device sends to a peer that has these prefixes, and admits the peer's tunnel packets."""
        raise NotImplementedError

    def let_in(
        self, view: HostView, network: Network, peer: Peer, address: Prefix, targets: Sequence[Prefix]
    ) -> Iterable[State]:
        """Return the elements by which the guard admits packets from the peer's prefixes on the device."""
        raise NotImplementedError

    def routes(
        self, view: HostView, network: Network, peer: Peer, address: Prefix, targets: Sequence[Prefix]
    ) -> Iterable[Route]:
        """Return the routes through the device to those of the peer's prefixes that it serves."""
        raise NotImplementedError

    def family(self, view: HostView, network: Network) -> int:
        """Return the family of the underlay addresses by which this host sends."""
        return underlay(view, network).outer

    def far(self, view: HostView, network: Network, peer: Peer) -> Prefix:
        """Return the address at which a peer receives. Raises Unavailable if this host cannot send there."""
        address, family = prefix(offered(network, peer, self.name)["address"]), self.family(view, network)
        if address.family != family:
            raise Unavailable(
                f"host {peer.host.name} receives by {self.name} at {address.address}, and this host sends by "
                f"IPv{family}",
                f"give it an underlay address of IPv{family}",
            )
        return address

    def plain(self, view: HostView, network: Network) -> bool:
        """Return whether peers on the same link may send plain packets."""
        return is_direct(network)

    def announce(self, view: HostView, network: Network) -> Mapping[str, str]:
        """Return the address to which peers send."""
        here, family = underlay(view, network), self.family(view, network)
        address = here.address(family)
        if address is None:
            raise Unavailable(
                f"network {network.name}: the underlay {here.ifname} has no address of IPv{family}, by which backend "
                f"{self.name} receives",
                "give it such an address, or use another backend",
            )
        return {"address": address.address}

    def check_offer(self, lease: Lease, offer: Mapping[str, str]) -> None:
        """Accept only an offer with an address to send to."""
        sent_to(offer, "address")

    def network(self, view: HostView, network: Network) -> Iterable[State]:
        """Return the device with its settings and this host's own addresses, and the guards."""
        yield from super().network(view, network)
        yield from self.received(view, network)
        if is_direct(network):
            yield from loose_underlay(view, network)
        yield from tunnel_sysctls(self.device(network), network)
        yield from own_addresses(view, network, self.device(network))

    def peer(self, view: HostView, network: Network, peer: Peer) -> Iterable[State]:
        """Return the states that send to the peer, its routes, and the elements that admit its packets."""
        address, targets = self.far(view, network, peer), list(reached(peer))
        yield from self.met(view, network, peer, address, targets)
        direct = gateways(view, network, peer)
        plain = facing(view, network, peer) if self.plain(view, network) else {}
        yield from self.let_in(view, network, peer, address, targets)
        for target in targets:
            if target.family in plain:
                yield from admitted_neighbour(view, network, peer, target)
            if gateway := direct.get(target.family):
                yield from plain_route(view, network, peer, target, gateway)
        tunnelled = [target for target in targets if target.family not in direct]
        yield from self.routes(view, network, peer, address, tunnelled)
