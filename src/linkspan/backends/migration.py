"""Migration of a network to another backend while packets flow: states, offers and records of each phase.

A host must receive by the new way before any host sends by it. Every host takes these three steps by itself:

1. The record names the target. A host's containers send packets that both ways carry, and accept packets of either
   way (by the MTU of a route, and that of the link: ``Network.mtus``). The host puts the new backend's network
   states beside the old one's, and admits every peer's packets by both. A peer's announcement follows from its host
   record, so no host waits for another host's offer. Only then the host offers the new way in its lease.
2. It sends to a peer by the new way if both offer it, else by the old one. Routes decide on sending, and all other
   states of a backend's ``peer`` are for receiving: it has the routes of one backend, and the rest of both.
3. When it sends to all peers by the new way, its offer says so: it has the migration's number as generation. When
   all leases say so, any host writes the record with the new backend, and the old one is removed. Containers then
   send packets that the new way carries. Links accept them since step 1, also on a host that is later.

The lease of a silent host does not say so, which keeps the old way alive. A removed host has no lease.

The two ways of the record are symmetrical: to go back means to swap them, a migration from the new way to the old.
A host that never offered the new way does not send by it, and need not confirm that it has left it. So a migration
that a silent host blocks can be taken back without that host. An offer is written only while the record is the one
for which it was made. Otherwise it could arrive after all others have removed the way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping

import msgspec

from linkspan.backends import backend
from linkspan.backends.multi_host import loose_underlay
from linkspan.core import seal
from linkspan.core.errors import Conflict, Invalid, LinkspanError, Unavailable
from linkspan.core.host_view import HostView, Peer
from linkspan.core.model import Lease, Migration, Network, Offer, Underlay
from linkspan.core.needs import Need
from linkspan.core.states.host import Key, Route, State
from linkspan.core.states.ipsec import Strongswan


class Meeting(msgspec.Struct, frozen=True):
    """The connection to one peer: its states, the backend that sends, and why one of the ways does not work."""

    states: tuple[State, ...]
    by: str
    problem: str = ""


def started(network: Network, new: Network, here: Underlay, leases: Iterable[Lease]) -> Network:
    """Return the record at the start: ``new`` has the desired backend and options.

    An MTU that was the underlay's minus the overhead is so again at the end. A smaller one was a user's
    choice, and stays if it fits.
    """
    old, way = backend(network.backend), backend(new.backend)
    fits = here.mtu - way.overhead[here.outer]
    wished = network.mtu < here.mtu - old.overhead[here.outer]
    final = min(network.mtu, fits) if wished else fits
    move = Migration(backend=new.backend, options=new.options, mtu=final, number=_number(leases))
    return msgspec.structs.replace(network, migration=move)


def turned(network: Network, leases: Iterable[Lease]) -> Network:
    """Return the record of a migration that goes back to the old backend."""
    new, move = network.target, network.migration
    if new is None or move is None:
        return network
    number = max(move.number + 1, _number(leases))
    back = Migration(backend=network.backend, options=network.options, mtu=network.mtu, number=number)
    return msgspec.structs.replace(new, migration=back)


def _number(leases: Iterable[Lease]) -> int:
    """Return a number that no lease mentions yet."""
    return 1 + max((offer.generation for lease in leases for offer in lease.endpoints.values()), default=0)


def check(network: Network, name: str) -> None:
    """Refuse an impossible migration. Raises Invalid or Conflict with the reason."""
    move = network.migration
    if move is not None:
        raise Conflict(
            f"network {network.name} migrates from {network.backend} to {move.backend} already",
            f"wait until it is done (`linkspan network show {network.name}` lists the hosts that have not switched), "
            f"or go back: linkspan network migrate {network.name} --backend {network.backend}",
        )
    for one in (network.backend, name):
        if not backend(one).crosses_hosts:
            raise Invalid(
                f"network {network.name} cannot migrate from {network.backend} to {name}: "
                f"backend {one} does not cross hosts, and attaches its containers in another way",
                "create a second network, and attach the containers to it",
            )
    if name == network.backend:
        raise Invalid(
            f"network {network.name} has backend {name} already",
            f"to change its options, migrate it to another backend, and then back to {name} with --opt",
        )


def check_back(network: Network, options: Mapping[str, str]) -> None:
    """Refuse, by Invalid, to go back to options that the network did not have."""
    if {**network.options, **options} != network.options:
        had = " ".join(f"{key}={value}" for key, value in network.options.items()) or "none"
        raise Invalid(
            f"network {network.name} goes back to {network.backend} with the options that it had ({had})",
            "leave --opt out; another migration can change them later",
        )


def network_states(view: HostView, network: Network) -> Iterable[State]:
    """Return the network's states of every way, without the new one while this host cannot have it.

    The network is sealed if every way encrypts.
    """
    if all(backend(one.backend).encrypts for one in network.ways):
        found = view.facts.program(Strongswan)
        yield from seal.sealed(network.prefixes, xfrm=found is not None and found.kernel)
    yield from backend(network.backend).network(view, network)
    new = network.target
    if new is None:
        return
    try:
        yield from list(backend(new.backend).network(view, new))
    except LinkspanError:
        return  # ``offer`` reports why, and the host keeps the old way
    yield from loose_underlay(view, network)


def expected(network: Network, peer: Peer) -> Peer:
    """Return the peer with the offer that follows from its host record, if its lease has none yet."""
    if network.backend in peer.lease.endpoints:
        return peer
    data = backend(network.backend).announce(HostView((network,), host=peer.host), network)
    offers = peer.lease.endpoints | {network.backend: Offer(dict(data or {}))}
    return msgspec.structs.replace(peer, lease=msgspec.structs.replace(peer.lease, endpoints=offers))


def meet(view: HostView, network: Network, peer: Peer) -> Meeting:
    """Return everything that one peer needs: routes by one way, and states that receive by every way.

    Raises Unavailable if no way leads to it.
    """
    if network.migration is None:
        return Meeting(tuple(backend(network.backend).peer(view, network, peer)), network.backend)
    mine = view.lease(network.name)
    states: dict[object, State] = {}
    by, problem = "", ""
    for one in network.ways:
        try:
            found = list(backend(one.backend).peer(view, one, expected(one, peer)))
        except LinkspanError as error:
            problem = problem or error.message
            continue
        offers = mine is not None and one.backend in mine.endpoints and one.backend in peer.lease.endpoints
        # If a speaker adds the routes, they must exist before the old way's routes are removed.
        ready = one is network or peer.learnt or not backend(one.backend).learns
        sends = not by and offers and ready
        by = one.backend if sends else by
        states.update((s.key, s) for s in found if sends or not isinstance(s, Route))
    if not by:
        raise Unavailable(
            problem or f"host {peer.host.name} and this host have no backend in common in network {network.name}",
            "`linkspan network show` lists the hosts that have not switched",
        )
    return Meeting(tuple(states.values()), by, problem)


def needs(view: HostView, network: Network, peer: Peer) -> tuple[list[Need], str]:
    """Return what must reach a peer by each way, and why a way is impossible ('' if all are possible)."""
    found: list[Need] = []
    problem = ""
    for one in network.ways:
        try:
            found += backend(one.backend).needs(view, one, expected(one, peer))
        except LinkspanError as error:
            problem = problem or error.message
    return found, problem


def offer(view: HostView, network: Network, generation: int = 0) -> Offer:
    """Return this host's offer of a way. Raises LinkspanError if it cannot have it."""
    way = backend(network.backend)
    list(way.network(view, network))
    list(way.host(view))
    return Offer(dict(way.announce(view, network) or {}), generation)


def require(view: HostView, network: Network) -> None:
    """Raise LinkspanError if this host cannot have what a new network's backend needs before the network.

    States that come after the peers are refused when the agent applies them.
    """
    way = backend(network.backend)
    if way.host_phase == "before networks":
        list(way.host(msgspec.structs.replace(view, networks=(*view.networks, network))))


def offers(view: HostView, network: Network, mine: Lease | None) -> dict[str, Offer]:
    """Return this host's offers before it has looked at its peers: in a migration, its earlier offers.

    They outlive the agent, as the data path does. A new host starts with the old way.
    """
    standing = mine.endpoints if mine is not None else {}
    found: dict[str, Offer] = {}
    for one in [one for one in network.ways if one.backend in standing] or [network]:
        data = backend(one.backend).announce(view, one)
        generation = standing.get(one.backend, Offer()).generation
        found |= {} if data is None else {one.backend: Offer(dict(data), generation)}
    return found


def waiting(network: Network, leases: Iterable[Lease]) -> list[str]:
    """Return the ids of the hosts that have not said that they send to all by the new way."""
    move = network.migration
    if move is None:
        return []
    found = []
    for lease in leases:
        new = lease.endpoints.get(move.backend)
        never_left = new is not None and network.backend not in lease.endpoints
        if not never_left and (new is None or new.generation != move.number):
            found.append(lease.host)
    return sorted(found)


def lagging(network: Network, leases: Iterable[Lease]) -> list[str]:
    """Return the ids of the hosts that hold up the migration: those that do not receive by the new way.

    If all receive by it, those that do not send by it.
    """
    known = list(leases)
    behind = waiting(network, known)
    move = network.migration
    deaf = {lease.host for lease in known if move is not None and move.backend not in lease.endpoints}
    return [host for host in behind if host in deaf] or behind


def reasons(view: HostView, network: Network, peers: Iterable[Peer]) -> dict[Key, str]:
    """Return why each state that only one way needs exists, by key: empty unless the network migrates."""
    new = network.target
    if new is None:
        return {}
    known = list(peers)
    old_keys, new_keys = (_keys(view, one, known) for one in (network, new))
    kept = f"kept until all hosts have left {network.backend}"
    coming = f"prepared for {new.backend}"
    return dict.fromkeys(old_keys - new_keys, kept) | dict.fromkeys(new_keys - old_keys, coming)


def _keys(view: HostView, way: Network, peers: Iterable[Peer]) -> set[Key]:
    found: set[Key] = set()
    with contextlib.suppress(LinkspanError):
        found = {state.key for state in backend(way.backend).network(view, way)}
    for peer in peers:
        with contextlib.suppress(LinkspanError):
            found |= {
                s.key
                for s in backend(way.backend).peer(view, way, expected(way, peer))
                if not isinstance(s, Route)
            }
    return found
