"""Published ports in the kernel: the elements of each port in maps and sets of our rules, and the port of elements.

The rules (``core/ruleset``) forward packets to a port of the host as its element says. A port that only some sources
may use (``from=``) is in a second set, too, and each of these sources with it in a third one; so is such a port of a
container on the host's own network. ``core/ports`` decides who may have which port. Published ports lead to the
interface with the default route, if it has an address of the family: a UDP server that does not choose a source
address answers by the default route, and only then does its client accept the answer. Docker decides by itself which
of its interfaces publishes a container's ports.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TypeGuard

from linkspan.backends.bridge import loopback
from linkspan.core.addresses import FAMILIES, Prefix, prefix
from linkspan.core.model import Endpoint, Network, Port, Protocol
from linkspan.core.ports import families_of, joined_sources, key_of
from linkspan.core.ruleset import TABLE, element, pool_text
from linkspan.core.states.host import NftElement, State

_EVERYWHERE, _AT = "publish", "publish_at"
"""The maps of ports at every address of the host, and at one; each is followed by its family."""
_LIMITED, _PERMITTED = "limited", "permitted"
"""The sets of ports with sources, and of these sources; followed by ``_at`` for one address, and by the family."""
_PROTOCOLS: dict[str, Protocol] = {"tcp": "tcp", "udp": "udp", "sctp": "sctp"}

Place = tuple[str, tuple[str, ...], str]
"""An element of a published port without its target address: the map, its key, and the target port ("" in a set)."""


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
        if home[0].on_host:  # its process has the port itself, so there is nothing to lead anywhere
            yield from (one for port in ports for family in FAMILIES for one in _limited(port, family))
        if targets or home[0].on_host:
            yield from (one for port in ports for one in _permitted(port))


def _port(port: Port, family: int, target: Prefix) -> Iterable[State]:
    if family in families_of(port):
        at, key = key_of(port)
        yield element(f"{_EVERYWHERE}{at}{family}", *key, data=(target.address, str(port.port)))
        yield from _limited(port, family)


def _limited(port: Port, family: int) -> Iterable[State]:
    """Yield the element that closes a port with sources to all others, in a family that it has."""
    if port.sources and family in families_of(port):
        at, key = key_of(port)
        yield element(f"{_LIMITED}{at}{family}", *key)


def _permitted(port: Port) -> Iterable[State]:
    """Yield the elements of a port's sources, of both families: without any the port would seem to have none."""
    at, key = key_of(port)
    for source in map(prefix, port.sources):
        yield element(f"{_PERMITTED}{at}{source.family}", pool_text(source), *key)


def is_one(state: State) -> TypeGuard[NftElement]:
    """Return whether a state is an element of a published port."""
    return isinstance(state, NftElement) and state.table == TABLE and state.set.startswith(_SETS)


_SETS = (_EVERYWHERE, _LIMITED, _PERMITTED)


def target(of: NftElement) -> str:
    """Return the address to which an element leads, "" for one about a port's sources."""
    return of.data[0] if of.data else ""


def spot(of: NftElement) -> tuple[str, ...]:
    """Return the port of the host that an element is about, with its address if it has one."""
    return of.parts[1:] if of.set.startswith(_PERMITTED) else of.parts


def place(of: NftElement) -> Place:
    """Return the port that an element publishes, with its target port."""
    return of.set, of.parts, of.data[1] if of.data else ""


def read(observed: Iterable[State], families: Collection[int]) -> tuple[Port, ...]:
    """Return the ports with an element among the states, of an endpoint with addresses of these families."""
    everywhere: dict[tuple[Protocol, int, int], set[int]] = {}
    elements = [one for one in observed if is_one(one) and one.parts[-2] in _PROTOCOLS]
    sources: dict[tuple[str, ...], list[str]] = {}
    for one in elements:
        if one.set.startswith(_PERMITTED):
            sources.setdefault(spot(one), []).append(one.parts[0])
    found: list[Port] = []
    for one in elements:
        if not one.data:
            continue
        protocol, number, port = _PROTOCOLS[one.parts[-2]], int(one.parts[-1]), int(one.data[1])
        if len(one.parts) == 3:
            found.append(Port(one.parts[0], number, port, protocol, joined_sources(sources.get(one.parts, ()))))
        else:
            everywhere.setdefault((protocol, number, port), set()).add(prefix(one.data[0]).family)
    for (protocol, number, port), led in everywhere.items():
        host_ip = "" if led == set(families) else {4: "0.0.0.0", 6: "::"}[min(led)]
        allowed = joined_sources(sources.get((protocol, str(number)), ()))
        found.append(Port(host_ip, number, port, protocol, allowed))
    return tuple(sorted(found))
