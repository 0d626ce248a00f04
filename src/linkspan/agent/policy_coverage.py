"""Policy coverage: whose packets pass the rules of policies on this host, and at which addresses."""

from __future__ import annotations

from linkspan.core.addresses import Prefix, link_local, mac
from linkspan.core.model import Endpoint, Network
from linkspan.kernel.drivers import bridge_filters


def policed(endpoint: Endpoint) -> bool:
    """Return whether an endpoint's packets pass the chains of policies: not without br_netfilter, on a bridge."""
    return endpoint.host_ifname.startswith("lsr") or (bridged(endpoint) and bridge_filters.available())


def bridged(endpoint: Endpoint) -> bool:
    """Return whether an endpoint is on a bridge."""
    return endpoint.host_ifname.startswith("lsp")


def addresses(endpoint: Endpoint) -> list[Prefix]:
    """Return the addresses that an endpoint has for others, without length: on a bridge link-local ones, too."""
    found = [one.single() for one in endpoint.prefixes]
    if bridged(endpoint) and any(one.family == 6 for one in found):
        found += [link_local(mac(text)) for text in dict.fromkeys((endpoint.mac, endpoint.born_mac or endpoint.mac))]
    return found


def unenforceable(network: Network) -> str:
    """Return why linkspan enforces no policy in a network on this host, '' if it does."""
    if network.on_host:
        return "its containers have the host's own addresses, so no rule knows them"
    if network.routed or bridge_filters.available():
        return ""
    return f"its containers are on a bridge, and {bridge_filters.MISSING}"
