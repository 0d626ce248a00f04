"""Policy elements: an address is known to the rules by elements of their sets, and to a judge as a party."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from linkspan.agent.policy_coverage import addresses, bridged, policed, unenforceable
from linkspan.agent.policy_flows import Known
from linkspan.cluster.hosts import Hosts
from linkspan.cluster.leases import Leases
from linkspan.cluster.networks import Networks
from linkspan.cluster.remote_endpoints import RemoteEndpoints
from linkspan.core.addresses import Prefix, prefix
from linkspan.core.model import Endpoint
from linkspan.core.states.host import BridgeFilter, State
from linkspan.policy import rules
from linkspan.policy.judge import Party
from linkspan.policy.model import Subject
from linkspan.policy.regime import Regime
from linkspan.store.derived import Derived


class InForce(msgspec.Struct, frozen=True):
    """Policies in force on a host, the families that have sets, and the bridges whose frames pass the rules."""

    regime: Regime = Regime()
    families: frozenset[int] = frozenset()
    bridges: frozenset[str] = frozenset()

    def rules(self, *, logs: bool) -> list[State]:
        """Return the rules with their empty sets, and the bridges' settings; ``logs``: the kernel has nflog."""
        found = list(rules.states(self.regime, self.families, logs=logs))
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

    def families(self) -> frozenset[int]:
        """Return the families of the pools."""
        return frozenset(pool.family for pools in self.pools().values() for pool in pools)

    def bridges(self, regime: Regime) -> frozenset[str]:
        """Return the bridges that networks with policies have, or will have, on a host that can filter them."""
        return frozenset(
            network.bridge
            for network in self._networks.all()
            if not (network.routed or unenforceable(network)) and regime.concerns(network.name)
        )

    def subject(self, endpoint: Endpoint) -> Subject:
        """Return what selectors look at of an endpoint of this host."""
        return Subject(endpoint.called, endpoint.network, self._hosts.here.name, endpoint.labels)

    def of_endpoint(self, force: InForce, endpoint: Endpoint) -> list[State]:
        """Return the elements that an endpoint of this host needs."""
        if not force.regime:
            return []
        chosen = force.regime.chosen(self.subject(endpoint))
        found_at = [one for one in addresses(endpoint) if one.family in force.families]
        found: list[State] = [*rules.elements(force.regime, chosen, found_at, policed=policed(endpoint))]
        if bridged(endpoint) and force.bridges:
            found += rules.bridge_elements(force.regime, chosen, endpoint.host_ifname, found_at)
        return found

    def identities(self) -> set[tuple[str, str]]:
        """Return the endpoints of this host."""
        return set(self._endpoints)

    def of_own(self, force: InForce, identity: tuple[str, str]) -> tuple[dict[str, Known], list[State]]:
        """Return by address what is known of an endpoint of this host, and its elements; nothing if it is gone."""
        endpoint = self._endpoints.get(identity)
        if endpoint is None or not force.regime:
            return {}, []
        chosen = force.regime.chosen(self.subject(endpoint))
        known = {at.address: Known(Party(at, chosen), endpoint.called) for at in addresses(endpoint)}
        return known, self.of_endpoint(force, endpoint)

    def of_others(self, force: InForce, host: str) -> tuple[dict[str, Known], list[State]]:
        """Return by address what is known of another host's endpoints, and their elements.

        Whatever address a record has: it counts in its network's pools only. Without its labels an endpoint has no
        elements. So it is nobody that is known, and its packets are dropped; otherwise a rule that denies would not
        find it.
        """
        known: dict[str, Known] = {}
        states: list[State] = []
        if not force.regime or not self._remote.labelled(host):
            return known, states
        name, pools = self._hosts.name(host), self.pools()
        for network, one in self._remote.of_host(host):
            chosen = force.regime.chosen(Subject(one.container, network, name, dict(one.labels)))
            inside = [at for at in one.prefixes if any(pool.holds(at) for pool in pools.get(network, ()))]
            known |= {at.address: Known(Party(at, chosen), one.container) for at in inside}
            found_at = [at for at in inside if at.family in force.families]
            states += rules.elements(force.regime, chosen, found_at, policed=False)
        return known, states

    def of_hosts(self, force: InForce, name: str) -> Iterator[State]:
        """Yield the elements of the addresses that hosts have in a network: no endpoint has them, but somebody does."""
        for network in self._networks.all() if force.regime else ():
            if network.name == name:
                texts = [*network.gateways, *(a for lease in self._leases.all(name) for a in lease.addresses)]
                found = (prefix(text).single() for text in texts)
                yield from (rules.known(one) for one in found if one.family in force.families)

    def unenforced(self, regime: Regime) -> list[str]:
        """Return a sentence for each policy and network here of which containers are not protected."""
        known = {network.name: network for network in self._networks.all()}
        found: dict[tuple[str, str], list[str]] = {}
        for endpoint in self._endpoints.values() if regime else ():
            if endpoint.network in known and not policed(endpoint):
                for whose in regime.judge.about(regime.chosen(self.subject(endpoint))):
                    found.setdefault((endpoint.network, whose), []).append(endpoint.called)
        return [
            f"network {name}: {whose} does not protect {_listed(called)}: {unenforceable(known[name])}"
            for (name, whose), called in sorted(found.items())
        ]


_SHOWN = 3
"""Containers that one sentence names."""


def _listed(called: list[str]) -> str:
    names = ", ".join(called[:_SHOWN])
    return f"{names} and {len(called) - _SHOWN} more" if len(called) > _SHOWN else names
