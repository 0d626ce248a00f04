"""Reconstruction of endpoints that the journal lost, from the kernel's objects and the store's records (pure).

The journal of a host can be lost, emptied, or replaced by an older backup. Its containers keep running, and
three other sources know them: the kernel has a veth pair with an alternative name for each, our rules have
the MAC and the addresses from which each may send, and the store has the record that this host published.

The kernel has precedence, because it has the present state. Addresses are read from our own rules and not
from inside a container, which could claim another one's. A record or a row counts if it agrees with the
kernel. Only the container's id is not in the kernel: the name of a pair is a digest of it. So every source of
an id (a record, a runtime's next call, the name of a namespace) is compared with that digest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from linkspan.backends import backend
from linkspan.core import bandwidth, fast_path
from linkspan.core.addresses import Prefix, link_local, mac, mac_text, prefix
from linkspan.core.errors import Invalid, LinkspanError
from linkspan.core.model import Bandwidth, Endpoint, Network, checked_name, host_ifname
from linkspan.core.ruleset import TABLE
from linkspan.core.states.host import HOST, LinkSysctl, NftElement, Route, State, TokenBucket, Veth
from linkspan.endpoints.build import on_interface, resized
from linkspan.endpoints.multihoming import container_states
from linkspan.endpoints.published_ports import Place, is_one, place, read, spot, target

_LARGEST_METRIC, _LEAST_MTU = 1 << 31, 68
"""Bounds of an MTU in a record: IPv4 needs at least 68 bytes (RFC 791)."""
_LINK_LOCAL = prefix("fe80::/10")
_ROUTED = "lsr"
"""Host ends of routed endpoints begin so, those of bridge ports with ``lsp``."""


class Link(msgspec.Struct, frozen=True):
    """The host kernel's objects of one pair: its MAC, its addresses, and all states about them.

    Ports lead to one interface of a container, whichever endpoint publishes them (``published_ports``).
    ``published`` are those of the whole container, and ``alone`` says whether it has only this pair.
    """

    veth: Veth
    mac: str
    addresses: tuple[Prefix, ...]
    born_mac: str = ""
    states: tuple[State, ...] = ()
    published: frozenset[Place] = frozenset()
    alone: bool = True

    @property
    def identity_of_peer(self) -> tuple[int, str]:
        """Return the namespace and the name of the container's end, from the alternative name."""
        return self.veth.peer_netns, self.veth.peer_name

    @property
    def routed(self) -> bool:
        """Return whether the container is routed, and no port of a bridge."""
        return self.veth.name.startswith(_ROUTED)

    @property
    def senders(self) -> frozenset[NftElement]:
        """Return the elements of our sets that allow this pair to send."""
        return frozenset(s for s in self.states if isinstance(s, NftElement) and not is_one(s))


def links(observed: Iterable[State]) -> dict[str, Link]:
    """Return the host's observations of each pair, by the name of its host end.

    Those of the fast path are left out: they follow from the endpoint, and say nothing of it.
    """
    states = [s for s in observed if int(getattr(s, "netns", HOST)) == HOST and not fast_path.has(s)]
    veths = {state.name: state for state in states if isinstance(state, Veth)}
    about: dict[str, list[State]] = {name: [veth] for name, veth in veths.items()}
    for state in states:
        device = state.parts[0] if isinstance(state, NftElement) and state.parts else getattr(state, "device", "")
        if device in about:
            about[device].append(state)
    found = {name: _link(veths[name], its) for name, its in about.items()}
    containers: dict[tuple[int, str], set[str]] = {}
    for name, link in found.items():
        netns, end = link.identity_of_peer
        containers.setdefault((netns, "" if netns else end), set()).add(name)
    mates = {name: names for names in containers.values() for name in names}
    holders = {address.address: name for name, link in found.items() for address in link.addresses}
    ports = [state for state in states if is_one(state)]
    led: dict[str, set[Place]] = {}
    leading = {(spot(one), one.set[-1]): holders[target(one)] for one in ports if target(one) in holders}
    for element in ports:
        # Sources of a family in which the container has no address belong to its port in the other one.
        known = (leading.get((spot(element), family)) for family in (element.set[-1], *"46"))
        if holder := holders.get(target(element)) if element.data else next(filter(None, known), None):
            about[holder].append(element)
            for name in mates[holder]:
                led.setdefault(name, set()).add(place(element))
    return {
        name: msgspec.structs.replace(
            link, states=tuple(about[name]), published=frozenset(led.get(name, ())), alone=len(mates[name]) == 1
        )
        for name, link in found.items()
    }


def _link(veth: Veth, states: Iterable[State]) -> Link:
    hardware, born, addresses = "", "", []
    for state in states:
        if not isinstance(state, NftElement) or state.table != TABLE:
            continue
        if state.set == "macs":
            hardware = state.parts[1]
        elif state.set in ("senders4", "senders6"):
            address = prefix(state.parts[2]).single()
            if not _LINK_LOCAL.holds(address):
                addresses.append(address)
            elif address != link_local(mac(state.parts[1])):  # of the MAC before a CNI chain's later plugin set another
                seed = address.packed[8:]
                born = mac_text(bytes((seed[0] ^ 2, *seed[1:3], *seed[5:])))
    return Link(veth, hardware, tuple(sorted(addresses, key=lambda a: (a.family, a.packed))), born)


def agrees(endpoint: Endpoint, network: Network | None, link: Link) -> bool:
    """Return whether an endpoint agrees with the kernel: the same pair, and the same rules if there are any."""
    end = endpoint.delivered or endpoint.ifname
    netns = HOST if endpoint.delivered else endpoint.netns
    if (link.veth.name, *link.identity_of_peer) != (endpoint.host_ifname, netns, end):
        return False
    if not called(link, endpoint.id):
        return False
    if not link.senders:
        return True
    if network is None:
        return False
    try:
        own = [s for s in backend(network.backend).endpoint(network, endpoint) if isinstance(s, NftElement)]
        together = container_states([(network, endpoint)])
        ports = {place(s) for s in together if is_one(s)}
    except LinkspanError:  # an address outside all pools
        return False
    if not ports <= link.published or (link.alone and ports != link.published):
        return False
    return {s.key: s for s in own if s.parts[0] == link.veth.name} == {s.key: s for s in link.senders}


def called(link: Link, container: str) -> bool:
    """Return whether a container's id is the one from which the pair got its name."""
    return link.veth.name == host_ifname(link.routed, container, link.veth.peer_name)


def is_unnamed(endpoint: Endpoint) -> bool:
    """Return whether an endpoint's id is its pair's name, because its container's id is not known (yet)."""
    return bool(endpoint.host_ifname) and endpoint.id == endpoint.host_ifname


def may_be(endpoint: Endpoint, container: str, ifname: str = "") -> bool:
    """Return whether an endpoint without a container id may be this container's (and, if given, interface)."""
    end = endpoint.delivered or endpoint.ifname
    routed = endpoint.host_ifname.startswith(_ROUTED)
    return ifname in ("", endpoint.ifname, end) and endpoint.host_ifname == host_ifname(routed, container, end)


def chosen(
    link: Link, row: Endpoint | None, record: Endpoint | None, networks: Mapping[str, Network]
) -> Endpoint | None:
    """Return which of a journal's row and a store's record is the endpoint of a pair, None if neither is.

    It is the row, unless only the record agrees with the kernel: then the row is from an older backup.
    """
    if row is not None and (record is None or agrees(row, networks.get(row.network), link)):
        return row
    if record is not None and agrees(record, networks.get(record.network), link):
        return record
    return row


def believed(record: Endpoint, network: Network) -> Endpoint:
    """Return a record with values that the kernel cannot confirm made safe; anybody with access may have written it.

    A limit that no queueing discipline accepts becomes none, an invalid name becomes empty.
    """
    limits, name = record.bandwidth, record.name
    try:
        if limits is not None:
            bandwidth.check(limits)
    except Invalid:
        limits = None
    try:
        checked_name(name, "container name")
    except Invalid:
        name = ""
    metric = record.metric if 0 <= record.metric < _LARGEST_METRIC else 0
    tuned = record.tuned_mtu if _LEAST_MTU <= record.tuned_mtu < network.mtus[0] else 0
    harmless = msgspec.structs.replace(record, bandwidth=limits, name=name, metric=metric, tuned_mtu=tuned)
    return resized(network, harmless) if record.host_ifname else harmless


def from_kernel(
    link: Link, networks: Iterable[Network], names: Sequence[str], host: str, metric: int
) -> Endpoint | None:
    """Return a pair's endpoint from the kernel alone, None if the kernel has too little.

    ``names`` are words that may be the container's id; without the right one the id is the pair's name.
    ``metric`` is that of the container's default routes by this interface.
    """
    network = _network(link, networks)
    if network is None or not link.mac:
        return None
    netns, end = link.identity_of_peer
    gateways = [next((g.address for pool, g in network.pairs if pool.holds(a)), "") for a in link.addresses]
    found = Endpoint(
        id=next((name for name in names if called(link, name)), link.veth.name),
        ifname=end,
        network=network.name,
        host=host,
        addresses=tuple(str(on_interface(network, address)) for address in link.addresses),
        gateways=tuple(gateways),
        mac=link.mac,
        born_mac=link.born_mac,
        tuned_mtu=link.veth.mtu if link.veth.mtu < network.mtus[0] else 0,
        host_ifname=link.veth.name,
        ports=read(link.states, {address.family for address in link.addresses}),
        netns=netns,
        bandwidth=_bandwidth(link),
        metric=metric,
        delivered=end if netns == HOST else "",
    )
    return resized(network, found)


def _network(link: Link, networks: Iterable[Network]) -> Network | None:
    """Return the network that has all of a pair's addresses, and attaches like the pair."""
    for network in networks:
        held = [any(pool.holds(address) for pool in network.prefixes) for address in link.addresses]
        bridge = "" if network.routed else network.bridge
        if held and all(held) and link.routed == network.routed and link.veth.master in (bridge, ""):
            return network
    return None


def _bandwidth(link: Link) -> Bandwidth | None:
    """Return the limit on the host's end; the other direction's is inside the container, and stays unchanged."""
    bucket = next((s for s in link.states if isinstance(s, TokenBucket)), None)
    return Bandwidth(ingress_rate=bucket.rate * 8, ingress_burst=bucket.burst * 8) if bucket else None


def metric(observed: Iterable[State], ifname: str) -> int:
    """Return the metric of the default routes by an interface, observed inside its namespace."""
    for state in observed:
        if isinstance(state, Route) and state.device == ifname and not state.destination.length and not state.table:
            given = state.metric - 1024 if state.destination.family == 6 and state.metric else state.metric
            return max(given, 0)
    return 0


def unheld(endpoints: Iterable[Endpoint], every: Mapping[str, Link]) -> Iterator[Link]:
    """Yield the pairs that no endpoint has."""
    known = {endpoint.host_ifname for endpoint in endpoints}
    yield from (link for name, link in every.items() if name not in known)


def concerns(state: State, name: str) -> bool:
    """Return whether a state on the host is a pair, is on it, or names it."""
    if isinstance(state, NftElement):
        return name in state.parts
    if isinstance(state, LinkSysctl):
        return f"/{name}/" in state.path
    return name in (getattr(state, "device", ""), getattr(state, "name", "")) and not getattr(state, "netns", HOST)


def text_of(link: Link) -> str:
    """Return a pair as people read it: its name and the place of its other end."""
    netns, end = link.identity_of_peer
    where = f"namespace {netns}" if netns != HOST else "a container of Docker's"
    mac = f", MAC {link.mac}" if link.mac else f", MAC of its host end {mac_text(link.veth.mac)}"
    return f"{link.veth.name} ({end} of {where}{mac})"
