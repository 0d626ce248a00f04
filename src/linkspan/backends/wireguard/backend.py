"""WireGuard backend: encrypted, authenticated UDP; one device, one key and one port on each host for all networks.

A packet's walk, container A on host 1 to B (10.244.2.9) on host 2: A's default route leads to host 1. There
the route 10.244.2.0/24 dev lswg leads into the device, whose *allowed IPs* say that this prefix belongs to
the peer with host 2's public key. The device encrypts the packet for that peer and sends it to where the peer
was last heard (or to the address in its record). On host 2 the packet itself shows the sender's key. The
device accepts it only if the inner source is an allowed IP of exactly that key, and the guard checks again
that a peer has the source in this network. Networks are distinguished by their addresses, as in all routed
backends.

A host makes its private key itself, and the key never leaves the host. The public key is in the host's
record, so a peer's announcement is known before it is made. If the kernel has no WireGuard, lswg is a
persistent TUN that wireguard-go serves: when wireguard-go ends, device and routes stay. The packets on the
wire are the same. In both cases the pools are sealed.

A peer costs an entry with its key, and for each prefix an allowed IP, a route and a set element. Overhead: 60
bytes over IPv4 (outer header 20, UDP 8, WireGuard 32), 80 over IPv6; the device has the MTU. Inner and outer
families are independent.

A host behind a NAT that lets nobody in (``--advertise none``) has no endpoint: other hosts wait until it
contacts them, which it does at once, and it keeps the NAT open by keepalives. Two such hosts cannot reach
each other directly: they send through a host that both reach, the first by its id of those in the network. On
both hosts it has the other's addresses as allowed IPs; it decrypts, and forwards like a router.

Rejected: a device for each network (a port and a key more for each, with the same hosts as peers); public
keys in the leases (a host has one key, whatever its networks). So its networks have no egress addresses: of the peers
of one device only one can have 0.0.0.0/0 as an allowed IP, and another network may leave by another host.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from linkspan.backends.multi_host import (
    admitted,
    network_states,
    offered,
    own,
    own_addresses,
    reached,
    tunnel_sysctls,
    underlay,
)
from linkspan.backends.routed import RoutedBackend
from linkspan.core.addresses import FAMILIES
from linkspan.core.errors import Conflict, Unavailable
from linkspan.core.host_view import Facts, HostView, Other, Peer
from linkspan.core.model import Host, Network, Underlay
from linkspan.core.needs import Need
from linkspan.core.program import Program
from linkspan.core.ruleset import element
from linkspan.core.seal import encrypting
from linkspan.core.states.host import Route, State, Wireguard
from linkspan.core.states.programs import Process
from linkspan.core.states.wireguard import (
    DEVICE,
    AllowedIp,
    Tools,
    WireguardKey,
    WireguardPeer,
    check_key,
    key_id,
    settings,
)

PROCESS = "wireguard"
HEADERS = 8 + 32
"""Bytes of the UDP header, and of WireGuard's header with its authentication tag (section 5.4.6 of its paper)."""


class WireguardBackend(RoutedBackend):
    """One device for all networks."""

    name = "wireguard"
    summary = "WireGuard: a container's packet goes to the other host encrypted, in UDP (port 51820)"
    overhead: Mapping[int, int] = {4: 20 + HEADERS, 6: 40 + HEADERS}
    encrypts = True
    no_exit = (
        "WireGuard chooses the peer by a packet's target, and only one peer of a device can have all targets of the "
        "outside, so all networks would leave by one host"
    )
    has_settings = True
    programs: tuple[tuple[str, str], ...] = (("wg", "wireguard-tools"),)
    watches: tuple[type[Program], ...] = (Tools,)

    def check_settings(self, host: Host) -> None:
        """Check the settings of the device and of its peers. Raises Invalid."""
        settings(host.settings)

    def check_host(self, host: Host) -> None:
        """Check a record's public keys, and its settings, which have the port to which other hosts send."""
        for keys in (host.keys, host.next_keys):
            if public := keys.get(self.name):
                check_key(public)
        self.check_settings(host)

    def announce(self, view: HostView, network: Network) -> Mapping[str, str]:
        """Return the address to which peers send first, an empty offer if this host contacts them."""
        here = underlay(view, network)
        assert view.host is not None
        if self.name not in view.host.keys:
            raise Unavailable(
                f"network {network.name}: host {view.host.name} has made no WireGuard key",
                "`linkspan status` on that host shows why",
            )
        place = _place(view.host, here)
        return {"endpoint": place} if place else {}

    def lacks(self, facts: Facts) -> str:
        """Return that wireguard-go encrypts in user space if the kernel has no WireGuard."""
        found = facts.program(Tools)
        return "wireguard" if found is not None and found.program else ""

    def troubles(self, view: HostView) -> Iterable[str]:
        """Return the problems of this host's key files; a device that has its key already continues."""
        found = view.facts.program(Tools)
        if found is None or found.problem or view.host is None or not any(map(serves, view.networks)):
            return
        public = view.host.keys.get(self.name, "")
        if found.unusable:
            yield f"backend wireguard: {found.unusable}" + (f"; {found.hint}" if found.hint else "")
        elif not public or public not in (found.public, found.next):
            yield (
                f"backend wireguard: {found.file} does not have the private key of {key_id(public)}, by which others "
                "know this host; restore it from a backup, or make another: linkspan host rotate-keys"
            )
        if found.unshared:
            yield f"backend wireguard: {found.unshared}"

    def host(self, view: HostView) -> Iterable[State]:
        """Return the device, its key and all other hosts' keys; of a host that changes its key, both."""
        served = [network for network in view.networks if serves(network)]
        if not served:
            return
        here, tools = underlay(view, served[0]), _tools(view)
        assert view.host is not None
        mine = settings(view.host.settings)
        mtu = here.mtu - self.overhead[here.outer]
        yield Wireguard(DEVICE, mtu, tun=bool(tools.program))
        if tools.program:
            yield Process(PROCESS, tools.program)
        yield from encrypting(DEVICE)
        yield WireguardKey(DEVICE, view.host.keys.get(self.name, tools.public), mine.port, mtu)
        for other in view.others:
            for number, keys in enumerate((other.host.keys, other.host.next_keys)):
                if (public := keys.get(self.name)) and public not in view.doubled:
                    place = _endpoint(here, other.host)
                    # Nothing must be sent with the new key before the peer has switched to it: WireGuard
                    # would retry only 5 s later.
                    keepalive = 0 if number else mine.keepalive
                    yield WireguardPeer(DEVICE, public, place, keepalive, mine.shared_file)

    def network(self, view: HostView, network: Network) -> Iterable[State]:
        """Return this host's own addresses, and the guards."""
        yield from network_states(view, network)
        underlay(view, network)
        found = view.facts.program(Tools)
        if found is None or found.problem:
            return  # there is no device; ``host`` reports why
        yield from tunnel_sysctls(DEVICE, network)
        yield from own_addresses(view, network, DEVICE)
        if network.internal:
            yield element("internal_links", DEVICE)

    def peer(self, view: HostView, network: Network, peer: Peer) -> Iterable[State]:
        """Return the peer's routes and allowed IPs, and the elements that admit its packets."""
        offered(network, peer, self.name)
        _tools(view)
        public = _key(view, network, peer)
        for target in reached(peer):
            yield admitted("ways", (DEVICE,), target)
            yield AllowedIp(DEVICE, target, public)
            yield Route(target, DEVICE, source=own(view, network, target.family))

    def needs(self, view: HostView, network: Network, peer: Peer) -> Iterable[Need]:
        """Return that the UDP port reaches the peer; WireGuard ignores packets that it cannot read."""
        here, there = underlay(view, network), peer.host.underlay
        if there is None or there.hidden or here.hidden or here.advertise or there.advertise:
            return  # a NAT in between changes the packets; the handshakes show what comes back
        port = settings(peer.host.settings).port
        for family in (here.outer, *(f for f in FAMILIES if f != here.outer)):
            source, target = here.bound(family), there.address(family)
            if source and target is not None:
                size = network.mtu + self.overhead[family]
                fix = f"let UDP port {port} pass between the hosts (firewalls, a cloud's security groups)"
                what = f"UDP port {port} (WireGuard)"
                yield Need(what, "udp", source, target.packed, size, fix, port, from_port=True)
                return


def relay(view: HostView, network: str, peer: Host) -> Other | None:
    """Return the host through which two hidden hosts reach each other, None if they are not both hidden.

    Raises Unavailable if there is none.
    """
    mine, theirs = view.host and view.host.underlay, peer.underlay
    if not (mine and theirs and mine.hidden and theirs.hidden):
        return None
    for other in sorted(view.others, key=lambda one: one.host.id):
        public = other.host.underlay is not None and not other.host.underlay.hidden
        if public and network in other.networks and WireguardBackend.name in other.host.keys:
            return other
    raise Unavailable(
        f"host {peer.name} and this host are both behind a NAT, and network {network} has no host that both reach",
        "make one of them reachable (--advertise ADDR:PORT), or let a host that is not behind a NAT join the cluster",
    )


def doubled(hosts: Iterable[Host]) -> list[tuple[str, list[str]]]:
    """Return the public keys that several hosts have, with the hosts' names."""
    owners: dict[str, list[str]] = {}
    for host in hosts:
        if public := host.keys.get(WireguardBackend.name):
            owners.setdefault(public, []).append(host.name)
    return [(public, sorted(names)) for public, names in owners.items() if len(names) > 1]


def serves(network: Network) -> bool:
    """Return whether the network uses the device, now or at the end of its migration."""
    ways = (network.backend, network.migration.backend if network.migration else "")
    return WireguardBackend.name in ways


def _tools(view: HostView) -> Tools:
    """Return how this host makes the device. Raises Unavailable with the reason if it cannot."""
    found = view.facts.program(Tools)
    if found is None or found.problem:
        why = found.problem if found else "this host has not been examined yet"
        raise Unavailable(f"backend wireguard: {why}", found.hint if found else "")
    return found


def _key(view: HostView, network: Network, peer: Peer) -> str:
    """Return the key with which packets to a peer are encrypted: its own, or the relay's."""
    name = WireguardBackend.name
    if names := view.doubled.get(peer.host.keys.get(name, "")):
        raise Conflict(
            f"hosts {' and '.join(names)} have the same WireGuard key: was the state folder of one "
            "copied to the other?",
            "on one of them: linkspan host rotate-keys",
        )
    by = relay(view, network.name, peer.host)
    public = (by.host if by else peer.host).keys.get(name, "")
    if not public:
        raise Unavailable(
            f"host {peer.host.name} has made no WireGuard key", "`linkspan status` on that host shows why"
        )
    if not by:
        _endpoint(underlay(view, network), peer.host, network)
    return public


def _place(host: Host, at: Underlay, family: int = 0) -> str:
    """Return the address to which packets for a host go first, '' if nobody can send to it."""
    address = at.address(family or at.outer)
    if at.hidden or address is None:
        return ""
    port = at.advertise_port or settings(host.settings).port
    return f"{address.address}:{port}" if address.family == 4 else f"[{address.address}]:{port}"


def _endpoint(here: Underlay, other: Host, network: Network | None = None) -> str:
    """Return the address of another host from here, preferably in this host's family.

    Raises Unavailable if a ``network`` needs it and they have no family in common.
    """
    there = other.underlay
    if there is None or there.hidden:
        return ""
    for family in (here.outer, *(f for f in FAMILIES if f != here.outer)):
        if here.bound(family) and (place := _place(other, there, family)):
            return place
    if network is not None:
        raise Unavailable(
            f"host {other.name} and this host have no family of underlay addresses in common",
            f"give both an address of IPv{here.outer}",
        )
    return ""


def asked(view: HostView, hosts: Iterable[Host], networks: Mapping[str, tuple[str, ...]]) -> HostView:
    """Return the view with the other hosts that have keys, each with the networks in which it has a lease.

    Which hosts have one key in common is found out here, once for all peers.
    """
    if view.host is None or not any(serves(network) for network in view.networks):
        return view
    served = {network.name for network in view.networks if serves(network)}
    others = [
        Other(host, tuple(sorted(served & set(networks.get(host.id, ())))))
        for host in sorted(hosts, key=lambda one: one.id)
        if host.id != view.host.id and WireguardBackend.name in host.keys
    ]
    return with_others(view, tuple(one for one in others if one.networks))


def with_others(view: HostView, others: tuple[Other, ...]) -> HostView:
    """Return the view with these hosts."""
    known = [*([view.host] if view.host else []), *(one.host for one in others)]
    return msgspec.structs.replace(view, others=others, doubled=dict(doubled(known)))


BACKEND = WireguardBackend()
