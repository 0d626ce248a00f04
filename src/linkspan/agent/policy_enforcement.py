"""Policy enforcement: keeps the rules of policies and the elements of endpoints as the records want them.

``endpoints/registry.py`` puts an endpoint's elements with the endpoint itself. Everything else is put here: the rules,
the elements of other hosts' endpoints, and those of this host's when policies change. A change of policies is one
batch of what differs (``policy/regime_difference.py``): one transaction puts, so no packet meets rules whose sets are
not filled, and a second one deletes what nobody wants any more. Flows that it forbids are cut after that. Everything is
compared at the start, after a failure, and when networks come to matter or their pools change.

An agent that starts does not know the other hosts' endpoints yet, and the store may be away. Until they are read, the
elements that the last agent put stay.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping

import msgspec

from linkspan.agent.policy_coverage import unenforceable
from linkspan.agent.policy_elements import InForce, PolicyElements
from linkspan.agent.policy_flows import Parties, Source
from linkspan.agent.policy_names import PolicyNames
from linkspan.agent.policy_records import PolicyRecords
from linkspan.cluster.endpoint_records import PATIENCE
from linkspan.cluster.interest import Interest
from linkspan.cluster.remote_endpoints import RemoteEndpoints, owner_of
from linkspan.core.errors import Conflict, LinkspanError
from linkspan.core.model import Endpoint, Network
from linkspan.core.states.host import Key, NftElement, State
from linkspan.core.supervise import ended, lasting, woken
from linkspan.endpoints.registry import Identity, policy_source
from linkspan.kernel.drivers import bridge_filters
from linkspan.kernel.probe import conntrack, underlay
from linkspan.kernel.worker import Worker
from linkspan.policy import name_rules, readings, rules
from linkspan.policy.regime import Regime
from linkspan.policy.regime_difference import Difference, difference
from linkspan.store.records import ENDPOINTS

log = logging.getLogger("linkspan.agent.policy_enforcement")

AGAIN, SELDOM = 1.0, 30.0
"""Seconds until a failed change is tried again: at first, and after several failures. AGAIN is also the time between
looks whether other hosts' endpoints have been read."""
_POLICIES = ("policies/", "staged/", "allowances/")
"""Kinds of records whose changes are found by comparing what follows from them."""
RULES: Source = ("policy", "rules")
"""The rules that all policies have in common; each policy's own ones have sources that begin so."""
_NAMES: Source = ("policy", "names")
"""The sets of DNS names, which are filled before there are rules that look at them."""
_HOSTS: Source = ("policy", "addresses of hosts")
_KEPT: Source = ("policy", "kept")


class _Plan(msgspec.Struct, frozen=True):
    """Plan of a change: what will be in force, and what of it differs from what is.

    ``changed``: the policies do. ``whole``: everything is compared. ``read``: other hosts' endpoints have been read.
    """

    force: InForce
    difference: Difference
    changed: bool
    whole: bool
    read: bool


class Enforcement:
    """The states of policies on this host."""

    def __init__(
        self,
        worker: Worker,
        records: PolicyRecords,
        elements: PolicyElements,
        parties: Parties,
        remote: RemoteEndpoints,
        interest: Interest,
        names: PolicyNames,
        leave_path: Callable[[Regime], Awaitable[None]],
        *,
        logs: bool = True,
    ) -> None:
        """Take the parts that it follows, and ``parties`` and ``names`` to keep up to date; ``logs``: there is nflog.

        ``leave_path`` is awaited when these policies have their rules: it takes endpoints off the path past them, and
        raises LinkspanError if the kernel refuses that. Not sooner: an answer that passes before there are rules would
        begin a flow, and allow the one that it answers.
        """
        self._worker = worker
        self._records = records
        self._elements = elements
        self._parties = parties
        self._remote = remote
        self._interest = interest
        self._names = names
        self._leave_path = leave_path
        self._logs = logs
        self._force = InForce()
        self._kept: list[NftElement] = []
        """The last agent's elements that stay until the other hosts' endpoints have been read."""
        self._unlabelled: set[str] = set()
        """Hosts that have no elements, because the labels of their endpoints that count now are not known yet."""
        self._put_pools: object = None
        """The networks' pools when everything was compared last."""
        self._stricter = False
        """Whether something may be forbidden since flows were cut last."""
        self._everything = False
        self._unsure = False
        """Whether the last change was broken off, so that the rules may be those of before."""
        self._leased: set[str] = set()
        """Networks of which a lease changed since the addresses of hosts were put last."""
        self._hosted: frozenset[str] = frozenset()
        """Networks of which the addresses of hosts were put last."""
        self._could_filter = False
        """Whether the kernel could pass bridges' frames to the rules when that was looked at last."""
        self._mattering: frozenset[str] = frozenset()
        """The networks whose endpoints mattered when everything was compared last."""
        self._named: tuple[frozenset[str], frozenset[int]] = frozenset(), frozenset()
        """The DNS names that are followed, and the families of their sets."""
        self._askers: frozenset[str] = frozenset()
        """The digests of the selectors of those who may go there."""
        self._due: set[Identity] = set()
        self._due_hosts: set[str] = set()
        self._putting = asyncio.Lock()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def regime(self) -> Regime:
        """The policies that are in force here."""
        return self._force.regime

    # Life

    def learn(self) -> None:
        """Take in the recorded policies, so that the endpoints that are taken over get their elements."""
        recorded = self._records.regime()
        self._force = self._elements.wanted(recorded)  # sets come before the first resync, with the networks' own rules
        self._remote.want_labels(self.regime.keys)

    async def take_over(self) -> None:
        """Desire the rules, and keep the last agent's elements; after the networks' rules, before the first resync."""
        if not self.regime:
            return
        self._force = self._wanted(self.regime)
        sources = self._rules(difference(Regime(), self.regime))
        sources[_NAMES] = [*name_rules.sets(self.regime.names, self._force.families)]
        self._kept = await self._worker.run(self._keep, sources)

    def _keep(self, sources: Mapping[Source, list[State]]) -> list[NftElement]:
        """Desire these, and the elements of their sets that are there; return those (worker thread)."""
        reconciler = self._worker.machine.reconciler
        there = [state for state in reconciler.observed((NftElement,)) if isinstance(state, NftElement)]
        kept = _within(there, readings.sets_of_peers(self._force.regime, self._force.families))
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
        if not (self.regime or self._records.regime()):
            return
        for key in keys:
            if key.startswith(ENDPOINTS):
                self._due_hosts.add(owner_of(key))
            elif key.startswith("leases/"):  # the host's own address there, and whether its endpoints matter
                _, network, host = key.split("/", 2)
                self._leased.add(network)
                self._due_hosts.add(host)
            elif key.startswith("networks/") or (key.startswith("hosts/") and self.regime.by_host):
                self._everything = True
            elif not key.startswith(_POLICIES):
                continue
            self._wake.set()

    def note(self, identity: Identity) -> None:
        """Follow an endpoint of this host that was added, changed or removed."""
        self._due.add(identity)  # also without policies: its attach may have begun under some
        self._wake.set()

    def look(self) -> None:
        """Follow the networks, whose own rules are there now: the rules of policies may have waited for them."""
        recorded = self._records.regime()
        before, now = (self._force, self._mattering), (self._wanted(recorded), self._interest.networks())
        if (recorded or self.regime) and now != before:
            self._wake.set()

    def look_at_module(self) -> None:
        """Follow br_netfilter, which is loaded or removed without an event."""
        if not (self.regime or self._records.regime()):  # without policies it means nothing
            return
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
        if (failed := self._failing(network)) is not None:  # no change of ours puts it again, but the healer does
            raise failed

    def _covers(self, network: Network) -> bool:
        """Return whether the rules see a network's packets, as far as a policy may be about it."""
        recorded = self._records.regime()
        if not recorded.concerns(network.name) or unenforceable(network):
            return True
        families = {one.family for one in network.prefixes}
        if self._unsure or recorded is not self.regime or not families <= self._force.families:
            return False
        if self._failing(network) is not None:
            return False
        if network.on_host:
            return self._force.ports
        return network.routed or network.bridge in self._force.bridges

    def _failing(self, network: Network) -> LinkspanError | None:
        """Return why rules that each container of a network needs are not in the kernel, None if they are.

        A policy's own chains are none of these: without them its containers keep their former rules, or get nothing.
        Nor is what staged policies have, which refuse nothing.
        """
        failing, regime = self._worker.machine.reconciler.failing, self.regime
        if not failing:
            return None
        if regime.staged:
            regime = Regime(regime.judge.policies, closed=regime.judge.closed, before=regime)
        bridges = self._force.bridges & {network.bridge}
        needed = msgspec.structs.replace(self._force, regime=regime, bridges=bridges)
        return next((failing[one.key] for one in needed.common(logs=self._logs) if one.key in failing), None)

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
        recorded = self._records.regime()
        if not (recorded or self.regime):
            await self._put_none()
            return
        if recorded is not self.regime:
            await self._prepare(recorded)
        await self._follow_names(recorded)
        plan = self._plan(recorded)
        sources = await self._of_others(plan)
        # No pause from here until the worker is called: attaches that see the new rules come after their sets.
        sources |= self._of_here(plan)
        kept = self._kept if recorded and not plan.read else []
        kept = _within(kept, readings.sets_of_peers(recorded, plan.force.families)) if kept else []
        if kept != self._kept:
            self._stricter, sources[_KEPT] = True, [*kept]
        # What goes is first: an address may lead somewhere else, because another endpoint has it now.
        ordered = dict(sorted(sources.items(), key=lambda one: bool(one[1])))
        refused: list[LinkspanError] = []
        try:
            failed = await self._worker.run(self._worker.machine.reconciler.changes, ordered)
        except Conflict as error:  # all else is in force
            failed, refused = {}, [error]
        except BaseException:
            self._unsure = True
            raise
        self._unsure, self._kept = False, kept
        if plan.changed or plan.whole:
            try:
                await self._leave_path(self.regime)
            except LinkspanError as error:
                refused.append(error)
        if self._stricter and plan.read:
            self._stricter = False
            local = await self._worker.run(underlay.every_address, self._worker.machine.sockets)
            await asyncio.to_thread(conntrack.cut, self._parties.flows(self.regime.judge, local, past=True))
        if refused := [*await self._worker.run_brief(self._serious, failed), *refused]:
            raise refused[0]  # after the cut: one bad element must not keep forbidden flows

    async def _prepare(self, recorded: Regime) -> None:
        """Make sure that other policies than those in force can be put."""
        # The new rules need labels that were not kept. Without them they would refuse what they allow.
        self._remote.want_labels(recorded.keys)
        await self._remote.caught_up(PATIENCE)
        # Before the rules are there: an agent that is killed now, and starts while the store is away, needs them.
        await self._records.save()

    def _plan(self, recorded: Regime) -> _Plan:
        """Take in what has changed since the last time."""
        # Before the hosts are taken: what is read during the pauses that follow is put the next time. Until all are
        # read, whoever has not been read seems to have no labels. What was kept goes with all that takes its place.
        read, changed = self._remote.complete, recorded is not self.regime
        mattering, pools, force = self._interest.networks(), self._elements.pools(), self._wanted(recorded)
        moved = (mattering, pools, force.families) != (self._mattering, self._put_pools, self._force.families)
        whole = self._everything or moved or (read and bool(self._kept)) or not (self.regime and recorded)
        self._stricter |= changed or pools != self._put_pools
        self._everything, self._mattering, self._put_pools = False, mattering, pools
        return _Plan(force, difference(Regime() if whole else self.regime, recorded), changed, whole, read)

    async def _of_others(self, plan: _Plan) -> dict[Source, list[State]]:
        """Return what differs of other hosts' endpoints, by source; take in what is known of them."""
        hosts, self._due_hosts = self._due_hosts, set()
        sources: dict[Source, list[State]] = {}
        if plan.whole:
            sources = {source: [] for source in self._desired() if source[1] == "host"}
            hosts = self._remote.owners() | {source[2] for source in sources}
        elif plan.changed:
            hosts |= {host for host in self._remote.owners() if not self._remote.labelled(host)}
        hosts |= {host for host in self._unlabelled if self._remote.labelled(host)}
        async for host in self._in_turn(hosts):
            sources |= self._of_host(plan.force, host)
        difference = plan.difference
        if (difference.gained or difference.lost) and not plan.whole:
            async for host in self._in_turn(self._remote.owners() - hosts):
                sources |= self._reselected(plan.force, host, difference)
        return sources

    def _of_here(self, plan: _Plan) -> dict[Source, list[State]]:
        """Return what differs of the rules, and of this host's endpoints, by source; this is in force from now on."""
        force, sources = plan.force, dict[Source, list[State]]()
        due, self._due = self._due, set()
        leased, self._leased = self._leased & self._hosted, set()
        here = plan.whole or (force.bridges, force.ports) != (self._force.bridges, self._force.ports)
        if here:
            due = self._elements.identities() | {(id_, ifname) for id_, ifname in self._put_of("endpoint")}
        elif plan.changed:
            due |= self._elements.selected(self.regime, plan.difference.concerned)
            due |= self._elements.selected(force.regime, plan.difference.concerned)
        self._force = force
        if plan.whole:
            sources = {source: [] for source in self._desired() if source[1] == "rules"}
            leased, self._hosted = {*self._mattering, *self._hosted}, self._mattering
        if plan.changed or here:
            sources |= self._rules(plan.difference)
            if self._named[0] or self._is_source(_NAMES):
                sources[_NAMES] = [*name_rules.sets(*self._named)]
        for name in leased:
            sources[(*_HOSTS, name)] = list(self._elements.of_hosts(force, name)) if name in self._hosted else []
        for identity in due:
            source = policy_source(identity)
            known, sources[source] = self._elements.of_own(force, identity)
            self._stricter |= self._attached_under_others(source, sources[source])
            self._stricter |= self._parties.note(source, known)
        return sources

    async def _follow_names(self, recorded: Regime) -> None:
        """Put the sets of the DNS names that will be in force, and fill them: the rules come when that is done."""
        named = recorded.names, self._wanted(recorded).families
        asks = recorded.askers != self._askers
        if (named != self._named or asks) and (recorded.names or self._named[0]):
            sets = [*name_rules.sets(recorded.names | self.regime.names, named[1] | self._force.families)]
            await self._worker.run(self._worker.machine.reconciler.change, _NAMES, sets)
            await self._names.follow(recorded, named[1] if recorded.names else frozenset())
        self._named, self._askers = named, recorded.askers

    def _serious(self, failed: Mapping[Key, LinkspanError]) -> list[LinkspanError]:
        """Return the errors that count (in the worker's thread).

        A chain that is left, because an attach under way uses it, is harmless. The healer removes it.
        """
        desired = self._worker.machine.reconciler.desired
        return [e for key, e in failed.items() if key[0] == NftElement.__name__ or desired.state(key) is not None]

    async def _put_none(self) -> None:
        """Without policies: drop what attaches desire that began while there were some. The healer removes the rest."""
        due = self._desired() if self._everything else map(policy_source, self._due)
        left: dict[Source, list[State]] = {source: [] for source in due if self._is_source(source)}
        self._everything, self._stricter, self._due = False, False, set()
        if left:
            await self._worker.run(self._worker.machine.reconciler.changes, left)

    async def _in_turn(self, hosts: Iterable[str]) -> AsyncIterator[str]:
        """Yield hosts, with a pause after each: there may be tens of thousands of endpoints."""
        for host in hosts:
            yield host
            await asyncio.sleep(0)

    def _rules(self, difference: Difference) -> dict[Source, list[State]]:
        """Return the rules that differ, by source, and those that all policies have in common."""
        force, logs = self._force, self._logs
        found: dict[Source, list[State]] = {RULES: force.common(logs=logs)}
        found |= {(*RULES, *name): [] for name in difference.gone}
        for part in difference.put:
            found[(*RULES, *part.name)] = list(rules.states(force.regime, part, force.families))
        return found

    def _of_host(self, force: InForce, host: str) -> dict[Source, list[State]]:
        """Return all elements of another host's endpoints, by source; take in what is known of them."""
        (self._unlabelled.discard if self._remote.labelled(host) else self._unlabelled.add)(host)
        source = _of_host(host)
        before = self._parties.of(source)
        was = {digest for one in before.values() for digest in one.chosen}
        known, states = self._elements.of_others(force, host)
        # A released address gets another owner, who must not inherit its flows.
        self._stricter |= any(before[text].chosen for text in before.keys() - known.keys())
        self._stricter |= self._parties.note(source, known)
        found = {(*source, digest): states.get(digest, []) for digest in {*was, *states} - {""}}
        return {source: states.get("", []), **found}

    def _reselected(self, force: InForce, host: str, difference: Difference) -> dict[Source, list[State]]:
        """Return what of another host's elements differs, by source; take in what is known of them."""
        source = _of_host(host)
        before = self._parties.of(source)
        known, states = self._elements.reselected(force, host, before, difference.gained, difference.lost)
        lost = frozenset().union(*{before[text].chosen for text in known}) & difference.lost
        self._parties.change(source, known)
        return {(*source, digest): states.get(digest, []) for digest in {*lost, *states}}

    def _desired(self) -> list[Source]:
        """Return the sources of all states of policies. The worker may change them meanwhile."""
        return [source for source in list(self._worker.machine.reconciler.desired.sources()) if source[0] == "policy"]

    def _is_source(self, source: Source) -> bool:
        return source in self._worker.machine.reconciler.desired.sources()

    def _put_of(self, kind: str) -> Iterable[tuple[str, ...]]:
        """Return of which hosts, or of which endpoints here, elements have been put."""
        return (source[2:] for source in self._parties.sources() if source[1] == kind)

    def _attached_under_others(self, source: Source, states: Iterable[State]) -> bool:
        """Return whether an endpoint that is new here was attached while other policies, or none, were in force."""
        put = self._worker.machine.reconciler.desired.sources().get(source, {})
        new = source not in self._parties.sources()
        return new and put.keys() != {state.key for state in states}

    # What is wanted

    def _wanted(self, regime: Regime) -> InForce:
        """Return what can be in force now: the networks' own rules and the bridges come first."""
        desired = self._worker.machine.reconciler.desired
        if ("host", "firewall") not in desired.sources():
            return InForce(regime)
        wanted = self._elements.wanted(regime)
        bridges = frozenset(one for one in wanted.bridges if desired.state(("Bridge", one)) is not None)
        return msgspec.structs.replace(wanted, bridges=bridges)

    def filtered(self) -> frozenset[str]:
        """Return the bridges whose frames pass the rules."""
        return self._force.bridges

    def elements(self, endpoint: Endpoint) -> list[State]:
        """Return the elements that an endpoint of this host needs."""
        return self._elements.of_endpoint(self._force, endpoint)

    def unenforced(self) -> list[str]:
        """Return a sentence for each policy and network here of which containers are not protected."""
        return self._elements.unenforced(self.regime)


def _of_host(host: str) -> Source:
    return ("policy", "host", host)


def _within(states: Iterable[State], sets: Collection[str]) -> list[NftElement]:
    """Return the elements of these sets."""
    return [state for state in states if isinstance(state, NftElement) and state.set in sets]
