"""Egress addresses: the states of a network whose packets leave to the outside by one host (``core/egress``)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from linkspan.core import egress
from linkspan.core.addresses import Prefix, whole
from linkspan.core.host_view import HostView, Peer
from linkspan.core.model import Network
from linkspan.core.ruleset import element, pool_text
from linkspan.core.states.host import HOST, UNREACHABLE_METRIC, PolicyRule, Route, State


def network_states(view: HostView, network: Network) -> Iterable[State]:
    """Return what a network's egress addresses need on every host: with the address, or without it."""
    if not network.egress:
        return
    yield from egress.chains()
    number = egress.numbers(view.networks)[network.name]
    mark, table = egress.MARK | number, egress.TABLES + number
    for family, exit_ in network.exits.items():
        yield element(f"egress_at{family}", exit_.prefix.address)
        here = view.host is not None and view.exits.get((network.name, family)) == view.host.id
        if here:  # on another host it may be an address of the host's own, if a record lies
            yield element(f"egress_here{family}", exit_.prefix.address)
        for pool in network.prefixes:
            if pool.family != family:
                continue
            text = pool_text(pool)
            yield element(f"egress_nets{family}", text)
            if here:
                yield element(f"egress_by{family}", text, data=(exit_.prefix.address,))
            else:
                yield element(f"egress_marks{family}", text, data=(str(mark),))
        if not here:
            yield Route(whole(family), metric=UNREACHABLE_METRIC, table=table)
            yield PolicyRule(HOST, egress.PRIORITY, whole(family), table, mark=mark)


def families(view: HostView, network: Network, peer: Peer) -> list[int]:
    """Return the families of those of a network's egress addresses that a peer holds."""
    return [family for family in network.exits if view.exits.get((network.name, family)) == peer.host.id]


def routes(
    view: HostView, network: Network, peer: Peer, device: str, gateways: Mapping[int, bytes], *, plain: bool
) -> Iterable[State]:
    """Return the routes to the outside through a peer that holds an egress address.

    ``gateways`` has the peer's address on the device by families, b'' if the device finds the peer by itself.
    ``plain``: the device is the underlay's own link.
    """
    for family in families(view, network, peer):
        table = egress.TABLES + egress.numbers(view.networks)[network.name]
        if (gateway := gateways.get(family)) is not None:
            yield Route(whole(family), device, gateway, onlink=bool(gateway) and not plain, table=table)
            if plain:
                yield element(f"egress_hops{family}", Prefix(gateway, 0).address)
