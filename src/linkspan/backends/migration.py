"""From one way across to another while packets flow: which states, offers and records each phase has.

A host must receive by the new way before anyone sends by it. Three steps, which every host takes by itself:

1. The record names the target. A host's containers send no more at once than both ways carry, and take what either
   does (a route's MTU, and the link's: ``Network.mtus``). It puts the new backend's network states
   beside the old one's, and lets every peer's packets in by both. What a peer will announce follows from its host
   record, so nobody waits for the other's offer. Only then it offers the new way in its lease.
2. It sends to a peer by the new way where both offer it, else by the old one. Routes are what sends, and all else
   a backend's ``peer`` returns is what receives: the routes of one backend, and the rest of both.
3. When it sends to all peers by the new way it says so: its offer has the migration's number as generation. When all
   leases say so, any host writes the record with the new backend; the old one goes. Containers send what the new
   way carries, and whoever is later with that has links that take it since step 1.

A silent host's lease does not say so, and keeps the old way alive; a removed host has no lease.

The two ways of the record are alike, so to turn round is to swap them: a migration from the new way to the old. Who
never offered the new way does not send by it, and need not say that it has left it: so a migration that a silent
host keeps from its end can be taken back without that host. An offer is written only while the record is the one
that it was made for, or it could come after all others have taken the way down.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping

import msgspec

from linkspan.backends import backend
from linkspan.backends.multi_host import loose_underlay
from linkspan.core import seal
from linkspan.core.errors import Conflict, Invalid, LinkspanError, Unavailable
from linkspan.core.model import HostView, Lease, Migration, Network, Offer, Peer, Underlay
from linkspan.core.needs import Need
from linkspan.core.states.host import Key, Route, State
from linkspan.core.states.ipsec import Strongswan


class Meeting(msgspec.Struct, frozen=True):
    """How one peer is met: the states, the backend that sends, and why one of the ways does not serve."""

    states: tuple[State, ...]
    by: str
    problem: str = ""


def started(network: Network, new: Network, here: Underlay, leases: Iterable[Lease]) -> Network:
    """Return the record at the start: ``new`` has the backend and options that are wanted.

    An MTU that was the underlay's less the overhead is so again at the end; a smaller one was somebody's wish, and
    stays where it fits.
    """
    old, way = backend(network.backend), backend(new.backend)
    fits = here.mtu - way.overhead[here.outer]
    wished = network.mtu < here.mtu - old.overhead[here.outer]
    final = min(network.mtu, fits) if wished else fits
    move = Migration(backend=new.backend, options=new.options, mtu=final, number=_number(leases))
    return msgspec.structs.replace(network, migration=move)


def turned(network: Network, leases: Iterable[Lease]) -> Network:
    """Return the record of a migration that goes back to where it came from."""
    new, move = network.target, network.migration
    if new is None or move is None:
        return network
    number = max(move.number + 1, _number(leases))
    back = Migration(backend=network.backend, options=network.options, mtu=network.mtu, number=number)
    return msgspec.structs.replace(new, migration=back)


def _number(leases: Iterable[Lease]) -> int:
    """Return a number that no lease speaks of yet."""
    return 1 + max((offer.generation for lease in leases for offer in lease.endpoints.values()), default=0)


def check(network: Network, name: str) -> None:
    """Refuse what cannot be. Raises Invalid or Conflict, with the reason."""
    move = network.migration
    if move is not None:
        raise Conflict(
            f"network {network.name} migrates from {network.backend} to {move.backend} already",
            f"wait until it is done, `linkspan network show {network.name}` tells which hosts have not switched; "
            f"or go back: linkspan network migrate {network.name} --backend {network.backend}",
        )
    for one in (network.backend, name):
        if not backend(one).crosses_hosts:
            raise Invalid(
                f"network {network.name} cannot migrate from {network.backend} to {name}: "
                f"backend {one} stays on one host, and its containers are attached in another way",
                "create a second network, and attach the containers to it",
            )
    if name == network.backend:
        raise Invalid(f"network {network.name} has backend {name} already")


def check_back(network: Network, options: Mapping[str, str]) -> None:
    """Refuse, by Invalid, to go back to what was not: options that the network did not have."""
    if {**network.options, **options} != network.options:
        had = " ".join(f"{key}={value}" for key, value in network.options.items()) or "none"
        raise Invalid(
            f"network {network.name} goes back to {network.backend} with the options that it had ({had})",
            "leave --opt out; another migration can change them later",
        )


def network_states(view: HostView, network: Network) -> Iterable[State]:
    """Return the network's states of every way; the new one is left out while this host cannot have it.

    The network is sealed where every way encrypts.
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
        return  # ``offer`` tells why, and the host goes on by the old way
    yield from loose_underlay(view, network)


def expected(network: Network, peer: Peer) -> Peer:
    """Return the peer with the offer that follows from its host record, where its lease has none yet."""
    if network.backend in peer.lease.endpoints:
        return peer
    data = backend(network.backend).announce(HostView((network,), host=peer.host), network)
    offers = peer.lease.endpoints | {network.backend: Offer(dict(data or {}))}
    return msgspec.structs.replace(peer, lease=msgspec.structs.replace(peer.lease, endpoints=offers))


def meet(view: HostView, network: Network, peer: Peer) -> Meeting:
    """Return all that one peer needs: routes by one way, and what receives by every way.

    Raises Unavailable where no way leads to it.
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
        # Where a speaker is to put the routes, they have to be there before the old way's go.
        ready = one is network or peer.learnt or not backend(one.backend).learns
        sends = not by and offers and ready
        by = one.backend if sends else by
        states.update((s.key, s) for s in found if sends or not isinstance(s, Route))
    if not by:
        raise Unavailable(
            problem or f"host {peer.host.name} and this one have no way in common in network {network.name}",
            "`linkspan network show` tells which hosts have not switched",
        )
    return Meeting(tuple(states.values()), by, problem)


def needs(view: HostView, network: Network, peer: Peer) -> tuple[list[Need], str]:
    """Return what must get to a peer over the underlay by each way, and why a way cannot be ('' where all can)."""
    found: list[Need] = []
    problem = ""
    for one in network.ways:
        try:
            found += backend(one.backend).needs(view, one, expected(one, peer))
        except LinkspanError as error:
            problem = problem or error.message
    return found, problem


def offer(view: HostView, network: Network, generation: int = 0) -> Offer:
    """Return this host's offer of a way. Raises LinkspanError where it cannot have it."""
    way = backend(network.backend)
    list(way.network(view, network))
    list(way.host(view))
    return Offer(dict(way.announce(view, network) or {}), generation)


def require(view: HostView, network: Network) -> None:
    """Raise LinkspanError where this host cannot have what a new network's way needs of it."""
    way = backend(network.backend)
    if way.encrypts:
        list(way.host(msgspec.structs.replace(view, networks=(*view.networks, network))))


def offers(view: HostView, network: Network, mine: Lease | None) -> dict[str, Offer]:
    """Return what this host offers without having looked at its peers: in a migration, what it offered before.

    That outlives the agent, as the data path does. A host that is new begins with the old way.
    """
    standing = mine.endpoints if mine is not None else {}
    found: dict[str, Offer] = {}
    for one in [one for one in network.ways if one.backend in standing] or [network]:
        data = backend(one.backend).announce(view, one)
        generation = standing.get(one.backend, Offer()).generation
        found |= {} if data is None else {one.backend: Offer(dict(data), generation)}
    return found


def waiting(network: Network, leases: Iterable[Lease]) -> list[str]:
    """Return the ids of the hosts that have not said that they send to all by the new way, and may send by the old."""
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
    """Return the ids of the hosts to look at: those that do not receive by the new way, for all others wait for them.

    Where all receive by it, those that do not send by it.
    """
    known = list(leases)
    behind = waiting(network, known)
    move = network.migration
    deaf = {lease.host for lease in known if move is not None and move.backend not in lease.endpoints}
    return [host for host in behind if host in deaf] or behind


def reasons(view: HostView, network: Network, peers: Iterable[Peer]) -> dict[Key, str]:
    """Return why each state that one way alone needs is there, by key: empty where the network does not migrate."""
    new = network.target
    if new is None:
        return {}
    known = list(peers)
    old_keys, new_keys = (_keys(view, one, known) for one in (network, new))
    kept = f"kept until all hosts have left {network.backend}"
    coming = f"on the way to {new.backend}"
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
