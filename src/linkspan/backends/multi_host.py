"""Parts that backends across hosts share; each address family is one turn of a loop.

``own`` is this host's address in the network, ``theirs`` the peer's. Every route to a peer has ``own`` as its
source. Otherwise packets from the host itself to a remote container would have the underlay's address, which
no peer accepts from a tunnel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from linkspan.backends.bridge import forwards, pool_states
from linkspan.core.addresses import BITS, FAMILIES, Prefix, derived_mac, host_address, prefix
from linkspan.core.errors import Invalid, Unavailable
from linkspan.core.host_view import HostView, Peer
from linkspan.core.model import Network, Underlay
from linkspan.core.needs import Need
from linkspan.core.ruleset import crossing, element
from linkspan.core.states.host import Address, Bridge, LinkSysctl, Route, State, Sysctl

SWITCH = ("true", "false")
CHECK_MAC = "check-mac"
"""Option: plain packets of a peer must have its MAC, unless this is false."""
DISCARD = 9
"""RFC 863: the receiver discards the packet."""


def check_options(network: Network, known: Mapping[str, str]) -> None:
    """Refuse options that are not in ``known`` (name to allowed values), invalid switches, and a lack of pools."""
    for key, value in network.options.items():
        if key not in known or (key in ("direct", CHECK_MAC) and value not in SWITCH):
            knows = " ".join(f"{name}={values}" for name, values in known.items()) or "none"
            raise Invalid(
                f"network {network.name}: option {key}={value} is unknown to backend {network.backend}",
                f"it knows {knows}",
            )
    if not network.pools:
        raise Invalid(f"network {network.name} has no pool", "give one, for example --pool 10.244.0.0/16")


def underlay(view: HostView, network: Network) -> Underlay:
    """Return this host's underlay. Raises Unavailable if it has none."""
    if view.host is None or view.host.underlay is None:
        raise Unavailable(
            f"network {network.name} crosses hosts, and this host has no underlay",
            "give one: linkspan agent --underlay IFNAME",
        )
    return view.host.underlay


def offered(network: Network, peer: Peer, backend: str) -> Mapping[str, str]:
    """Return what a peer announced for a backend. Raises Unavailable if it does not receive by it (yet)."""
    offer = peer.lease.endpoints.get(backend)
    if offer is None:
        ways = ", ".join(sorted(peer.lease.endpoints)) or "nothing"
        raise Unavailable(
            f"host {peer.host.name} does not receive by {backend} in network {network.name} (it offers {ways})",
            "its agent has not switched yet: is it running?",
        )
    return offer.data


def sent_to(offer: Mapping[str, str], key: str) -> None:
    """Refuse, by Invalid, an offer without a usable address."""
    if key not in offer:
        raise Invalid(f"it has no {key}")
    host_address(offer[key])


def network_states(view: HostView, network: Network) -> Iterable[State]:
    """Return the states of every network that crosses hosts, with any backend: pools that fail closed, and guards.

    The chains to which the guards lead follow from the kinds, so the agent's plans have them (`ruleset.admission`).
    """
    yield from pool_states(view, network)
    for pool in network.prefixes:
        yield crossing(pool, network.subnet_len[str(pool.family)])


def own_addresses(view: HostView, network: Network, device: str) -> Iterable[Address]:
    """Return the host's own addresses in the network, without length, on a device."""
    lease = view.lease(network.name)
    for text in lease.addresses if lease else ():
        yield Address(device, prefix(text).single())


def tunnel_sysctls(device: str, network: Network) -> Iterable[LinkSysctl]:
    """Return a tunnel device's settings: loose reverse path, because a peer may answer by another way meanwhile."""
    families = {p.family for p in network.prefixes}
    yield from forwards(device, families)
    if 4 in families:
        yield LinkSysctl(f"net/ipv4/conf/{device}/rp_filter", "2")
        for name in ("accept_redirects", "send_redirects"):
            yield LinkSysctl(f"net/ipv4/conf/{device}/{name}", "0")
    if 6 in families:
        for name in ("accept_ra", "accept_redirects", "disable_ipv6"):
            yield LinkSysctl(f"net/ipv6/conf/{device}/{name}", "0")


def loose_underlay(view: HostView, network: Network) -> Iterable[Sysctl]:
    """Return the setting by which a peer may send by the underlay's own link while this host answers by a tunnel."""
    if any(p.family == 4 for p in network.prefixes):
        yield Sysctl(f"net/ipv4/conf/{underlay(view, network).ifname}/rp_filter", "2")


def own(view: HostView, network: Network, family: int) -> bytes:
    """Return this host's address of a family in the network, b'' if it has none (yet)."""
    lease = view.lease(network.name)
    found = lease.address(family) if lease else None
    return found.packed if found else b""


def theirs(network: Network, peer: Peer, family: int) -> bytes:
    """Return the peer's address of a family in the network. Raises Unavailable if its lease has none."""
    found = peer.lease.address(family)
    if found is None:
        raise Unavailable(
            f"the lease of host {peer.host.name} in network {network.name} has prefixes of IPv{family}, "
            "and no address of it"
        )
    return found.packed


def reached(peer: Peer) -> Iterable[Prefix]:
    """Return all prefixes of a peer once: its blocks, exact addresses, and its own if no block has them."""
    found = dict.fromkeys(peer.prefixes)
    for text in peer.lease.addresses:
        address = prefix(text).single()
        for one in found:
            if one.holds(address):
                break
        else:
            found[address] = None
    return found


def admitted(name: str, where: tuple[str, ...], source: Prefix) -> State:
    """Return the element by which the guard admits a block or an address: a set of ``ruleset``."""
    exact = "_exact" if source.length == BITS[source.family] else ""
    return element(f"{name}{exact}{source.family}", *where, source.address)


def facing(view: HostView, network: Network, peer: Peer) -> dict[int, bytes]:
    """Return the peer's underlay addresses by which it may be a router on the link, by family.

    Each host's record must have the other on its link, by the lengths of the addresses. So both hosts decide
    alike: one sends by a plain route exactly if the other admits it.
    """
    here, there = underlay(view, network), peer.host.underlay
    if there is None:
        return {}
    found = {}
    for family in FAMILIES:
        mine, address = here.address(family), there.address(family)
        if mine is not None and address is not None and _holds(here, address) and _holds(there, mine):
            found[family] = address.packed
    return found


def _holds(one: Underlay, address: Prefix) -> bool:
    return any(p.holds(address) for p in map(prefix, one.addresses))


def is_direct(network: Network) -> bool:
    """Return whether peers on the link get plain routes besides the tunnel."""
    return network.options.get("direct") == "true"


def gateways(view: HostView, network: Network, peer: Peer) -> dict[int, bytes]:
    """Return the addresses of ``facing`` that answer: packets to them need no tunnel."""
    if not is_direct(network) or not peer.on_link or peer.standing != "answers":
        return {}
    return facing(view, network, peer)


def plain_route(
    view: HostView, network: Network, peer: Peer, target: Prefix, gateway: bytes
) -> Iterable[State]:
    """Return a route to a prefix without a tunnel, with the peer as router."""
    yield Route(target, peer.device, gateway, own(view, network, target.family))


def onlink_routes(
    view: HostView, network: Network, peer: Peer, device: str, targets: Iterable[Prefix]
) -> Iterable[Route]:
    """Return routes to prefixes by a device on which the peer's own address of the same family is the next hop."""
    hops: dict[int, tuple[bytes, bytes]] = {}
    for target in targets:
        if (family := target.family) not in hops:
            hops[family] = theirs(network, peer, family), own(view, network, family)
        via, source = hops[family]
        yield Route(target, device, via, source, onlink=True)


def admitted_plainly(view: HostView, network: Network, target: Prefix) -> State:
    """Return the element that admits the prefix's packets from the underlay's link, by any sender."""
    return admitted("ways", (underlay(view, network).ifname,), target)


def admitted_neighbour(view: HostView, network: Network, peer: Peer, target: Prefix) -> Iterable[State]:
    """Return the elements that admit the prefix's packets from the underlay's link by the peer's own MACs.

    They admit any MAC if the peer's record has none, or if the network does not check. A peer sends plain
    packets only if it reaches this host without a router, so they have its own MAC and no router's.
    """
    if not peer.macs or network.options.get(CHECK_MAC) == "false":
        yield admitted_plainly(view, network, target)
    for one in peer.macs if network.options.get(CHECK_MAC) != "false" else ():
        yield admitted("stations", (underlay(view, network).ifname, one), target)


def related(view: HostView, network: Network) -> list[Network]:
    """Return the networks that may reach this one, or that it may reach: a peer answers by their backend."""
    if not view.allowances:
        return []
    pairs = [(allowance.source, allowance.target) for allowance in view.allowances]
    names = {one for pair in pairs for one, other in (pair, pair[::-1]) if other == network.name}
    return [other for other in view.networks if other.name in names]


def is_unchecked(network: Network, peer: Peer, *, neighbours: bool) -> bool:
    """Return whether a peer's plain packets pass with any MAC, though the network checks: its record has none.

    ``neighbours`` is what the network's backend says of itself.
    """
    plain = neighbours or is_direct(network)
    return plain and not peer.macs and network.options.get(CHECK_MAC) != "false"


def plain_needs(view: HostView, network: Network, peer: Peer, *, spare: bool = False) -> Iterable[Need]:
    """Return that packets with the network's own addresses reach the peer as a neighbour, in each family."""
    found = facing(view, network, peer)
    for family in sorted({pool.family for pool in network.prefixes} & found.keys()):
        source, target = own(view, network, family), peer.lease.address(family)
        if source and target is not None:
            what = f"plain IPv{family} packets of network {network.name}"
            fix = (
                "switch the check of source addresses off for these hosts (a cloud's source/destination check, "
                f"a switch's port security), or use a tunnel: linkspan network migrate {network.name} --backend vxlan"
            )
            yield Need(
                what, "udp", source, target.packed, network.mtu, fix, DISCARD,
                neighbour=found[family], spare=spare,
            )  # fmt: skip


def plain_states(view: HostView, network: Network) -> Iterable[State]:
    """Return the states of a network without a tunnel: guards, and the link with the host's own addresses."""
    yield from network_states(view, network)
    mtu = min(network.mtu, underlay(view, network).mtu)
    yield Bridge(network.bridge, derived_mac("bridge", network.name), mtu)
    yield from own_addresses(view, network, network.bridge)
    if network.egress:  # answers from outside come from the holder, and not by the default route
        yield from loose_underlay(view, network)
