"""Policy coverage: whose packets pass the rules of policies on this host, and at which addresses or ports."""

from __future__ import annotations

from linkspan.core.addresses import Prefix, link_local, mac
from linkspan.core.model import Endpoint, Network, Port
from linkspan.core.ports import families_of, key_of
from linkspan.kernel.drivers import bridge_filters
from linkspan.policy.model import Direction

_NO_PORT = "it publishes no port, and policies know a container on the host's own network by its ports alone"
_NO_EGRESS = "what it sends has the host's own addresses, so no rule knows it"


def policed(endpoint: Endpoint) -> bool:
    """Return whether an endpoint's packets pass the chains of policies: not without br_netfilter, on a bridge."""
    return endpoint.host_ifname.startswith("lsr") or (bridged(endpoint) and bridge_filters.available())


def bridged(endpoint: Endpoint) -> bool:
    """Return whether an endpoint is on a bridge."""
    return endpoint.host_ifname.startswith("lsp")


def hosted(endpoint: Endpoint) -> bool:
    """Return whether an endpoint is on its host's own network: policies are about its ports, for what comes in."""
    return not (endpoint.host_ifname or endpoint.addresses)


def addresses(endpoint: Endpoint) -> list[Prefix]:
    """Return the addresses that an endpoint has for others, without length: on a bridge link-local ones, too."""
    found = [one.single() for one in endpoint.prefixes]
    if bridged(endpoint) and any(one.family == 6 for one in found):
        found += [link_local(mac(text)) for text in dict.fromkeys((endpoint.mac, endpoint.born_mac or endpoint.mac))]
    return found


def spots(port: Port) -> list[str]:
    """Return by which texts a port of the host is known, one for each family: ``10.0.0.1 tcp 80``, ``4 tcp 80``."""
    at, key = key_of(port)
    return [" ".join(key if at else (str(family), *key)) for family in families_of(port)]


def spots_at(address: Prefix, protocol: str, port: int) -> tuple[str, str]:
    """Return the texts by which a port at an address of the host may be known: of this address, and of all."""
    return f"{address.address} {protocol} {port}", f"{address.family} {protocol} {port}"


def unenforceable(network: Network, direction: Direction = "ingress") -> str:
    """Return why linkspan enforces no policy in a network on this host, '' if it does."""
    if network.on_host:
        return _NO_EGRESS if direction == "egress" else ""
    if network.routed or bridge_filters.available():
        return ""
    return f"its containers are on a bridge, and {bridge_filters.MISSING}"


def uncovered(endpoint: Endpoint, network: Network, direction: Direction) -> str:
    """Return why policies do not protect an endpoint of this host, '' if they do."""
    if hosted(endpoint) and direction == "ingress":
        return "" if endpoint.ports else _NO_PORT
    return "" if policed(endpoint) else unenforceable(network, direction)
