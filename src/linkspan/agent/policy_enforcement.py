"""Policy enforcement: keeps the rules of policies and the elements of endpoints as the records want them.

``endpoints/registry.py`` puts an endpoint's elements with the endpoint itself. Everything else is put here: the rules,
the elements of other hosts' endpoints, and those of this host's when policies change. A change of policies is one
batch, so one transaction: no packet meets rules whose sets are not filled. Flows that it forbids are cut after that.

An agent that starts does not know the other hosts' endpoints yet, and the store may be away. Until they are read, the
elements that the last agent put stay.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping

from linkspan.cluster.endpoint_records import PATIENCE
from linkspan.cluster.hosts import Hosts
from linkspan.cluster.interest import Interest
from linkspan.cluster.leases import Leases
from linkspan.cluster.networks import Networks
from linkspan.cluster.remote_endpoints import RemoteEndpoints, owner_of
from linkspan.core.addresses import Prefix, prefix
from linkspan.core.errors import LinkspanError
from linkspan.core.model import Endpoint
from linkspan.core.states.host import NftElement, State
from linkspan.core.supervise import ended, lasting, woken
from linkspan.endpoints.registry import Identity, policy_source
from linkspan.kernel.probe import conntrack
from linkspan.kernel.worker import Worker
from linkspan.policy import rules
from linkspan.policy.judge import Judge, Party, Probe
from linkspan.policy.model import Direction, Policy, Subject
from linkspan.store.derived import Derived
from linkspan.store.records import ENDPOINTS
from linkspan.store.replica import Replica

log = logging.getLogger("linkspan.agent.policy_enforcement")

AGAIN = 1.0
"""Seconds until a failed change is tried again, and between looks whether other hosts' endpoints have been read."""
_OF_ALL = ("policies/", "networks/", "allowances/")
"""Kinds of records after whose change everything is compared."""
Source = tuple[str, ...]
RULES: Source = ("policy", "rules")
_HOSTS: Source = ("policy", "addresses of hosts")
_KEPT: Source = ("policy", "kept")


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
    ) -> None:
        self._worker = worker
        self._replica = replica
        self._networks = networks
        self._hosts = hosts
        self._leases = leases
        self._remote = remote
        self._interest = interest
        self._endpoints = endpoints
        self._recorded = Derived(lambda: (replica.changes("policies"), networks.all()), self._read)
        self.judge = Judge()
        """The policies that are in force here."""
        self._parties: dict[str, tuple[Source, Party]] = {}
        """By address of an endpoint that is known here: the source of its elements, and what the judge sees."""
        self._of: dict[Source, dict[str, Party]] = {}
        """The same by source: what was put last."""
        self._kept = False
        self._ruled = False
        """Whether the rules were wanted when they were put last: they need the networks' own rules."""
        self._stricter = False
        """Whether something may be forbidden since flows were cut last."""
        self._everything = False
        self._leased = False
        """Whether a lease changed since the addresses of hosts were put last."""
        self._mattering: frozenset[str] = frozenset()
        """The networks whose endpoints mattered when everything was compared last."""
        self._due: set[Identity] = set()
        self._due_hosts: set[str] = set()
        self._putting = asyncio.Lock()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def _read(self) -> Judge:
        closed = (one.name for one in self._networks.all() if one.policy == "default-deny" and one.routed)
        return Judge(self._replica.read("policies/", Policy).values(), closed)

    # Life

    def learn(self) -> None:
        """Take in the recorded policies, so that the endpoints that are taken over get their elements."""
        self.judge = self._recorded.get()
        self._remote.want_labels(self.judge.keys)

    async def take_over(self) -> None:
        """Desire the rules, and keep the last agent's elements; after the networks' rules, before the first resync."""
        if not self.judge:
            return
        sources = {RULES: list(self._rules()), _HOSTS: list(self._of_hosts())}
        await self._worker.run(self._keep, sources)
        self._kept = self._everything = True

    def _keep(self, sources: Mapping[Source, list[State]]) -> None:
        """Desire these, and the elements of their sets that are there (worker thread)."""
        reconciler = self._worker.machine.reconciler
        there = [state for state in reconciler.observed((NftElement,)) if rules.ours(state)]
        sets = {state.key for state in sources[RULES]}
        kinds = reconciler.kinds
        kept = [state for state in there if sets.issuperset(kinds.of(state).lost_with(state)[1:])]
        reconciler.changes({**sources, _KEPT: kept})

    def start(self) -> None:
        """Start to follow policies and endpoints."""
        self._everything = True
        self._wake.set()
        self._task = lasting("enforcing policies", self._follow)

    async def stop(self) -> None:
        """Stop following; the rules stay."""
        await ended(self._task)

    # What changes

    def changed(self, keys: frozenset[str]) -> None:
        """Follow changed records."""
        if not self.judge and not self._replica.under("policies/") and not self._closed():
            return
        for key in keys:
            if key.startswith(ENDPOINTS):
                self._due_hosts.add(owner_of(key))
            elif key.startswith("leases/"):  # the host's own address there, and whether its endpoints matter
                self._leased = True
                self._due_hosts.add(key.rpartition("/")[2])
            elif key.startswith(_OF_ALL) or (key.startswith("hosts/") and self.judge.by_host):
                self._everything = True
            else:
                continue
            self._wake.set()

    def _closed(self) -> bool:
        return any(network.policy == "default-deny" for network in self._networks.all())

    def note(self, identity: Identity) -> None:
        """Follow an endpoint of this host that was added, changed or removed."""
        if self.judge:
            self._due.add(identity)
            self._wake.set()

    def look(self) -> None:
        """Follow the networks, whose own rules are there now: the rules of policies may have waited for them."""
        recorded = self._recorded.get()
        if recorded is not self.judge or (recorded and not self._ruled):
            self._everything = True
            self._wake.set()

    async def _follow(self) -> None:
        while True:
            await woken(self._wake, AGAIN if self._kept or self._stricter else None)
            self._wake.clear()
            try:
                await self.enforce()
            except LinkspanError as error:
                log.warning("policies are not enforced as recorded: %s", error.message)
                self._everything = True
                await asyncio.sleep(AGAIN)
                self._wake.set()

    def recorded(self) -> Judge:
        """Return the policies as they are recorded."""
        return self._recorded.get()

    async def enforce(self) -> None:
        """Apply what changed since the last time, and cut the flows that this forbids. Raises LinkspanError."""
        async with self._putting:
            await self._put()

    async def _put(self) -> None:
        recorded = self._recorded.get()
        if not (recorded or self.judge):
            self._stricter = False
            return
        if recorded is not self.judge:
            # The new rules need labels that were not kept. Without them they would refuse what they allow.
            self._remote.want_labels(recorded.keys)
            await self._remote.caught_up(PATIENCE)
            # Before the rules are there: an agent that is killed now, and starts while the store is away, needs them.
            await self._replica.save()
            self._everything = True
        mattering = self._interest.networks()
        whole, self._everything = self._everything or mattering != self._mattering, False
        self._mattering = mattering
        due, self._due = self._due, set()
        hosts, self._due_hosts = self._due_hosts, set()
        sources: dict[Source, list[State]] = {}
        self._stricter |= recorded is not self.judge
        self.judge = recorded  # and no pause until the worker is called: attaches that see it come after its sets
        if whole or self._leased:
            self._leased, sources[_HOSTS] = False, list(self._of_hosts())
        if whole:
            sources[RULES] = list(self._rules())
            self._ruled = bool(sources[RULES])
            due, hosts = set(self._endpoints), set(self._remote.owners())
            due |= {(source[2], source[3]) for source in self._of if source[1] == "endpoint"}
            hosts |= {source[2] for source in self._of if source[1] == "host"}
        for source, parties, states in itertools.chain(self._of_here(due), self._of_others(hosts)):
            sources[source] = states
            self._stricter |= self._note(source, parties)
        read = self._remote.complete  # else whoever has not been read yet seems to have no labels
        if self._kept and read:
            self._kept, self._stricter, sources[_KEPT] = False, True, []
        failed = await self._worker.run(self._worker.machine.reconciler.changes, sources)
        for error in failed.values():
            raise error
        if self._stricter and read:
            self._stricter = False
            await asyncio.to_thread(conntrack.cut, self._forbidden())

    def _note(self, source: Source, parties: dict[str, Party]) -> bool:
        """Record what is known of a source now; return whether something about a known address is different."""
        before = self._of.pop(source, {})
        if parties:
            self._of[source] = parties
        differs = any(address in before and before[address] != party for address, party in parties.items())
        for address in before.keys() - parties.keys():
            known = self._parties.get(address)
            if known is not None and known[0] == source:
                del self._parties[address]
        self._parties.update({address: (source, party) for address, party in parties.items()})
        return differs

    # What is wanted

    def _rules(self) -> Iterator[State]:
        families = {pool.family for one in self._networks.all() if not one.on_host for pool in one.prefixes}
        if ("host", "firewall") in self._worker.machine.reconciler.desired.sources():
            yield from rules.states(self.judge, families)

    def _of_hosts(self) -> Iterator[State]:
        """Yield the elements of the addresses that hosts have in networks: no endpoint has them, but somebody does."""
        if not self.judge:
            return
        for network in self._networks.all():
            if network.name in self._interest.networks():
                texts = [*network.gateways, *(a for lease in self._leases.all(network.name) for a in lease.addresses)]
                yield from (rules.known(prefix(text).single()) for text in texts)

    def elements(self, endpoint: Endpoint) -> list[State]:
        """Return the elements that an endpoint of this host needs."""
        chosen = self.judge.chosen(self.subject(endpoint)) if self.judge else frozenset()
        addresses = [one.single() for one in endpoint.prefixes]
        return [*rules.elements(self.judge, chosen, addresses, policed=policed(endpoint))]

    def subject(self, endpoint: Endpoint) -> Subject:
        """Return what selectors look at of an endpoint of this host."""
        return Subject(endpoint.called, endpoint.network, self._hosts.here.name, endpoint.labels)

    def _of_here(self, identities: Iterable[Identity]) -> Iterator[tuple[Source, dict[str, Party], list[State]]]:
        for identity in identities:
            endpoint = self._endpoints.get(identity)
            parties: dict[str, Party] = {}
            if endpoint is not None and self.judge:
                chosen = self.judge.chosen(self.subject(endpoint))
                parties = {one.address: Party(one.single(), chosen) for one in endpoint.prefixes}
            yield policy_source(identity), parties, self.elements(endpoint) if endpoint is not None else []

    def _of_others(self, hosts: Iterable[str]) -> Iterator[tuple[Source, dict[str, Party], list[State]]]:
        for host in hosts:
            parties: dict[str, Party] = {}
            states: list[State] = []
            name = self._hosts.name(host)
            for network, one in self._remote.of_host(host) if self.judge else ():
                chosen = self.judge.chosen(Subject(one.container, network, name, dict(one.labels)))
                parties |= {address.address: Party(address, chosen) for address in one.prefixes}
                states += rules.elements(self.judge, chosen, one.prefixes, policed=False)
            yield ("policy", "host", host), parties, states

    # What is cut

    def _forbidden(self) -> Flows:
        here = {
            address.address
            for endpoint in self._endpoints.values()
            if policed(endpoint)
            for address in endpoint.prefixes
        }
        pools = [pool for network in self._networks.all() for pool in network.prefixes]
        return Flows(self.judge, {address: party for address, (_, party) in self._parties.items()}, here, pools)

    def unenforced(self) -> list[str]:
        """Return a sentence for each container of this host that policies select, and that cannot be policed."""
        found = []
        for endpoint in self._endpoints.values() if self.judge else ():
            if not policed(endpoint):
                chosen = self.judge.chosen(self.subject(endpoint))
                names = {
                    section.policy
                    for sections in self.judge.sections.values()
                    for section in sections
                    if section.subject in chosen
                }
                found += [
                    f"policy {name} selects container {endpoint.called} of network {endpoint.network}, where "
                    "linkspan does not enforce policies (docs/policy.md)"
                    for name in sorted(names)
                ]
        return found


class Flows:
    """Which flows are forbidden, as a value for another thread: it is called with each flow."""

    def __init__(
        self, judge: Judge, parties: Mapping[str, Party], here: Collection[str], pools: Collection[Prefix]
    ) -> None:
        """Take the addresses of this host's endpoints as ``here``: other hosts enforce the policies of theirs."""
        self._judge = judge
        self._parties = parties
        self._here = here
        self._pools = pools

    def __call__(self, flow: conntrack.Flow) -> bool:
        """Return whether policies that this host enforces forbid a flow."""
        source, target = flow.source.address, flow.target.address
        probe = Probe(flow.protocol, flow.port)
        if source in self._here and not self._allowed("egress", flow.source, flow.target, probe):
            return True
        return target in self._here and not self._allowed("ingress", flow.target, flow.source, probe)

    def _allowed(self, direction: Direction, own: Prefix, other: Prefix, probe: Probe) -> bool:
        return self._judge.judged(direction, self._party(own), self._party(other), probe).allowed

    def _party(self, address: Prefix) -> Party:
        known = self._parties.get(address.address)
        return known or Party(address, outside=not any(pool.holds(address) for pool in self._pools))


def policed(endpoint: Endpoint) -> bool:
    """Return whether an endpoint's packets pass the chains of policies: it is routed, and on no bridge."""
    return endpoint.host_ifname.startswith("lsr")
