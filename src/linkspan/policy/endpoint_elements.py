"""Elements of endpoints: what leads packets to the policies about their endpoint, and what makes an address a peer."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator

from linkspan.core.addresses import Prefix
from linkspan.core.model import Port
from linkspan.core.ports import families_of, key_of
from linkspan.core.ruleset import BRIDGE, INET, TABLE, element
from linkspan.core.states.host import NftChain, NftElement, State
from linkspan.policy import name_rules
from linkspan.policy.judge import Section
from linkspan.policy.model import DIRECTIONS, Direction
from linkspan.policy.readings import KNOWN, PORTS, RECEIVERS, Reading, chosen_set, digest_of, readings
from linkspan.policy.regime import Regime

_WAYS = 4096
"""Combinations of policies whose chains are remembered."""


def of_endpoint(regime: Regime, chosen: frozenset[str], addresses: Iterable[Prefix], *, policed: bool) -> list[State]:
    """Return the elements of an endpoint of this host with its ``addresses``, without length.

    ``policed``: packets to and from it pass the chains. Then the chains of all policies about it are among the states;
    other endpoints with the same policies have the same ones.
    """
    if not regime:
        return []
    found = [one for address in addresses for one in (known(address), *of_peer(regime, chosen, address))]
    return [*found, *(_own(regime, chosen, addresses) if policed else ())]


def _own(regime: Regime, chosen: frozenset[str], addresses: Iterable[Prefix]) -> Iterator[State]:
    """Yield what leads an endpoint's packets to the chains of its policies, and to whoever learns what it is told."""
    if not chosen.isdisjoint(regime.askers):
        yield from map(name_rules.asking, addresses)
    for reading, direction in itertools.product(readings(regime), DIRECTIONS):
        if chosen.isdisjoint(reading.about(regime)[direction]):
            continue
        for family in sorted({address.family for address in addresses}):
            chains = _chains(regime, reading, direction, family, chosen)
            yield from chains.values()
            for text in (address.address for address in addresses if address.family == family):
                yield element(reading.subjects(direction, family), text)
                for after, chain in chains.items():
                    yield element(reading.ways(direction, family, after), text, data=(f"goto {chain.name}",))


def _chains(
    regime: Regime, reading: Reading, direction: Direction, family: int, chosen: frozenset[str]
) -> dict[str, NftChain]:
    """Return the chains of what these selectors select, by the tier after which each comes."""
    way = reading.name, direction, family, chosen
    if way not in regime.ways:
        if len(regime.ways) >= _WAYS:
            regime.ways.clear()
        regime.ways[way] = _each(reading, direction, family, reading.judge.tiers_of(direction, chosen))
    return regime.ways[way]


def _each(
    reading: Reading, direction: Direction, family: int, tiers: Iterable[Iterable[Section]]
) -> dict[str, NftChain]:
    """Return the chains for the endpoints that these sections are about, by the tier after which they come.

    The first one is after no tier (""). A jump for each policy is followed by what refuses the rest. A tier that passes
    something on ends such a chain, because a packet must not come back to its policies: the next one ends with accept.
    A chain's name follows from its rules, so endpoints whose policies change get another one, in one transaction.
    """
    found: dict[str, list[str]] = {}
    after, rules = "", found.setdefault("", [])
    for sections in map(list, tiers):
        rules += [
            f'jump {reading.of(section, direction, family)} comment "{section.called}"'
            for section in sections
            if section.clauses
        ]
        first = next((section for section in sections if section.isolates), None)
        if first is not None:
            rules.append(f"goto {reading.otherwise(first, direction, family)}")
        if any(section.passes for section in sections):
            after = sections[0].tier
            if first is None:
                rules.append(f"goto {reading.after(after, direction, family)}")
            rules = found.setdefault(after, [])
        elif first is not None:
            break  # nothing comes to the next tier
    else:
        if after:
            rules.append("accept")
    head = f"{reading.chain(direction, family)}_by_"
    return {
        tier: NftChain(INET, TABLE, f"{head}{digest_of(' '.join(lines))}", "", tuple(lines))
        for tier, lines in found.items()
    }


def of_ports(
    regime: Regime, chosen: frozenset[str], ports: Iterable[Port], families: Collection[int]
) -> Iterator[State]:
    """Yield what leads packets to ports of a container on the host's own network to the chains of its policies."""
    every = [(port, family) for port in ports for family in families_of(port) if family in families]
    for reading in readings(regime):
        if chosen.isdisjoint(reading.about(regime)["ingress"]):
            continue
        for port, family in every:
            at, key = key_of(port)
            chains = _chains(regime, reading, "ingress", family, chosen)
            yield from chains.values()
            yield element(reading.ports(family, at), *key)
            for after, chain in chains.items():
                yield element(reading.port_ways(family, at, after), *key, data=(f"goto {chain.name}",))


def bridge_elements(
    regime: Regime, chosen: frozenset[str], port: str, addresses: Iterable[Prefix]
) -> Iterator[NftElement]:
    """Return the elements of the bridge family for a container's port with its addresses."""
    if not chosen.isdisjoint(regime.judge.subjects["ingress"]):
        yield element(PORTS, port, table=BRIDGE)
        yield from (element(f"{RECEIVERS}{one.family}", port, one.address, table=BRIDGE) for one in addresses)


def of_peer(regime: Regime, chosen: frozenset[str], address: Prefix) -> Iterator[NftElement]:
    """Return the elements by which an address is a peer: of the sets of selectors that select its endpoint."""
    parts = (address.address,)
    yield from (peer(digest, address.family, parts) for digest in sorted(chosen & regime.peers))


def peer(digest: str, family: int, parts: tuple[str, ...]) -> NftElement:
    """Return the element of an address that a peer's selector selects; ``parts`` are those of its ``known`` one.

    All its elements share them: there are tens of thousands.
    """
    return NftElement(INET, TABLE, chosen_set(digest, family), parts)


def known(address: Prefix) -> NftElement:
    """Return the element of an address of a pool that somebody has: packets from others are dropped silently."""
    return element(KNOWN[address.family], address.address)
