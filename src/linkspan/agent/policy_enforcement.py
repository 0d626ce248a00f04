"""Policy enforcement: keeps the rules of policies and the elements of endpoints as the records want them.

``endpoints/registry.py`` puts an endpoint's elements with the endpoint itself. Everything else is put here: the rules,
the elements of other hosts' endpoints, and those of this host's when policies change. A change of policies is one
batch: one transaction puts, so no packet meets rules whose sets are not filled, and a second one deletes what nobody
wants any more. Flows that it forbids are cut after that.

An agent that starts does not know the other hosts' endpoints yet, and the store may be away. Until they are read, the
elements that the last agent put stay.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from linkspan.agent.policy_flows import Flows
from linkspan.cluster.endpoint_records import PATIENCE
from linkspan.cluster.hosts import Hosts
from linkspan.cluster.interest import Interest
from linkspan.cluster.leases import Leases
from linkspan.cluster.networks import Networks
from linkspan.cluster.remote_endpoints import RemoteEndpoints, owner_of
from linkspan.core.addresses import Prefix, link_local, mac, prefix
from linkspan.core.errors import LinkspanError
from linkspan.core.model import Endpoint, Network
from linkspan.core.states.host import BridgeFilter, NftElement, NftSet, State
from linkspan.core.supervise import ended, lasting, woken
from linkspan.endpoints.registry import Identity, policy_source
from linkspan.kernel.drivers import bridge_filters
from linkspan.kernel.probe import conntrack, underlay
from linkspan.kernel.worker import Worker
from linkspan.policy import rules
from linkspan.policy.judge import Judge, Party
from linkspan.policy.model import Policy, Subject
from linkspan.policy.regime import Regime
from linkspan.store.derived import Derived
from linkspan.store.records import ENDPOINTS
from linkspan.store.replica import Replica

log = logging.getLogger("linkspan.agent.policy_enforcement")

AGAIN, SELDOM = 1.0, 30.0
"""Seconds until a failed change is tried again: at first, and after several failures. AGAIN is also the time between
looks whether other hosts' endpoints have been read."""
_OF_ALL = ("policies/", "staged/", "networks/", "allowances/")
"""Kinds of records after whose change everything is compared."""
Source = tuple[str, ...]
RULES: Source = ("policy", "rules")
_HOSTS: Source = ("policy", "addresses of hosts")
_KEPT: Source = ("policy", "kept")


class _Known(msgspec.Struct, frozen=True, gc=False):
    """What is known of an endpoint at one of its addresses: the source of its elements, the judge's view, its name."""

    source: Source
    party: Party
    name: str


class Enforcement:
    """The states of policies on this host."""

    def __init__(
        self,
        worker: Worker,
        replica: Replica,
        networks: Networks,
        hosts: Hosts,
        leases: Leases,
        remote: RemoteEndpoints,
        interest: Interest,
        endpoints: Mapping[Identity, Endpoint],
        *,
        logs: bool = True,
    ) -> None:
        """Take the parts that it follows; ``logs`` says whether this kernel has nflog."""
        self._worker = worker
        self._replica = replica
        self._networks = networks
        self._hosts = hosts
        self._leases = leases
        self._remote = remote
        self._interest = interest
        self._endpoints = endpoints
        self._closed = Derived(networks.all, self._read_closed)
        self._recorded = Derived(
            lambda: (replica.changes("policies"), replica.changes("staged"), self._closed.get()), self._read
        )
        self._pools = Derived(networks.all, self._read_pools)
        self._families: frozenset[int] = frozenset()
        """The families for which there are sets."""
        self.regime = Regime()
        """The policies that are in force here."""
        self._parties: dict[str, _Known] = {}
        """By address: the endpoints that are known here."""
        self._of: dict[Source, dict[str, _Known]] = {}
        """The same by source: what was put last."""
        self._kept: list[NftElement] = []
        """The last agent's elements that stay until the other hosts' endpoints have been read."""
        self._unlabelled: set[str] = set()
        """Hosts that have no elements, because the labels of their endpoints that count now are not known yet."""
        self._put_pools: object = None
        """The networks' pools when everything was compared last."""
        self._stricter = False
        """Whether something may be forbidden since flows were cut last."""
        self._everything = False
        self._leased: set[str] = set()
        """Networks of which a lease changed since the addresses of hosts were put last."""
        self._hosted: frozenset[str] = frozenset()
        """Networks of which the addresses of hosts were put last."""
        self._filtered: frozenset[str] = frozenset()
        """The bridges whose frames pass the rules."""
        self._could_filter = False
        """Whether the kernel could pass bridges' frames to the rules when that was looked at last."""
        self._logs = logs
        self._mattering: frozenset[str] = frozenset()
        """The networks whose endpoints mattered when everything was compared last."""
        self._due: set[Identity] = set()
        self._due_hosts: set[str] = set()
        self._putting = asyncio.Lock()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def _read(self) -> Regime:
        enforced, staged = (self._replica.read(kind, Policy).values() for kind in ("policies/", "staged/"))
        return Regime(enforced, staged, self._closed.get())

    def _read_closed(self) -> tuple[str, ...]:
        return tuple(one.name for one in self._networks.all() if one.policy == "default-deny")

    def _read_pools(self) -> dict[str, tuple[Prefix, ...]]:
        return {one.name: tuple(one.prefixes) for one in self._networks.all() if not one.on_host}

    # Life

    def learn(self) -> None:
        """Take in the recorded policies, so that the endpoints that are taken over get their elements."""
        self.regime = self._recorded.get()
        # Their sets come with the networks' own rules, before the first resync; so do the bridges.
        self._families = self._of_pools()
        self._filtered = self._concerned(self.regime)
        self._remote.want_labels(self.regime.keys)

    async def take_over(self) -> None:
        """Desire the rules, and keep the last agent's elements; after the networks' rules, before the first resync."""
        if not self.regime:
            return
        self._families = self._ruled()
        self._filtered = self._bridges(self.regime)
        sources: dict[Source, list[State]] = {RULES: self._rules()}
        self._kept = await self._worker.run(self._keep, sources)

    def _keep(self, sources: Mapping[Source, list[State]]) -> list[NftElement]:
        """Desire these, and the elements of their sets that are there; return those (worker thread)."""
        reconciler = self._worker.machine.reconciler
        there = [state for state in reconciler.observed((NftElement,)) if isinstance(state, NftElement)]
        kept = _within([state for state in there if rules.by_peers(state)], sources[RULES])
        reconciler.changes({**sources, _KEPT: kept})
        return kept

    def start(self) -> None:
        """Start to follow policies and endpoints."""
        self._everything = self._stricter = True
        self._wake.set()
        self._task = lasting("enforcing policies", self._follow)

    async def stop(self) -> None:
        """Stop following; the rules stay."""
        await ended(self._task)

    # What changes

    def changed(self, keys: frozenset[str]) -> None:
        """Follow changed records."""
        recorded = self._replica.keys_under("policies/") or self._replica.keys_under("staged/")
        if not self.regime and not recorded and not self._closed.get():
            return
        for key in keys:
            if key.startswith(ENDPOINTS):
                self._due_hosts.add(owner_of(key))
            elif key.startswith("leases/"):  # the host's own address there, and whether its endpoints matter
                _, network, host = key.split("/", 2)
                self._leased.add(network)
                self._due_hosts.add(host)
            elif key.startswith(_OF_ALL) or (key.startswith("hosts/") and self.regime.by_host):
                self._everything = True
            else:
                continue
            self._wake.set()

    def note(self, identity: Identity) -> None:
        """Follow an endpoint of this host that was added, changed or removed."""
        if self.regime:
            self._due.add(identity)
            self._wake.set()

    def look(self) -> None:
        """Follow the networks, whose own rules are there now: the rules of policies may have waited for them."""
        recorded = self._recorded.get()
        before = self.regime, self._families, self._mattering, self._filtered
        now = recorded, self._ruled(), self._interest.networks(), self._bridges(recorded)
        if (recorded or self.regime) and now != before:
            self._everything = True
            self._wake.set()

    def look_at_module(self) -> None:
        """Follow br_netfilter, which is loaded or removed without an event."""
        if bridge_filters.available() != self._could_filter:
            self._could_filter = not self._could_filter
            self.look()

    async def cover(self, network: Network) -> None:
        """Wait until the rules see the packets of a network, before a container of it comes.

        Raises LinkspanError if they do not; failures that concern others only are logged, and tried again.
        """
        if self._covers(network):
            return
        self.look()
        try:
            await self.enforce()
        except LinkspanError as error:
            if not self._covers(network):
                raise
            log.warning("policies are not enforced as recorded: %s", error.message)

    def _covers(self, network: Network) -> bool:
        """Return whether the rules see a network's packets, as far as a policy may be about it."""
        recorded = self._recorded.get()
        if not recorded.concerns(network.name) or unenforceable(network):
            return True
        if recorded is not self.regime or not self._families.issuperset(one.family for one in network.prefixes):
            return False
        failing = self._worker.machine.reconciler.failing
        return network.routed or (network.bridge in self._filtered and BridgeFilter(network.bridge).key not in failing)

    async def _follow(self) -> None:
        pause = AGAIN
        while True:
            await woken(self._wake, AGAIN if self._kept or self._stricter else None)
            self._wake.clear()
            try:
                await self.enforce()
                pause = AGAIN
            except LinkspanError as error:
                log.warning("policies are not enforced as recorded: %s", error.message)
                self._wake.clear()
                await asyncio.sleep(AGAIN)
                await woken(self._wake, pause - AGAIN)
                self._wake.set()
                pause = min(2 * pause, SELDOM)

    def recorded(self) -> Regime:
        """Return the policies as they are recorded."""
        return self._recorded.get()

    async def enforce(self) -> None:
        """Apply what changed since the last time, and cut the flows that this forbids. Raises LinkspanError."""
        async with self._putting:
            try:
                await self._put()
            except BaseException:  # also if nobody waits for it any more: the next time does all of it
                self._everything = self._stricter = True
                self._wake.set()
                raise

    async def _put(self) -> None:
        recorded = self._recorded.get()
        if not (recorded or self.regime):
            self._stricter = False
            return
        if recorded is not self.regime:
            # The new rules need labels that were not kept. Without them they would refuse what they allow.
            self._remote.want_labels(recorded.keys)
            await self._remote.caught_up(PATIENCE)
            # Before the rules are there: an agent that is killed now, and starts while the store is away, needs them.
            await self._replica.save()
            self._everything = True
        mattering, pools, families = self._interest.networks(), self._pools.get(), self._ruled()
        # Before the hosts are taken: what is read during the pauses below is put the next time. Until all are read,
        # whoever has not been read seems to have no labels. What was kept goes with all that takes its place.
        read = self._remote.complete
        filtered = self._bridges(recorded)
        before = self._mattering, self._families, self._filtered
        whole = self._everything or (mattering, families, filtered) != before or (read and bool(self._kept))
        hosts, self._due_hosts = self._due_hosts, set()
        self._everything = False
        if whole:
            hosts = self._remote.owners() | {source[2] for source in self._of if source[1] == "host"}
            self._stricter |= recorded is not self.regime or pools != self._put_pools
            self._mattering, self._put_pools = mattering, pools
        sources: dict[Source, list[State]] = {}
        hosts |= {host for host in self._unlabelled if self._remote.labelled(host)}
        for host in hosts:
            parties, sources[_of_host(host)] = self._of_other(recorded, families, host)
            self._stricter |= self._note(_of_host(host), parties)
            await asyncio.sleep(0)  # there may be tens of thousands of endpoints
        # No pause from here until the worker is called: attaches that see the new rules come after their sets.
        self.regime, self._families, self._filtered = recorded, families, filtered
        due, self._due = self._due, set()
        leased, self._leased = self._leased & self._hosted, set()
        if whole:
            leased, self._hosted = {*mattering, *self._hosted}, mattering
            sources[RULES] = self._rules()
            due = {*self._endpoints, *((source[2], source[3]) for source in self._of if source[1] == "endpoint")}
        sources |= {(*_HOSTS, name): list(self._of_hosts(name)) for name in leased}
        for identity in due:
            source = policy_source(identity)
            parties, sources[source] = self._of_own(identity)
            self._stricter |= self._of_others(source, sources[source])
            self._stricter |= self._note(source, parties)
        kept = [] if read or not recorded else _within(self._kept, sources[RULES]) if whole else self._kept
        if kept != self._kept:
            self._stricter, sources[_KEPT] = True, [*kept]
        failed = await self._worker.run(self._worker.machine.reconciler.changes, sources)
        self._kept = kept
        if self._stricter and read:
            self._stricter = False
            local = await self._worker.run(underlay.every_address, self._worker.machine.sockets)
            await asyncio.to_thread(conntrack.cut, self.flows(self.regime.judge, local))
        for error in failed.values():  # after the cut: one bad element must not keep forbidden flows
            raise error

    def _of_others(self, source: Source, states: Iterable[State]) -> bool:
        """Return whether an endpoint that is new here was attached while other policies were in force."""
        put = self._worker.machine.reconciler.desired.sources().get(source)
        return source not in self._of and put is not None and put.keys() != {state.key for state in states}

    def _note(self, source: Source, parties: dict[str, _Known]) -> bool:
        """Record what is known of a source now; return whether something about a known address is different."""
        before = self._of.pop(source, {})
        if parties:
            self._of[source] = parties
        differs = any(at in before and before[at].party != known.party for at, known in parties.items())
        for address in before.keys() - parties.keys():
            known = self._parties.get(address)
            if known is not None and known.source == source:
                del self._parties[address]
        self._parties.update(parties)
        return differs

    # What is wanted

    def _ruled(self) -> frozenset[int]:
        """Return the families that rules can be for: those of pools, once the networks' own rules are there."""
        if ("host", "firewall") not in self._worker.machine.reconciler.desired.sources():
            return frozenset()
        return self._of_pools()

    def _of_pools(self) -> frozenset[int]:
        return frozenset(pool.family for pools in self._pools.get().values() for pool in pools)

    def _of_hosts(self, name: str) -> Iterator[State]:
        """Yield the elements of the addresses that hosts have in a network: no endpoint has them, but somebody does."""
        for network in self._networks.all() if self.regime else ():
            if network.name == name and name in self._hosted:
                texts = [*network.gateways, *(a for lease in self._leases.all(network.name) for a in lease.addresses)]
                found = (prefix(text).single() for text in texts)
                yield from (rules.known(one) for one in found if one.family in self._families)

    def _bridges(self, regime: Regime) -> frozenset[str]:
        """Return the bridges on this host whose frames a regime needs to see."""
        desired = self._worker.machine.reconciler.desired
        return frozenset(one for one in self._concerned(regime) if desired.owners(("Bridge", one)))

    def _concerned(self, regime: Regime) -> frozenset[str]:
        """Return the bridges that networks with policies have, or will have, on a host that can filter them."""
        return frozenset(
            network.bridge
            for network in self._networks.all()
            if not (network.routed or unenforceable(network)) and regime.concerns(network.name)
        )

    def filtered(self) -> frozenset[str]:
        """Return the bridges whose frames pass the rules."""
        return self._filtered

    def _rules(self) -> list[State]:
        """Return the rules that are wanted now, and the bridges whose frames pass them."""
        found = list(rules.states(self.regime, self._families, logs=self._logs))
        if self._filtered:
            found += rules.bridge_states(self.regime, self._families)
        return found + [BridgeFilter(bridge) for bridge in sorted(self._filtered)]

    def elements(self, endpoint: Endpoint) -> list[State]:
        """Return the elements that an endpoint of this host needs."""
        if not self.regime:
            return []
        chosen = self.regime.chosen(self.subject(endpoint))
        addresses = [one for one in _addresses(endpoint) if one.family in self._families]
        found = [*rules.elements(self.regime, chosen, addresses, policed=policed(endpoint))]
        if _bridged(endpoint) and self._filtered:
            found += rules.bridge_elements(self.regime, chosen, endpoint.host_ifname, addresses)
        return [*found]

    def subject(self, endpoint: Endpoint) -> Subject:
        """Return what selectors look at of an endpoint of this host."""
        return Subject(endpoint.called, endpoint.network, self._hosts.here.name, endpoint.labels)

    def _of_own(self, identity: Identity) -> tuple[dict[str, _Known], list[State]]:
        endpoint = self._endpoints.get(identity)
        if endpoint is None or not self.regime:
            return {}, []
        chosen, source = self.regime.chosen(self.subject(endpoint)), policy_source(identity)
        known = {at.address: _Known(source, Party(at, chosen), endpoint.called) for at in _addresses(endpoint)}
        return known, self.elements(endpoint)

    def _of_other(
        self, regime: Regime, families: frozenset[int], host: str
    ) -> tuple[dict[str, _Known], list[State]]:
        """Return what is known of another host's endpoints, and their elements.

        Whatever address a record has: it counts in its network's pools only. Without its labels an endpoint has no
        elements. So it is nobody that is known, and its packets are dropped; otherwise a rule that denies would not
        find it.
        """
        parties: dict[str, _Known] = {}
        states: list[State] = []
        if not regime or not self._remote.labelled(host):
            (self._unlabelled.add if regime else self._unlabelled.discard)(host)
            return parties, states
        self._unlabelled.discard(host)
        name, pools = self._hosts.name(host), self._pools.get()
        for network, one in self._remote.of_host(host):
            chosen = regime.chosen(Subject(one.container, network, name, dict(one.labels)))
            inside = [at for at in one.prefixes if any(pool.holds(at) for pool in pools.get(network, ()))]
            parties |= {at.address: _Known(_of_host(host), Party(at, chosen), one.container) for at in inside}
            states += rules.elements(regime, chosen, [at for at in inside if at.family in families], policed=False)
        return parties, states

    # What is cut

    def flows(self, judge: Judge, local: frozenset[str] = frozenset()) -> Flows:
        """Return which flows through this host a judge forbids; ``local`` are the host's own addresses."""
        here = {
            address.address
            for endpoint in self._endpoints.values()
            if policed(endpoint)
            for address in _addresses(endpoint)
        }
        pools = [pool for network in self._networks.all() for pool in network.prefixes]
        own = local | {prefix(text).address for network in self._networks.all() for text in network.gateways}
        return Flows(judge, {address: known.party for address, known in self._parties.items()}, here, pools, own)

    def name_of(self, address: str) -> str:
        """Return the name of the endpoint that has an address here; the address itself if none is known.

        Any thread may ask.
        """
        known = self._parties.get(address)
        return address if known is None else known.name

    def unenforced(self) -> list[str]:
        """Return a sentence for each policy and network here of which containers are not protected."""
        known = {network.name: network for network in self._networks.all()}
        found: dict[tuple[str, str], list[str]] = {}
        for endpoint in self._endpoints.values() if self.regime else ():
            if endpoint.network in known and not policed(endpoint):
                for whose in self.regime.judge.about(self.regime.chosen(self.subject(endpoint))):
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


def _of_host(host: str) -> Source:
    return ("policy", "host", host)


def _within(elements: Iterable[NftElement], states: Iterable[State]) -> list[NftElement]:
    """Return the elements whose set is among the states."""
    sets = {state.name for state in states if isinstance(state, NftSet)}
    return [one for one in elements if one.set in sets]


def policed(endpoint: Endpoint) -> bool:
    """Return whether an endpoint's packets pass the chains of policies: not without br_netfilter, on a bridge."""
    return endpoint.host_ifname.startswith("lsr") or (_bridged(endpoint) and bridge_filters.available())


def _bridged(endpoint: Endpoint) -> bool:
    return endpoint.host_ifname.startswith("lsp")


def _addresses(endpoint: Endpoint) -> list[Prefix]:
    """Return the addresses that an endpoint has for others, without length: on a bridge link-local ones, too."""
    found = [one.single() for one in endpoint.prefixes]
    if _bridged(endpoint) and any(one.family == 6 for one in found):
        found += [link_local(mac(text)) for text in dict.fromkeys((endpoint.mac, endpoint.born_mac or endpoint.mac))]
    return found


def unenforceable(network: Network) -> str:
    """Return why linkspan enforces no policy in a network on this host, '' if it does."""
    if network.on_host:
        return "its containers have the host's own addresses, so no rule knows them"
    if network.routed or bridge_filters.available():
        return ""
    return f"its containers are on a bridge, and {bridge_filters.MISSING}"
