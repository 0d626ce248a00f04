"""Bridge backend, on one host: a bridge whose address is the gateway, or (mode=routed) a host route per container.

A packet's walk on the bridge, container A to B of one network: A's route says that B is on the link. A's
neighbour entry for B comes from B's own answer. The frame leaves A's eth0, enters its port, and passes the
guard (its MAC, its address). The bridge's FDB leads to B's port. To another network or outside: A's default
route leads to the bridge's address, the host routes, the forward chain decides, and masquerade sets the
source to the host's own address. From outside to A: by a published port (DNAT), or if a router knows the
pool.

A container costs: a veth pair, an address, a default route, three set elements (MAC, IPv4, and two for IPv6:
its address and its link-local one). Overhead: none. A bridge takes 1,023 ports.

Routed: the container has /32 and /128. Its gateway is on no subnet; a link route leads to it. The host end of
the veth has the gateway's address, and a host route leads back. There is no layer 2 between containers, so no
ARP to spoof, no broadcast, and no limit of ports. Every backend across hosts builds on this one; see
``routed_endpoint``.

Rejected: the container's address as a secondary on the bridge with proxy ARP (an address used elsewhere
reaches nothing); macvlan (no traffic between host and container); one bridge for all networks (isolation by
VLAN filtering would need a kernel that has it).
"""

from __future__ import annotations

from collections.abc import Iterable

from linkspan.backends.base import BaseBackend
from linkspan.core.addresses import Prefix, derived_mac, link_local, mac, whole
from linkspan.core.errors import Invalid, Unavailable
from linkspan.core.host_view import Facts, HostView
from linkspan.core.ipam import ROUTED_GATEWAY
from linkspan.core.model import Allowance, Endpoint, Network
from linkspan.core.ruleset import BRIDGE, INET, element, pool_text
from linkspan.core.states.host import (
    HOST,
    UNREACHABLE_METRIC,
    Address,
    Bridge,
    ForwardAccept,
    Interface,
    LinkSysctl,
    Route,
    State,
    Sysctl,
    TokenBucket,
    TrustedSource,
    Veth,
)

MODES = ("bridged", "routed")

_FORWARDING = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}
BURST = 32 * 1024
"""Default burst in bytes; tbf splits larger GSO packets itself."""

GRAIN = 1024
"""Bytes: the kernel stores a burst as a time, and only multiples of this read back unchanged."""


class BridgeBackend(BaseBackend):
    """Bridged and routed endpoints on one host."""

    name = "bridge"
    no_exit = "its containers are on one host, whose own address they leave by"

    def check(self, network: Network) -> None:
        """Refuse unknown options, and pools that are too small."""
        for key, value in network.options.items():
            if key != "mode" or value not in MODES:
                raise Invalid(
                    f"network {network.name}: option {key}={value} is unknown to backend bridge",
                    f"it knows mode={'|'.join(MODES)}",
                )
        if not network.pools:
            raise Invalid(f"network {network.name} has no pool", "give one, for example --pool 10.244.0.0/16")

    def network(self, view: HostView, network: Network) -> Iterable[State]:
        """Return the network's sets, sysctls and routes, and the bridge with the gateways."""
        yield from pool_states(view, network)
        yield from (element(f"sources{p.family}", pool_text(p), data=("drop",)) for p in network.prefixes)
        if network.routed:
            return
        name = network.bridge
        yield Bridge(name, derived_mac("bridge", network.name), network.mtu)
        yield from link_sysctls(name, network)
        if any(p.family == 4 for p in network.prefixes):
            yield loopback(name)
        if network.internal:
            yield element("internal_links", name)
        for _, gateway in network.pairs:
            yield Address(name, gateway)
        yield from _solicits(name, network.prefixes)

    def endpoint(self, network: Network, endpoint: Endpoint) -> Iterable[State]:
        """Return both ends of the veth pair, the guard's elements and the limits."""
        if network.routed:
            yield from routed_endpoint(network, endpoint)
        else:
            yield from _bridged_endpoint(network, endpoint)
        yield from shaped(endpoint)


def pool_states(view: HostView, network: Network) -> Iterable[State]:
    """Return the states of every network with pools on its host, bridged or routed."""
    facts = view.facts
    for family in sorted({p.family for p in network.prefixes}):
        if (
            family == 6
        ):  # by default a forwarding kernel drops what router advertisements configured
            yield from (Sysctl(f"net/ipv6/conf/{link}/accept_ra", "2") for link in sorted(facts.ra_links))
        yield Sysctl(_FORWARDING[family], "1")
    for pool in network.prefixes:
        family, text = pool.family, pool_text(pool)
        yield Route(pool, metric=UNREACHABLE_METRIC)
        yield element(f"pools{family}", text)
        if network.masquerade and not network.internal and family not in network.exits:
            yield element(f"masquerade{family}", text)
        if network.internal:
            yield element(f"internal{family}", text)
        yield from _accepted(facts, pool)
        for other in network.prefixes:
            if other.family == family:
                yield element(f"allowed{family}", text, pool_text(other))
    networks = {n.name: n for n in view.networks}
    for allowance in view.allowances:
        if allowance.source == network.name and allowance.target in networks:
            yield from _allowed(network, networks[allowance.target], allowance)


def _accepted(facts: Facts, pool: Prefix) -> Iterable[State]:
    """Return the rules that let the pool's traffic through other programs' firewalls."""
    for family, chain in sorted(facts.forward_chains):
        if family == pool.family:
            yield ForwardAccept(chain, pool)
    if facts.firewalld:
        yield TrustedSource(pool)


def _allowed(source: Network, target: Network, allowance: Allowance) -> Iterable[State]:
    for mine in source.prefixes:
        for theirs in target.prefixes:
            if mine.family != theirs.family:
                continue
            pair = pool_text(mine), pool_text(theirs)
            if allowance.port:
                ports = (allowance.protocol, str(allowance.port))
                yield element(f"allowed_ports{mine.family}", *pair, *ports)
            else:
                yield element(f"allowed{mine.family}", *pair)


def loopback(link: str) -> LinkSysctl:
    """Return the setting that makes published ports answer on 127.0.0.1 (the guard chain closes the rest)."""
    return LinkSysctl(f"net/ipv4/conf/{link}/route_localnet", "1")


def link_sysctls(link: str, network: Network) -> Iterable[LinkSysctl]:
    """Return the settings of a host-side link: it forwards, and answers ARP for its gateway."""
    families = {p.family for p in network.prefixes}
    yield from forwards(link, families)
    if 4 in families:
        for name in ("arp_ignore", "proxy_arp", "proxy_arp_pvlan"):
            yield LinkSysctl(f"net/ipv4/conf/{link}/{name}", "0")
        if network.routed:  # a request with a foreign sender address gets no answer, and adds no neighbour
            yield LinkSysctl(f"net/ipv4/conf/{link}/arp_filter", "1")
        yield LinkSysctl(f"net/ipv4/conf/{link}/accept_redirects", "0")
        yield LinkSysctl(f"net/ipv4/conf/{link}/send_redirects", "0")
    yield LinkSysctl(f"net/ipv6/conf/{link}/disable_ipv6", "0" if 6 in families else "1")
    if 6 in families:
        yield LinkSysctl(f"net/ipv6/conf/{link}/accept_ra", "0")
        yield LinkSysctl(f"net/ipv6/conf/{link}/accept_redirects", "0")


def forwards(link: str, families: Iterable[int]) -> Iterable[LinkSysctl]:
    """Return the settings by which the host forwards packets that arrive on a link."""
    for family in sorted(families):
        yield LinkSysctl(f"net/ipv{family}/conf/{link}/forwarding", "1")


def _container_sysctls(endpoint: Endpoint) -> Iterable[LinkSysctl]:
    """Yield the settings of the interface; a runtime may have disabled IPv6 there, although the network has it."""
    if any(p.family == 6 for p in endpoint.prefixes):
        for name, value in (("disable_ipv6", "0"), ("accept_ra", "0")):
            yield LinkSysctl(f"net/ipv6/conf/{endpoint.ifname}/{name}", value, endpoint.netns)


def _guarded(endpoint: Endpoint, table: str) -> Iterable[State]:
    """Return the elements with the MAC and addresses from which the endpoint may send."""
    port = (endpoint.host_ifname, endpoint.mac)
    yield element("macs", *port, table=table)
    for address in endpoint.prefixes:
        yield element(f"senders{address.family}", *port, address.address, table=table)
    if any(p.family == 6 for p in endpoint.prefixes):
        for hardware in dict.fromkeys((endpoint.mac, endpoint.born_mac or endpoint.mac)):
            yield element("senders6", *port, link_local(mac(hardware)).address, table=table)


def _pair(endpoint: Endpoint, host_mac: bytes, master: str) -> Iterable[State]:
    name, netns = endpoint.host_ifname, endpoint.netns
    if endpoint.delivered:
        yield Veth(name, host_mac, endpoint.mtu, master, HOST, endpoint.delivered, hairpin=bool(master))
        if netns:  # both ends have one MTU: an end drops larger packets silently
            yield Interface(netns, endpoint.ifname, mac(endpoint.mac), endpoint.mtu)
        return
    yield Veth(name, host_mac, endpoint.mtu, master, netns, endpoint.ifname, hairpin=bool(master))
    yield Interface(netns, endpoint.ifname, mac(endpoint.mac), endpoint.mtu)
    yield from _container_sysctls(endpoint)


def host_mac(network: Network, host_ifname: str) -> bytes:
    """Return the MAC of a pair's host end: a port's own, or if routed the gateway's."""
    return derived_mac("gateway", network.name) if network.routed else derived_mac("port", host_ifname)


def _bridged_endpoint(network: Network, endpoint: Endpoint) -> Iterable[State]:
    yield from _pair(endpoint, host_mac(network, endpoint.host_ifname), network.bridge)
    for address, gateway in _paired(network, endpoint):
        if not endpoint.delivered:
            yield Address(endpoint.ifname, Prefix(address.packed, gateway.length), endpoint.netns)
        if _sets_default(network, endpoint):
            yield _default_route(endpoint, gateway)
    yield from _pool_routes(network, endpoint)
    yield from _guarded(endpoint, BRIDGE)


def _metric(endpoint: Endpoint, family: int) -> int:
    """Return the endpoint's metric as the family counts: by default 1024 for IPv6 and 0 for IPv4."""
    return endpoint.metric + 1024 if family == 6 and endpoint.metric else endpoint.metric


def _sets_default(network: Network, endpoint: Endpoint) -> bool:
    """Return whether linkspan sets the default route. Docker sets its own, except on an internal network."""
    return bool(endpoint.netns) and (network.internal or not endpoint.delivered)


def _default_route(endpoint: Endpoint, gateway: Prefix) -> Route:
    return Route(
        whole(gateway.family),
        endpoint.ifname,
        gateway.packed,
        metric=_metric(endpoint, gateway.family),
        netns=endpoint.netns,
        onlink=bool(endpoint.delivered),  # Docker may be about to add the route to the gateway
        mtu=endpoint.path_mtu,
    )


def _pool_routes(network: Network, endpoint: Endpoint) -> Iterable[Route]:
    """Return a route to each pool by this interface, whichever of the container's networks has the default route.

    It can be added before the route to the gateway where a runtime may add that late (``is_onlink``).
    """
    for family, gateway in gateways(network, endpoint).items() if endpoint.netns else ():
        for pool in network.prefixes:
            if pool.family == family and not on_link(network, endpoint, pool):
                yield Route(
                    pool,
                    endpoint.ifname,
                    gateway.packed,
                    metric=_metric(endpoint, family),
                    netns=endpoint.netns,
                    onlink=is_onlink(endpoint, family),
                    mtu=endpoint.path_mtu,
                )


def is_onlink(endpoint: Endpoint, family: int) -> bool:
    """Return whether routes say that the gateway is on the link; otherwise the route to the gateway must be there.

    For IPv6 the kernel refuses to be told so if another link leads to the gateway: that of the container's first
    interface in the same network. Docker gives a container only one, and may add the route to the gateway late.
    """
    return family == 4 or bool(endpoint.delivered)


def gateways(network: Network, endpoint: Endpoint) -> dict[int, Prefix]:
    """Return the gateway that the endpoint uses, for each of its families. Raises Unavailable like its states."""
    return {address.family: gateway for address, gateway in reversed(list(_paired(network, endpoint)))}


def on_link(network: Network, endpoint: Endpoint, pool: Prefix) -> bool:
    """Return whether the kernel reaches a pool on the interface without a gateway: that of its address on a bridge."""
    return not network.routed and any(address.network() == pool.network() for address in endpoint.prefixes)


def routed_endpoint(network: Network, endpoint: Endpoint) -> Iterable[State]:
    """Return a routed endpoint: /32 and /128, the shared gateway address at the host end, and a host route."""
    link, netns = endpoint.host_ifname, endpoint.netns
    yield from _pair(endpoint, host_mac(network, link), "")
    yield from link_sysctls(link, network)
    if network.internal:
        yield element("internal_links", link)
    for address, gateway in _paired(network, endpoint):
        yield Address(link, gateway)
        yield Route(address, link)
        if not endpoint.delivered:
            yield Address(endpoint.ifname, address, netns)
            yield Route(gateway, endpoint.ifname, metric=_metric(endpoint, gateway.family), netns=netns)
        if _sets_default(network, endpoint):
            yield _default_route(endpoint, gateway)
    yield from _pool_routes(network, endpoint)
    yield from _solicits(link, endpoint.prefixes)
    yield from _guarded(endpoint, INET)


def _solicits(link: str, prefixes: Iterable[Prefix]) -> Iterable[Address]:
    """Return a link-local address that is never tentative, if the link has IPv6.

    The host uses a link-local address to ask for the container's MAC when it forwards a packet. The kernel's
    own one is tentative for 2 s, in which forwarded packets would be lost (measured).
    """
    if any(p.family == 6 for p in prefixes):
        yield Address(link, ROUTED_GATEWAY[6])


def _paired(network: Network, endpoint: Endpoint) -> Iterable[tuple[Prefix, Prefix]]:
    """Yield each address (without length) with its pool's gateway. Raises Unavailable if no pool has it (any more)."""
    for address in endpoint.prefixes:
        gateway = next((g for pool, g in network.pairs if pool.holds(address.single())), None)
        if gateway is None:
            raise Unavailable(
                f"address {address.address} of {endpoint.called} is in no pool of network {network.name}",
                f"add the pool that it was in: linkspan network update {network.name} --add-pool",
            )
        yield address.single(), gateway


def shaped(endpoint: Endpoint) -> Iterable[TokenBucket]:
    """Return a token bucket for each limited direction; each shapes what leaves its end of the pair.

    An end that Docker has not taken yet has none: the kernel removes it when the link changes its namespace.
    """
    limits = endpoint.bandwidth
    if limits is None:
        return
    for rate, burst, device, netns in (
        (limits.ingress_rate, limits.ingress_burst, endpoint.host_ifname, HOST),
        (limits.egress_rate, limits.egress_burst, endpoint.ifname, endpoint.netns),
    ):
        if rate and (netns or device == endpoint.host_ifname):
            size = max(burst // 8 or BURST, endpoint.mtu)
            yield TokenBucket(device, max(rate // 8, 1), -(-size // GRAIN) * GRAIN, netns)


BACKEND = BridgeBackend()
