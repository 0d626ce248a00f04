"""Host networking: containers share the host's namespace and addresses; linkspan keeps the host's ports apart.

A packet's walk is the host's own: there is no link, route or rule to make. What a network of this backend
gives is the agreement on ports: an endpoint names the ports that its container will listen on, and no other
endpoint is given them. Runtimes call no network plugin for such containers; `linkspan attach` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from linkspan.core.errors import Invalid
from linkspan.core.model import Endpoint, HostView, Lease, Network, Peer
from linkspan.core.needs import Need
from linkspan.core.states.host import State


class HostBackend:
    """No state at all."""

    name = "host"
    crosses_hosts = False
    overhead: Mapping[int, int] = {4: 0, 6: 0}
    learns = False
    encrypts = False

    def check(self, network: Network) -> None:
        """Pools and options have no meaning here."""
        if network.pools or network.options:
            raise Invalid(
                f"network {network.name}: backend host takes no pool and no option",
                "its containers have the host's own addresses",
            )

    def completed(self, network: Network, others: Iterable[Network]) -> Network:
        """Nothing has to be chosen."""
        return network

    def claims(self, network: Network) -> tuple[str, ...]:
        """Nothing is the network's alone."""
        return ()

    def announce(self, view: HostView, network: Network) -> None:
        """Nothing crosses hosts."""

    def check_offer(self, lease: Lease, offer: Mapping[str, str]) -> None:
        """It says nothing that is used."""

    def host(self, view: HostView) -> Iterable[State]:
        """Each network has its own."""
        return ()

    def peer(self, view: HostView, network: Network, peer: Peer) -> Iterable[State]:
        """Nothing crosses hosts."""
        return ()

    def needs(self, view: HostView, network: Network, peer: Peer) -> Iterable[Need]:
        """Nothing crosses hosts."""
        return ()

    def network(self, view: HostView, network: Network) -> Iterable[State]:
        """Return nothing."""
        return ()

    def endpoint(self, network: Network, endpoint: Endpoint) -> Iterable[State]:
        """Return nothing."""
        return ()


BACKEND = HostBackend()
