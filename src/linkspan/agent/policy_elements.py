"""Policy elements: an address is known to the rules by elements of their sets, and to a judge as a party."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

import msgspec

from linkspan.agent.policy_coverage import (
    addresses,
    bridged,
    hosted,
    policed,
    spots,
    uncovered,
    unenforceable,
)
from linkspan.agent.policy_flows import Known
from linkspan.cluster.hosts import Hosts
from linkspan.cluster.leases import Leases
from linkspan.cluster.networks import Networks
from linkspan.cluster.remote_endpoints import Packed, RemoteEndpoints
from linkspan.core.addresses import FAMILIES, Prefix, prefix
from linkspan.core.errors import first_of
from linkspan.core.model import Endpoint
from linkspan.core.states.host import BridgeFilter, State
from linkspan.policy import endpoint_elements, rules
from linkspan.policy.model import DIRECTIONS, Subject, selects
from linkspan.policy.regime import Regime
from linkspan.store.derived import Derived

_SHOWN = 3
"""Containers that one sentence names."""


class InForce(msgspec.Struct, frozen=True):
    """Policies in force on a host, the families that have sets, and the bridges whose frames pass the rules.

    ``ports`` says whether packets to ports of containers on the host's own network pass them.
    """

    regime: Regime = Regime()
    families: frozenset[int] = frozenset()
    bridges: frozenset[str] = frozenset()
    ports: bool = False

    def common(self, *, logs: bool) -> list[State]:
        """Return the rules that all policies have in common, and the bridges' settings; ``logs``: there is nflog."""
        found = list(rules.common(self.regime, self.families, logs=logs, ports=self.ports))
        if self.bridges:
            found += rules.bridge_states(self.regime, self.families)
        return found + [BridgeFilter(bridge) for bridge in sorted(self.bridges)]


class PolicyElements:
    """Returns the elements of addresses, from the records and from this host's endpoints."""

    def __init__(
        self,
        networks: Networks,
        hosts: Hosts,
        leases: Leases,
        remote: RemoteEndpoints,
        endpoints: Mapping[tuple[str, str], Endpoint],
    ) -> None:
        self._networks = networks
        self._hosts = hosts
        self._leases = leases
        self._remote = remote
        self._endpoints = endpoints
        self._pools = Derived(networks.all, self._read_pools)

    def _read_pools(self) -> dict[str, tuple[Prefix, ...]]:
        return {one.name: tuple(one.prefixes) for one in self._networks.all() if not one.on_host}

    def pools(self) -> Mapping[str, tuple[Prefix, ...]]:
        """Return by network the pools that addresses of containers are from."""
        return self._pools.get()

    def wanted(self, regime: Regime) -> InForce:
        """Return a regime with the families of the pools, and the bridges that its networks have, or will have.

        A host's ports are reached by both families.
        """
        families = frozenset(pool.family for pools in self.pools().values() for pool in pools)
        about = [network for network in self._networks.all() if regime.concerns(network.name)]
        ports = any(network.on_host for network in about)
        bridges = (one.bridge for one in about if not (one.on_host or one.routed or unenforceable(one)))
        return InForce(regime, families.union(FAMILIES if ports else ()), frozenset(bridges), ports)

    def subject(self, endpoint: Endpoint) -> Subject:
        """Return what selectors look at of an endpoint of this host."""
        return Subject(endpoint.called, endpoint.network, self._hosts.here.name, endpoint.labels)

    def of_endpoint(self, force: InForce, endpoint: Endpoint) -> list[State]:
        """Return the elements that an endpoint of this host needs."""
        if not force.regime:
            return []
        chosen = force.regime.chosen(self.subject(endpoint))
        found_at = [one for one in addresses(endpoint) if one.family in force.families]
        found = endpoint_elements.of_endpoint(force.regime, chosen, found_at, policed=policed(endpoint))
        if bridged(endpoint) and force.bridges:
            found += endpoint_elements.bridge_elements(force.regime, chosen, endpoint.host_ifname, found_at)
        if hosted(endpoint) and force.ports:
            found += endpoint_elements.of_ports(force.regime, chosen, endpoint.ports, force.families)
        return found

    def identities(self) -> set[tuple[str, str]]:
        """Return the endpoints of this host."""
        return set(self._endpoints)

    def of_own(self, force: InForce, identity: tuple[str, str]) -> tuple[dict[str, Known], list[State]]:
        """Return by address what is known of an endpoint of this host, and its elements; nothing if it is gone.

        One on the host's own network is known by its ports (``spots``).
        """
        endpoint = self._endpoints.get(identity)
        if endpoint is None or not force.regime:
            return {}, []
        chosen = force.regime.chosen(self.subject(endpoint))
        known = {at.address: Known(at, chosen, endpoint.called) for at in addresses(endpoint)}
        if hosted(endpoint):
            known |= {spot: Known(None, chosen, endpoint.called) for one in endpoint.ports for spot in spots(one)}
        return known, self.of_endpoint(force, endpoint)

    def selected(self, regime: Regime, digests: Collection[str]) -> set[tuple[str, str]]:
        """Return the endpoints of this host that one of these selectors of a regime selects."""
        selectors = [regime.selectors[digest] for digest in digests if digest in regime.selectors]
        return {
            identity
            for identity, endpoint in (self._endpoints.items() if selectors else ())
            if any(selects(selector, self.subject(endpoint)) for selector in selectors)
        }

    def endpoints(self, identities: Iterable[tuple[str, str]]) -> list[Endpoint]:
        """Return those of these endpoints of this host that are still there."""
        return [self._endpoints[one] for one in identities if one in self._endpoints]

    def addresses_of_hosts(self) -> frozenset[str]:
        """Return the addresses that hosts have on the underlay."""
        every = (host.underlay for host in self._hosts.all().values() if host.underlay is not None)
        return frozenset(prefix(text).address for one in every for text in (*one.addresses, *one.advertise))

    def of_others(self, force: InForce, host: str) -> tuple[dict[str, Known], dict[str, list[State]]]:
        """Return by address what is known of another host's endpoints, and their elements, by selector of peers.

        Without a selector ("") are those that say that somebody has an address. Whatever address a record has: it
        counts in its network's pools only. Without its labels an endpoint has no elements. So it is nobody that is
        known, and its packets are dropped; otherwise a rule that denies would not find it.
        """
        known: dict[str, Known] = {}
        states: dict[str, list[State]] = {}
        if not force.regime or not self._remote.labelled(host):
            return known, states
        pools, peers, name = self.pools(), force.regime.peers, self._hosts.name(host)
        alike: dict[frozenset[str], frozenset[str]] = {}
        for network, one in self._remote.of_host(host):
            chosen = force.regime.chosen(_subject(name, network, one)) & peers
            chosen = alike.setdefault(chosen, chosen)
            for at in one.prefixes:
                if _within(pools.get(network, ()), at):
                    element = endpoint_elements.known(at)
                    known[element.parts[0]] = Known(at, chosen, one.container)
                    if at.family in force.families:
                        states.setdefault("", []).append(element)
                        for digest in chosen:
                            found = endpoint_elements.peer(digest, at.family, element.parts)
                            states.setdefault(digest, []).append(found)
        return known, states

    def reselected(
        self, force: InForce, host: str, before: Mapping[str, Known], gained: Collection[str], lost: frozenset[str]
    ) -> tuple[dict[str, Known], dict[str, list[State]]]:
        """Return what changes in ``of_others`` with the selectors of peers: ``gained`` and ``lost`` digests.

        ``before`` is what was known until now by address. The states are those of the gained selectors.
        """
        known: dict[str, Known] = {}
        states: dict[str, list[State]] = {}
        alike: dict[frozenset[str], frozenset[str]] = {}
        new, every = {digest: force.regime.selectors[digest] for digest in gained}, self.pools()
        by_name = any(selector.names for selector in new.values())
        name = self._hosts.name(host)
        found: dict[tuple[object, ...], tuple[list[str], dict[frozenset[str], frozenset[str]]]] = {}
        for network, one in self._remote.of_host(host):
            pools = every.get(network, ())
            like = network, one.labels, one.container if by_name else ""  # there are thousands like each other
            if like not in found:
                subject = _subject(name, network, one)
                found[like] = [digest for digest, selector in new.items() if selects(selector, subject)], {}
            by, after = found[like]
            for text in one.addresses.split():
                there = before.get(text)
                if there is None or (at := there.address) is None:
                    continue
                if (chosen := after.get(there.chosen)) is None:
                    chosen = (there.chosen - lost).union(by)
                    chosen = after[there.chosen] = alike.setdefault(chosen, chosen)
                if chosen == there.chosen or not _within(pools, at):
                    continue
                known[text] = Known(at, chosen, there.name)
                family = at.family
                for digest in by if family in force.families else ():
                    states.setdefault(digest, []).append(endpoint_elements.peer(digest, family, (text,)))
        return known, states

    def of_hosts(self, force: InForce, name: str) -> Iterator[State]:
        """Yield the elements of the addresses that hosts have in a network: no endpoint has them, but somebody does."""
        for network in self._networks.all() if force.regime else ():
            if network.name == name:
                texts = [*network.gateways, *(a for lease in self._leases.all(name) for a in lease.addresses)]
                found = (prefix(text).single() for text in texts)
                yield from (endpoint_elements.known(one) for one in found if one.family in force.families)

    def unenforced(self, regime: Regime) -> list[str]:
        """Return a sentence for each policy and network here of which containers are not protected."""
        known = {network.name: network for network in self._networks.all()}
        found: dict[tuple[str, str, str], list[str]] = {}
        for endpoint in self._endpoints.values() if regime else ():
            for direction in DIRECTIONS if endpoint.network in known else ():
                if why := uncovered(endpoint, known[endpoint.network], direction):
                    for whose in regime.judge.about(regime.chosen(self.subject(endpoint)), (direction,)):
                        found.setdefault((endpoint.network, whose, why), []).append(endpoint.called)
        return [
            f"network {name}: {whose} does not protect {first_of(list(dict.fromkeys(called)), _SHOWN)}: {why}"
            for (name, whose, why), called in sorted(found.items())
        ]


def _subject(host: str, network: str, one: Packed) -> Subject:
    """Return what selectors look at of another host's endpoint; ``host`` is the host's name."""
    return Subject(one.container, network, host, dict(one.labels))


def _within(pools: Iterable[Prefix], address: Prefix) -> bool:
    """Return whether one of the pools has an address. There are tens of thousands: a generator takes twice the time."""
    for pool in pools:  # noqa: SIM110
        if pool.holds(address):
            return True
    return False
