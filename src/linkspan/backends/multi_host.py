"""What the backends that cross hosts have in common; each family of addresses is one turn of a loop.

``own`` is this host's address in the network, ``theirs`` the peer's. Every route to a peer has ``own`` as its
source: what the host itself sends to a remote container would otherwise leave with the underlay's address,
which no peer takes from a tunnel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from linkspan.backends.bridge import forwards, pool_states
from linkspan.core.addresses import BITS, FAMILIES, Prefix, host_address, prefix
from linkspan.core.errors import Invalid, Unavailable
from linkspan.core.model import HostView, Network, Peer, Underlay
from linkspan.core.needs import Need
from linkspan.core.ruleset import crossing, element
from linkspan.core.states.host import Address, LinkSysctl, Route, State, Sysctl

SWITCH = ("true", "false")
CHECK_MAC = "check-mac"
"""The option that says whether plain packets of a peer must bear its MAC: they do, unless it is false."""
DISCARD = 9
"""RFC 863: who gets it throws it away."""


def check_options(network: Network, known: Mapping[str, str]) -> None:
    """Refuse options that are not in ``known`` (name to what may be given), a bad switch, and no pool at all."""
    for key, value in network.options.items():
        if key not in known or (key in ("direct", CHECK_MAC) and value not in SWITCH):
            knows = " ".join(f"{name}={values}" for name, values in known.items()) or "none"
            raise Invalid(
                f"network {network.name}: option {key}={value} is unknown to backend {network.backend}",
                f"it knows {knows}",
            )
    if not network.pools:
        raise Invalid(f"network {network.name} has no pool", "give one, --pool 10.244.0.0/16 for example")


def underlay(view: HostView, network: Network) -> Underlay:
    """Return this host's underlay. Raises Unavailable where it has none."""
    if view.host is None or view.host.underlay is None:
        raise Unavailable(
            f"network {network.name} crosses hosts, and this host has no underlay",
            "give one: linkspan agent --underlay IFNAME",
        )
    return view.host.underlay


def offered(network: Network, peer: Peer, backend: str) -> Mapping[str, str]:
    """Return what a peer announced for a backend. Raises Unavailable where it does not receive by it (yet)."""
    offer = peer.lease.endpoints.get(backend)
    if offer is None:
        ways = ", ".join(sorted(peer.lease.endpoints)) or "nothing"
        raise Unavailable(
            f"host {peer.host.name} does not receive by {backend} in network {network.name} (it offers {ways})",
            "its agent has not switched yet: is it running?",
        )
    return offer.data


def sent_to(offer: Mapping[str, str], key: str) -> None:
    """Refuse, by Invalid, an offer without an address that others can send to."""
    if key not in offer:
        raise Invalid(f"it has no {key}")
    host_address(offer[key])


def network_states(view: HostView, network: Network) -> Iterable[State]:
    """Return what every network that crosses hosts needs, whatever the way: pools that fail closed, and guards."""
    yield from pool_states(view, network)
    for pool in network.prefixes:
        yield from crossing(pool, network.subnet_len[str(pool.family)])


def own_addresses(view: HostView, network: Network, device: str) -> Iterable[Address]:
    """Return the host's own addresses in the network, alone, on a device."""
    lease = view.lease(network.name)
    for text in lease.addresses if lease else ():
        yield Address(device, prefix(text).single())


def tunnel_sysctls(device: str, network: Network) -> Iterable[LinkSysctl]:
    """Return a tunnel device's settings: loose reverse paths, for a peer may answer by another way meanwhile."""
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
    """Return this host's address of a family in the network, b'' where it has none (yet)."""
    lease = view.lease(network.name)
    found = lease.address(family) if lease else None
    return found.packed if found else b""


def theirs(network: Network, peer: Peer, family: int) -> bytes:
    """Return the peer's address of a family in the network. Raises Unavailable where its lease has none."""
    found = peer.lease.address(family)
    if found is None:
        raise Unavailable(
            f"the lease of host {peer.host.name} in network {network.name} has prefixes of IPv{family}, "
            "and no address of it"
        )
    return found.packed


def reached(peer: Peer) -> Iterable[Prefix]:
    """Yield all that leads to a peer, each once: its blocks, exact addresses, and its own where no block has them."""
    found = dict.fromkeys(peer.prefixes)
    for address in (prefix(text).single() for text in peer.lease.addresses):
        if not any(one.holds(address) for one in found):
            found[address] = None
    yield from found


def admitted(name: str, where: tuple[str, ...], source: Prefix) -> State:
    """Return the element by which the guard lets a block or an address in: a set of ``ruleset``."""
    exact = "_exact" if source.length == BITS[source.family] else ""
    return element(f"{name}{exact}{source.family}", *where, source.address)


def facing(view: HostView, network: Network, peer: Peer) -> dict[int, bytes]:
    """Return the peer's underlay addresses by which it may be a router on the link, by family.

    Each host says that the other is on its link: by the lengths of its addresses, in its record. So both find
    the same, and what one sends by a plain route the other lets in.
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
    """Tell whether peers on the link get plain routes, besides the tunnel."""
    return network.options.get("direct") == "true"


def gateways(view: HostView, network: Network, peer: Peer) -> dict[int, bytes]:
    """Return the addresses of ``facing`` to which packets go instead of the tunnel: the peer answers at them."""
    if not is_direct(network) or not peer.on_link or peer.standing != "answers":
        return {}
    return facing(view, network, peer)


def plain_route(
    view: HostView, network: Network, peer: Peer, target: Prefix, gateway: bytes
) -> Iterable[State]:
    """Return a route to a prefix with no tunnel, by the peer as a router."""
    yield Route(target, peer.device, gateway, own(view, network, target.family))


def admitted_plainly(view: HostView, network: Network, target: Prefix) -> State:
    """Return the element that lets the prefix's packets in from the underlay's link itself, whoever sends them."""
    return admitted("ways", (underlay(view, network).ifname,), target)


def admitted_neighbour(view: HostView, network: Network, peer: Peer, target: Prefix) -> Iterable[State]:
    """Return what lets the prefix's packets in from the underlay's link by the peer's own MACs.

    By any where the peer's record says none, or the network does not check. A peer sends plain packets only where it
    reaches this host without a router, so they come with its own MAC and no router's.
    """
    if not peer.macs or network.options.get(CHECK_MAC) == "false":
        yield admitted_plainly(view, network, target)
    for one in peer.macs if network.options.get(CHECK_MAC) != "false" else ():
        yield admitted("stations", (underlay(view, network).ifname, one), target)


def related(view: HostView, network: Network) -> list[Network]:
    """Return the networks that may reach this one, or that it may reach: a peer answers by the other one's way."""
    pairs = [(allowance.source, allowance.target) for allowance in view.allowances]
    names = {one for pair in pairs for one, other in (pair, pair[::-1]) if other == network.name}
    return [other for other in view.networks if other.name in names]


def is_unchecked(network: Network, peer: Peer) -> bool:
    """Tell whether a peer's plain packets are taken by any MAC, though the network checks: its record says none."""
    plain = network.backend == "host-gw" or is_direct(network)
    return plain and not peer.macs and network.options.get(CHECK_MAC) != "false"


def plain_needs(view: HostView, network: Network, peer: Peer, *, spare: bool = False) -> Iterable[Need]:
    """Return that packets with the network's own addresses get to the peer as a neighbour, at each family's."""
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
