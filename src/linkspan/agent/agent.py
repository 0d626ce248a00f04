"""The agent of one host: composes its parts and keeps the host up to date.

Start: lock the state folder, open store and journal, take over what exists on the machine, resync (which
removes what no record wants), drain the queue of DELs, serve, print ``ready``. SIGTERM stops the agent in
order. Everything in the kernel stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from pathlib import Path

from linkspan import __version__
from linkspan.agent import arrival, locks
from linkspan.agent.bgp_sessions import BgpSessions
from linkspan.agent.cluster_recovery import ClusterRecovery
from linkspan.agent.cluster_trace import ClusterTrace
from linkspan.agent.drop_log import DropLog
from linkspan.agent.etcd_unit import EtcdUnit
from linkspan.agent.fast_endpoints import FastEndpoints
from linkspan.agent.forwarding import Forwarding
from linkspan.agent.founding import Founding
from linkspan.agent.healer import Healer
from linkspan.agent.host_facts import HostFacts
from linkspan.agent.host_identity import host_id, keep
from linkspan.agent.ipsec_sessions import IpsecSessions
from linkspan.agent.join_tokens import JoinTokens
from linkspan.agent.metrics import Metrics
from linkspan.agent.named_addresses import NamedAddresses
from linkspan.agent.network_changes import NetworkChanges
from linkspan.agent.network_details import NetworkDetails
from linkspan.agent.news import News
from linkspan.agent.own_cluster import OwnCluster, Restart
from linkspan.agent.peer_paths import PeerPaths
from linkspan.agent.peer_survey import PeerSurvey
from linkspan.agent.plans import Plans
from linkspan.agent.policies import Policies
from linkspan.agent.policy_answers import PolicyAnswers
from linkspan.agent.policy_elements import PolicyElements
from linkspan.agent.policy_enforcement import Enforcement
from linkspan.agent.policy_flows import Parties
from linkspan.agent.policy_metrics import PolicyMetrics
from linkspan.agent.policy_names import PolicyNames
from linkspan.agent.policy_probes import PolicyProbes
from linkspan.agent.policy_records import PolicyRecords
from linkspan.agent.policy_trials import Trials
from linkspan.agent.runtime_calls import RuntimeCalls
from linkspan.agent.store_health import StoreHealth
from linkspan.agent.trace_map import TraceMap
from linkspan.backends.wireguard.backend import asked, serves
from linkspan.cluster import bootstrap
from linkspan.cluster.address_usage import AddressUsage
from linkspan.cluster.allocator import Allocator
from linkspan.cluster.allowances import Allowances
from linkspan.cluster.claims import Claims
from linkspan.cluster.conflicts import Conflicts
from linkspan.cluster.control_plane import ControlPlane
from linkspan.cluster.egress import Exits
from linkspan.cluster.egress_flows import Turn, stale
from linkspan.cluster.endpoint_records import EndpointRecords
from linkspan.cluster.exact_addresses import ExactAddresses
from linkspan.cluster.exact_claims import ExactClaims
from linkspan.cluster.hosts import Hosts
from linkspan.cluster.interest import Interest
from linkspan.cluster.key_rotation import KeyRotation
from linkspan.cluster.leases import Leases
from linkspan.cluster.liveness import Liveness
from linkspan.cluster.membership import Membership
from linkspan.cluster.migration_runner import MigrationRunner
from linkspan.cluster.network_states import NetworkStates
from linkspan.cluster.networks import Networks
from linkspan.cluster.own_record import OwnRecord
from linkspan.cluster.participation import Participation
from linkspan.cluster.peer_ping import PeerPings
from linkspan.cluster.peers import Peers
from linkspan.cluster.presence import Presence
from linkspan.cluster.questions import Ask, HealthQuestion, PathsQuestion, Question, Reply
from linkspan.cluster.readiness import Readiness
from linkspan.cluster.registration import Registration
from linkspan.cluster.remote_endpoints import RemoteEndpoints
from linkspan.cluster.reservations import Reservations
from linkspan.cluster.shared_states import SharedStates, learning
from linkspan.cluster.withdrawal import Withdrawal
from linkspan.core.addresses import Prefix
from linkspan.core.config import CONFIG_FILE, Config
from linkspan.core.errors import Invalid, KernelError, LinkspanError, Unavailable
from linkspan.core.event_log import EventLog
from linkspan.core.host_view import HostView
from linkspan.core.model import Endpoint, Host, Network
from linkspan.core.ports import PortTable
from linkspan.core.states.host import Key
from linkspan.core.store_contract import Store
from linkspan.diagnose.doctor.peer_probe import Probe
from linkspan.dns.service import NameService
from linkspan.endpoints import detach
from linkspan.endpoints.host_listeners import HostListeners
from linkspan.endpoints.journal import Journal
from linkspan.endpoints.orphans import Orphans
from linkspan.endpoints.reaper import Reaper
from linkspan.endpoints.recovery import Recovery
from linkspan.endpoints.registry import Identity, Registry
from linkspan.endpoints.update import follow_mtus, follow_pools, stranded
from linkspan.kernel.probe import conntrack, nflog, underlay
from linkspan.kernel.worker import Worker
from linkspan.policy import rules
from linkspan.runtimes import runtimes
from linkspan.store import upkeep
from linkspan.store.contact import STALE
from linkspan.store.factory import maintenance, open_store
from linkspan.store.replica import Replica
from linkspan.store.snapshot import SNAPSHOT
from linkspan.store.upkeep import Upkeep

EVENTS = "events.jsonl"
log = logging.getLogger("linkspan.agent.agent")

Waiting = Callable[["Agent"], contextlib.AbstractAsyncContextManager[None]]


class Agent:
    """The parts of a host's agent, by name. The API takes the part that it needs, and changes none."""

    def __init__(
        self,
        config: Config,
        waiting: Waiting = lambda _agent: contextlib.nullcontext(),
        file: Path = Path(CONFIG_FILE),
        restart: Restart = lambda _config: None,
    ) -> None:
        """Keep the settings; enter ``waiting`` while a new agent waits for a store that does not answer.

        ``file`` has the settings that the agent changes itself; after that it asks for a ``restart`` with them.
        """
        self.config = config
        self._waiting = waiting
        self.started = time.time()
        self.event_log = EventLog(Path(config.state_dir) / EVENTS)
        self.metrics = Metrics()
        self.worker = Worker()
        self.host_name = config.host_id or socket.gethostname()
        self.facts = HostFacts(self.worker)
        self.plans = Plans(self.worker, self.view, self.config)
        self.own_cluster = OwnCluster(config, file, restart)
        self.join_tokens = JoinTokens(self.own_cluster)
        unit = EtcdUnit(Path(config.state_dir))
        self.founding = Founding(self.own_cluster, unit, self.join_tokens)
        self.cluster_recovery = ClusterRecovery(self.own_cluster, unit, self.founding.etcd_as, self.founding.renew)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start, and stop in order at the end. Raises Conflict if another agent uses the state folder."""
        state_dir = Path(self.config.state_dir)
        with locks.state_folder(state_dir), locks.network_namespace():
            self.config = await self.founding.cleared(self.config.host_id)
            identity, news = host_id(state_dir, self.config.host_id, shared=bool(self.config.store))
            host = Host(
                id=identity, name=self.host_name, version=__version__, enforces=True, egresses=True, tiers=True,
                hastens=True, dns_peers=True,
            )  # fmt: skip
            with contextlib.closing(
                Journal(state_dir / "journal.db", cooldown=self.config.cooldown)
            ) as self.journal:
                try:
                    async with contextlib.AsyncExitStack() as parts:
                        self.event_log.read()
                        parts.callback(self.event_log.close)
                        self.event_log.add("agent", f"the agent started, version {__version__}")
                        parts.push_async_callback(self.worker.stop)
                        await self.worker.start(state_dir)
                        await parts.enter_async_context(self.founding.running(identity))
                        moves = self.founding.moves()  # then the snapshot is the own store's, and goes with it
                        cluster, joins = ("", "") if moves else arrival.known_cluster(self.config)
                        new = moves or bool(joins) or not (state_dir / SNAPSHOT).exists()
                        store = open_store(self.config.store, state_dir, cluster)
                        await self._join(host, store, new, parts)
                        await self.presence.refuse_second()  # before anything is written
                        for words in filter(None, (news, joins)):
                            self._tell(words)
                        if not self.config.host_id:
                            keep(state_dir, identity)
                        await self.replica.accepted()
                        if new:
                            if first := arrival.first_in_store(self.config, self.replica, self.hosts):
                                self._tell(first)
                            await self.registration.come_back()
                        # The last agent's lease ends within seconds, and to take over may take longer.
                        parts.push_async_callback(self.presence.stop)
                        await self.presence.start()
                        await self._take_over(parts)
                        await parts.enter_async_context(self.founding.following(self.hosts, store, self._tell))
                        await parts.enter_async_context(self.cluster_recovery.snapshots(identity))
                        yield
                finally:
                    with contextlib.suppress(Unavailable):  # the disk is full: the log beside the file has all events
                        self.journal.checkpoint()

    def _tell(self, what: str) -> None:
        """Write a message about this agent's start to the log and to the events."""
        log.warning("%s", what)
        self.event_log.add("agent", what)

    async def _join(self, host: Host, store: Store, new: bool, parts: contextlib.AsyncExitStack) -> None:
        """Make the parts around a replica of the store. Without a snapshot, wait for the store."""
        own_record, endpoints = OwnRecord(host), dict[Identity, Endpoint]()
        liveness = self._make_records(own_record, store, endpoints)
        self._make_policies(host, endpoints)
        self._make_endpoints(host, endpoints, parts)
        self._make_membership(own_record, liveness)
        self._make_changes(own_record, store)
        self._make_watchers(host, endpoints)
        parts.push_async_callback(self.replica.stop)
        await self.founding.moved(self._waiting(self))
        await self.replica.start(new=new)
        await bootstrap.known(self.replica, self._waiting(self))

    def _make_records(self, own_record: OwnRecord, store: Store, endpoints: dict[Identity, Endpoint]) -> Liveness:
        """Make the replica and what reads and writes its records; return what knows who is silent."""
        state_dir, id_, shared = Path(self.config.state_dir), own_record.host.id, bool(self.config.store)
        self.remote = RemoteEndpoints(store, id_, self._changed)
        self.replica = Replica(store, state_dir / SNAPSHOT, id_, self._changed, self.remote, provisional=True)
        self.interest = Interest(self.replica, self.remote, endpoints)
        self.hosts = Hosts(self.replica, own_record, shared=shared)
        liveness = Liveness(state_dir, STALE, self.hosts.promised)
        instance = arrival.instance(self.config, self.host_name)
        self.presence = Presence(self.replica, self.hosts, liveness, self._alone_again, instance, shared=shared)
        self.endpoint_records = EndpointRecords(
            self.replica, id_, endpoints, self.remote, self.interest, self.presence, shared=shared
        )
        self.leases = Leases(self.replica, self.hosts, self.endpoint_records.living, liveness.overdue)
        self.networks = Networks(self.replica)
        self.allowances = Allowances(self.replica, self.networks)
        self.reservations = Reservations(self.replica, self.networks)
        self.conflicts = Conflicts(self.replica, self.hosts, self.leases, self.endpoint_records, self.event_log)
        self.exact_addresses = ExactAddresses(
            self.replica,
            self.hosts,
            self.leases,
            self.networks,
            endpoints,
            self._busy,
            self.endpoint_records.held,
        )
        cooldown, owed = self.config.cooldown, self.exact_addresses.note
        self.blocks = AddressUsage(self.networks, self.reservations, self.hosts, self.leases, self.conflicts, cooldown)
        stalled = partial(liveness.stalled, id_)
        self.readiness = Readiness(self.hosts, self.leases, stalled, self.presence)
        self.allocator = Allocator(
            self.networks,
            self.leases,
            self.blocks,
            ExactClaims(id_, self.leases, self.reservations, self.conflicts, cooldown, owed),
            self.readiness,
            self.endpoint_records.holder,
            self._take_part,
            self._give_up,
        )
        self.participation = Participation(self.hosts, self.leases, self.networks, self.allowances, endpoints)
        return liveness

    def _make_policies(self, host: Host, endpoints: dict[Identity, Endpoint]) -> None:
        """Make what names this host's endpoints, and what lets policies decide about them."""
        self.name_service = NameService(
            self.worker,
            self.networks,
            self.replica,
            self.remote,
            host.id,
            endpoints,
            self.config,
            self.event_log,
        )
        named, logs = NamedAddresses(), nflog.available(rules.GROUP)
        records, parties = PolicyRecords(self.replica, self.networks), Parties(self.networks, endpoints, named)
        elements = PolicyElements(self.networks, self.hosts, self.leases, self.remote, endpoints)
        self.policy_names = PolicyNames(self.worker, elements, named, self.name_service.nameservers, logs=logs)
        self.fast_endpoints = FastEndpoints(self.worker, self.networks, endpoints, records, elements, self.view)
        self.enforcement = Enforcement(
            self.worker,
            records,
            elements,
            parties,
            self.remote,
            self.interest,
            self.policy_names,
            self.fast_endpoints.follow_policies,
            logs=logs,
        )
        self.policies = Policies(
            self.replica, records, self.networks, self.hosts, self.enforcement, self.policy_names, self.event_log
        )
        self.policy_trials = Trials(self.worker, self.enforcement, parties)
        self.policy_metrics = PolicyMetrics(self.enforcement, self.metrics.refusals)
        self.drop_log = DropLog(self.enforcement, parties, always=self.config.log_drops)
        self.policy_answers = PolicyAnswers(
            self.networks, self.allowances, self.endpoint_records, self.hosts, self.leases, records, named
        )
        self.policy_probes = PolicyProbes(self.worker.machine.namespaces, endpoints, self.policy_answers)

    def _make_endpoints(
        self, host: Host, endpoints: dict[Identity, Endpoint], parts: contextlib.AsyncExitStack
    ) -> None:
        """Make what attaches and detaches this host's endpoints, and removes what is left of others."""
        listeners = HostListeners(self.name_service.listening)
        parts.callback(listeners.close)
        self.ports = PortTable(listeners)
        self.registry = Registry(
            self.worker,
            self.journal,
            self.networks,
            self.allocator,
            self.ports,
            self.event_log,
            host.name,
            endpoints,
            self.metrics.operation,
            self.enforcement,
        )
        for follower in (
            self.endpoint_records, self.name_service, self.interest, self.enforcement, self.fast_endpoints,
            self.policy_names,
        ):  # fmt: skip
            self.registry.subscribe(follower.note)
        self.orphans = Orphans(
            self.worker,
            self.journal,
            self.networks,
            self.blocks,
            self.readiness,
            self.event_log,
            self.config.orphans_after,
        )
        self.recovery = Recovery(self.registry, self.blocks, self.endpoint_records, self.orphans)
        self.reaper = Reaper(self.registry, self.config.reap_after)

    def _make_membership(self, own_record: OwnRecord, liveness: Liveness) -> None:
        """Make what follows the records of all hosts, and keeps this host's own."""
        self.registration = Registration(self.worker, self.replica, own_record, self.hosts, self.event_log, self.config)
        self.peers = Peers(
            self.worker,
            self.hosts,
            self.leases,
            self.networks,
            self.conflicts,
            self.participation,
            self.event_log,
            self.view,
        )
        self.egress = Exits(
            self.worker,
            self.replica,
            self.hosts,
            self.networks,
            self.participation,
            self.event_log,
            self._follow_exits,
        )
        self.presence.subscribe(self.egress.confirmed, self.egress.lost)
        self.shared_states = SharedStates(self.worker, self.view)
        self.claims = Claims(
            self.hosts, self.leases, self.networks, self.conflicts, self.participation, self.blocks, self.view
        )
        self.withdrawal = Withdrawal(self.hosts, liveness, self.peers, self.event_log)
        self.key_rotation = KeyRotation(
            self.worker,
            own_record,
            self.hosts,
            self.event_log,
            self.view,
            self._follow_networks,
            self.registration.put,
            self.facts.look,
        )
        self.migration_runner = MigrationRunner(
            self.replica, self.hosts, self.leases, self.networks, self.event_log, self.view, self.peers
        )
        states = NetworkStates(
            self.worker, self.networks, self.peers, self.shared_states, self._follow_networks, self.plans.drop
        )
        self.membership = Membership(
            self.registration,
            self.presence,
            self.networks,
            self.claims,
            states,
            self.withdrawal,
            self.key_rotation,
            self.migration_runner,
        )
        self.news = News(self.replica, self.membership.converge)
        calls = RuntimeCalls(self.registry, self.blocks, self.name_service, self.news)
        self.services = {
            name: runtime.serve(calls, self.registry, self.config) for name, runtime in runtimes().items()
        }

    def _make_changes(self, own_record: OwnRecord, store: Store) -> None:
        """Make what operators change networks by, and what looks after the store and the control plane."""
        self.network_changes = NetworkChanges(
            self.registry,
            self.replica,
            self.hosts,
            self.endpoint_records,
            self.membership,
            self.view,
            self.facts.look,
            self.name_service.leave,
        )
        self.network_details = NetworkDetails(
            self.networks, self.allowances, self.reservations, self.blocks, self.membership
        )
        own = self.own_cluster
        self.upkeep = Upkeep(
            self.replica,
            maintenance(store, upkeep.KEY, own.root if own.own else None),
            own_record.host.name,
            own.upkeep,
            self._tell_of_store,
            self.metrics.upkeep.count,
            acts=own.keeps_store,
        )
        self.store_health = StoreHealth(self.replica, self.remote, self.hosts, self.upkeep, own.url, self.started)
        self.control = ControlPlane(
            Path(self.config.state_dir),
            self.replica,
            own_record,
            self.hosts,
            self.networks,
            self._addresses,
            self.membership.reregister,
        )

    def _make_watchers(self, host: Host, endpoints: dict[Identity, Endpoint]) -> None:
        """Make what watches the machine, the peers and the sessions with them, and what asks other agents."""
        machine = self.worker.machine
        self.peer_pings = PeerPings(self.peers.known, self.event_log)
        self.bgp_sessions = BgpSessions(self.networks, self.view, machine.namespaces, self.event_log, self.metrics)
        self.ipsec_sessions = IpsecSessions(self.worker, self.event_log)
        self.peers.subscribe(self.ipsec_sessions.soon)
        self.ask = Ask(self.replica, host.id, self._answer)
        trace_map = TraceMap(
            self.hosts, self.leases, self.networks, endpoints, self.endpoint_records, self.peer_pings.confirmed
        )
        self.cluster_trace = ClusterTrace(
            machine.namespaces,
            Path(self.config.state_dir),
            trace_map,
            self.bgp_sessions.learning,
            self.hosts.alive,
            self.ask,
        )
        self.peer_paths = PeerPaths(self.hosts, self.leases, self.peer_pings, self.ask)
        self.peer_survey = PeerSurvey(machine.namespaces, self.hosts, self.view, self.peers.known, self.ask)
        self.healer = Healer(
            self.registry,
            self.metrics,
            self.replan,
            self.membership.look_around,
            self._look_at_programs,
            self.reaper.look,
        )
        self.forwarding = Forwarding(self.worker, self.event_log, self.replan)

    def _tell_of_store(self, what: str) -> None:
        log.warning("%s", what)
        self.event_log.add("store", what)

    async def _addresses(self) -> frozenset[str]:
        return await self.worker.run(underlay.every_address, self.worker.machine.sockets)

    def _busy(self, identity: tuple[str, str]) -> bool:
        """Return whether an attach or a detach is under way, or another agent may have the endpoint."""
        waits = any(one.waits(identity) for one in self.services.values())
        return waits or self.registry.busy(identity) or self.endpoint_records.withholds(identity)

    async def _take_part(self, network: Network) -> None:
        """Get a lease in a network: the allocator asks for it, and is made before the membership."""
        await self.membership.take_part(network)

    async def _give_up(self, network: str, address: Prefix) -> None:
        """Take an address out of the states of the peer that had it: the allocator asks, and is made before peers."""
        await self.peers.give_up(network, address)

    async def _changed(self, keys: frozenset[str]) -> None:
        """Pass the keys of changed records on; each part wakes a task of its own for them."""
        self.ask.changed(keys)
        self.founding.changed(keys)
        if self.endpoint_records.has_own(keys):
            await self.recovery.learn()  # before records with no known owner are removed
        self.interest.changed(keys)
        self.name_service.changed(keys)
        self.enforcement.changed(keys)
        self.endpoint_records.changed(keys)
        self.exact_addresses.changed(keys)
        self.presence.changed(keys)
        self.egress.changed(keys)
        await self.membership.changed(keys)

    async def _follow_exits(self, turns: Mapping[str, Mapping[int, Turn]]) -> None:
        """Apply the states of networks whose egress addresses have changed, and cut the flows that do not follow."""
        await self.membership.converge({f"networks/{name}" for name in turns})
        if any(turns.values()):
            every = self.networks.all()
            moved = [network for network in every if network.name in turns]
            with contextlib.suppress(KernelError):  # then open connections end
                await asyncio.to_thread(conntrack.cut, partial(stale, moved, every, turns))

    async def _alone_again(self) -> None:
        """Correct records that another agent with this host's id may have written last, such as its leases."""
        await self.membership.changed(frozenset({"networks/"}))

    async def _answer(self, question: Question) -> Reply:
        """Answer another host's question. Raises LinkspanError."""
        if isinstance(question, Probe):
            return await self.peer_survey.answer(question)
        if isinstance(question, PathsQuestion):
            return self.peer_paths.answer(question)
        if isinstance(question, HealthQuestion):
            raise Invalid("an agent has no switches: only the controller has")
        return await self.cluster_trace.answer(question)

    async def _take_over(self, parts: contextlib.AsyncExitStack) -> None:
        """Desire what the records and the journal want, apply it, and begin to watch."""
        sysctls, ran_before = self.worker.machine.sysctls, self.journal.witnessed_this_boot()
        if lost := await self.worker.run(sysctls.settle, ran_before=ran_before):
            self._tell(lost)
        await self.worker.run(self.worker.machine.keep_rules)
        await self.facts.look()
        self.networks.look(await self.worker.run(self.worker.machine.routes), None)
        self.networks.refresh()
        self.blocks.refresh()
        parts.callback(self.registry.retry_forgetting)
        self.enforcement.learn()
        inside = await self.recovery.run(self.replica.listed)
        await self.control.look()  # before any container gets an interface
        await self.fast_endpoints.take_over()
        parts.push_async_callback(self.fast_endpoints.leave_to_older)
        parts.push_async_callback(self.peers.stop)
        parts.push_async_callback(self.membership.stop)
        await self.membership.start()
        self.peers.start()
        if words := arrival.namesake(self.hosts, self.host_name):
            self._tell(words)
        await self.name_service.take_over()
        await self.enforcement.take_over()
        await self.fast_endpoints.follow()
        await self.orphans.spare()
        report = await self.worker.run(self.worker.machine.reconciler.resync, None, inside, log=False)
        self.healer.record(report)
        self.recovery.finish()
        with contextlib.suppress(KernelError):  # then the metric begins with what was counted before
            await self.policy_metrics.begin()
        for part in (
            self.healer, self.forwarding, self.peer_pings, self.bgp_sessions, self.ipsec_sessions,
        ):  # fmt: skip
            await part.start()
            parts.push_async_callback(part.stop)
        parts.push_async_callback(self.ask.stop)
        # ``interest`` reads other hosts' endpoints, for names above all: what carries packets comes first.
        for follower in (
            self.orphans, self.endpoint_records, self.exact_addresses, self.name_service, self.control, self.upkeep,
            self.interest, self.policy_names, self.enforcement, self.fast_endpoints, self.drop_log, self.egress,
        ):  # fmt: skip
            follower.start()
            parts.push_async_callback(follower.stop)
        for service in self.services.values():
            await service.start()
            parts.push_async_callback(service.stop)

    def view(self) -> HostView:
        """Return the view for the backends."""
        held = () if self.peers.withdrawn else self.leases.serving(self.networks.all())
        here = self.hosts.whole(self.hosts.here)
        closed = self.control.closed()
        seen = HostView(
            self.networks.all(), self.allowances.all(), self.facts.last, here, held,
            control=closed.places, control_here=closed.here, exits=self.egress.holders(),
        )  # fmt: skip
        if any(map(serves, seen.networks)):
            hosts = map(self.hosts.whole, self.hosts.all().values())
            seen = asked(seen, hosts, self.leases.networks(self.participation.all()))
        return learning(seen, self.leases, self.peers, self.registry.endpoints.values())

    async def _look_at_programs(self) -> None:
        """Look for changes that cause no event; the first network that needs a program looks, too."""
        self.enforcement.look_at_module()
        if await self.facts.stale(self.networks.all()):
            await self.replan()

    async def replan(self) -> None:
        """Observe the machine's facts, and apply what follows from them if they changed."""
        self.policy_names.look()
        if await self.facts.look():
            await self.plans.put()
            await self.plans.drop()
        await self.membership.look_around()

    async def _follow_networks(self) -> dict[Key, LinkspanError]:
        """Follow the networks of the store, whichever host changed them."""
        for service in self.services.values():
            service.look()
        for identity in stranded(self.registry, self.hosts, self.leases):
            await detach.detach(self.registry, *identity)
        failed = await follow_mtus(self.registry)  # first: the next way may have a smaller MTU
        failed |= await follow_pools(self.registry)
        failed |= await self.plans.put()
        await self.fast_endpoints.follow()  # before plans drop the chains of a network that is fast no more
        self.enforcement.look()
        await self.recovery.learn()  # orphans may belong to a network that came back
        return failed
