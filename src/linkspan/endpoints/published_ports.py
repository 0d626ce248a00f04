"""Published ports in the kernel: the element of each port in a map of our rules, and the port of an element.

The rules (``core/ruleset``) forward packets to a port of the host as its element says. ``core/ports`` decides who may
have which port. Published ports lead to the interface with the default route, if it has an address of the family: a
UDP server that does not choose a source address answers by the default route, and only then does its client accept
the answer. Docker decides by itself which of its interfaces publishes a container's ports.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TypeGuard

from linkspan.backends.bridge import loopback
from linkspan.core.addresses import Prefix, prefix
from linkspan.core.model import Endpoint, Network, Port, Protocol
from linkspan.core.ruleset import TABLE, element
from linkspan.core.states.host import NftElement, State

_EVERYWHERE, _AT = "publish", "publish_at"
"""The maps of ports at every address of the host, and at one; each is followed by its family."""
_PROTOCOLS: dict[str, Protocol] = {"tcp": "tcp", "udp": "udp", "sctp": "sctp"}

Place = tuple[str, tuple[str, ...], str]
"""A published port without its target address: the map, its key, and the target port."""


def states(homes: Sequence[tuple[Network, Endpoint]]) -> Iterable[State]:
    """Return a map element for each published port of a container and each family of its targets."""
    shared = sorted((home for home in homes if not home[1].delivered), key=lambda home: home[1].metric)
    for home in homes:
        ports = home[1].ports
        if not ports:
            continue
        targets: dict[int, tuple[Prefix, tuple[Network, Endpoint]]] = {}
        for other in (home,) if home[1].delivered else shared:
            for address in other[1].prefixes:
                targets.setdefault(address.family, (address, other))
        for family, (address, (network, endpoint)) in targets.items():
            for port in ports:
                yield from _port(port, family, address)
            if family == 4 and network.routed:  # a bridge has the setting for all its ports
                yield loopback(endpoint.host_ifname)


def _port(port: Port, family: int, target: Prefix) -> Iterable[State]:
    data = (target.address, str(port.port))
    key = (port.protocol, str(port.host_port))
    if port.host_ip and prefix(port.host_ip).family != family:
        return
    if not port.host_ip or not any(prefix(port.host_ip).packed):  # 0.0.0.0 and :: mean every address of a family
        yield element(f"{_EVERYWHERE}{family}", *key, data=data)
    else:
        yield element(f"{_AT}{family}", prefix(port.host_ip).address, *key, data=data)


def is_one(state: State) -> TypeGuard[NftElement]:
    """Return whether a state is the element of a published port."""
    if not isinstance(state, NftElement):
        return False
    return state.table == TABLE and state.set.startswith(_EVERYWHERE) and len(state.data) == 2


def place(of: NftElement) -> Place:
    """Return the port that an element publishes, with its target port."""
    return of.set, of.parts, of.data[1]


def read(observed: Iterable[State], families: Collection[int]) -> tuple[Port, ...]:
    """Return the ports with an element among the states, of an endpoint with addresses of these families."""
    everywhere: dict[tuple[Protocol, int, int], set[int]] = {}
    found: list[Port] = []
    for one in observed:
        if not is_one(one) or one.parts[-2] not in _PROTOCOLS:
            continue
        protocol, number, target = _PROTOCOLS[one.parts[-2]], int(one.parts[-1]), int(one.data[1])
        if len(one.parts) == 3:
            found.append(Port(one.parts[0], number, target, protocol))
        else:
            everywhere.setdefault((protocol, number, target), set()).add(prefix(one.data[0]).family)
    for (protocol, number, target), led in everywhere.items():
        host_ip = "" if led == set(families) else {4: "0.0.0.0", 6: "::"}[min(led)]
        found.append(Port(host_ip, number, target, protocol))
    return tuple(sorted(found))
