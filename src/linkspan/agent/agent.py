"""The agent of one host: composes its parts and keeps the host up to date.

Start: lock the state folder, open store and journal, take over what exists on the machine, resync (which
removes what no record wants), drain the queue of DELs, serve, print ``ready``. SIGTERM stops the agent in
order. Everything in the kernel stays.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from pathlib import Path

from linkspan import __version__
from linkspan.agent import locks
from linkspan.agent.bgp_sessions import Peerings
from linkspan.agent.cluster_trace import Tracer
from linkspan.agent.forwarding import Forwarding
from linkspan.agent.founding import Founding, Restart
from linkspan.agent.healer import Healer
from linkspan.agent.host_identity import host_id, keep
from linkspan.agent.ipsec_sessions import Associating
from linkspan.agent.metrics import Metrics
from linkspan.agent.network_changes import NetworkChanges
from linkspan.agent.peer_survey import Survey
from linkspan.agent.plans import Plans
from linkspan.backends import backend
from linkspan.backends.wireguard.backend import asked, serves
from linkspan.cluster import bootstrap
from linkspan.cluster.allocator import Allocator
from linkspan.cluster.allowances import Allowances
from linkspan.cluster.conflicts import Disputes
from linkspan.cluster.control_plane import ControlPlane
from linkspan.cluster.endpoint_records import Published
from linkspan.cluster.exact_addresses import Holdings
from linkspan.cluster.hosts import Hosts
from linkspan.cluster.interest import Interest
from linkspan.cluster.leases import Leases
from linkspan.cluster.liveness import Silence
from linkspan.cluster.membership import Cluster
from linkspan.cluster.networks import Networks
from linkspan.cluster.own_record import OwnRecord
from linkspan.cluster.participation import Participation
from linkspan.cluster.peer_ping import Probes
from linkspan.cluster.questions import Ask, Question, Told, Well
from linkspan.cluster.remote_endpoints import RemoteEndpoints
from linkspan.cluster.reservations import Reservations
from linkspan.cluster.shared_states import learning
from linkspan.core import namesakes
from linkspan.core.config import CONFIG_FILE, Config
from linkspan.core.contracts import Store
from linkspan.core.errors import Invalid, LinkspanError, Unavailable
from linkspan.core.event_log import Happenings
from linkspan.core.model import (
    AttachRequest,
    Endpoint,
    Facts,
    Host,
    HostView,
    Network,
)
from linkspan.core.ports import PortTable
from linkspan.core.states.host import Key
from linkspan.core.store_url import told
from linkspan.diagnose.doctor.peer_probe import Probe
from linkspan.dns.service import Naming
from linkspan.endpoints import attach, check, detach, rename
from linkspan.endpoints.host_listeners import HostListeners
from linkspan.endpoints.journal import Journal
from linkspan.endpoints.orphans import Orphans
from linkspan.endpoints.reaper import Reaper
from linkspan.endpoints.recovery import Recovery
from linkspan.endpoints.registry import Identity, Registry
from linkspan.endpoints.update import follow_mtus, follow_pools, stranded
from linkspan.kernel.probe import underlay
from linkspan.kernel.worker import Worker
from linkspan.runtimes import runtimes
from linkspan.store import upkeep
from linkspan.store.contact import STALE
from linkspan.store.factory import maintenance, open_store, own_cluster
from linkspan.store.replica import Replica
from linkspan.store.snapshot import SNAPSHOT, remembered
from linkspan.store.upkeep import Upkeep

EVENTS = "events.jsonl"
log = logging.getLogger("linkspan.agent.agent")

Waiting = Callable[["Agent"], contextlib.AbstractAsyncContextManager[None]]


class Agent:
    """All operations of a host's agent. The API and the runtimes' wire formats are thin layers over it."""

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
        self.happenings = Happenings(Path(config.state_dir) / EVENTS)
        self.metrics = Metrics()
        self.worker = Worker()
        self.host_name = config.host_id or socket.gethostname()
        self._facts = Facts()
        self.plans = Plans(self.worker, self.view, self.config)
        self.founding = Founding(config, file, restart)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start, and stop in order at the end. Raises Conflict if another agent uses the state folder."""
        state_dir = Path(self.config.state_dir)
        with locks.state_folder(state_dir), locks.network_namespace():
            await self.founding.cleared(self.config.host_id)
            identity, news = host_id(state_dir, self.config.host_id, shared=bool(self.config.store))
            host = Host(id=identity, name=self.host_name, version=__version__)
            with contextlib.closing(
                Journal(state_dir / "journal.db", cooldown=self.config.cooldown)
            ) as self.journal:
                try:
                    async with contextlib.AsyncExitStack() as parts:
                        self.happenings.read()
                        parts.callback(self.happenings.close)
                        self.happenings.add("agent", f"the agent started, version {__version__}")
                        parts.push_async_callback(self.worker.stop)
                        await self.worker.start(state_dir)
                        await parts.enter_async_context(self.founding.running(identity))
                        moves = self.founding.moves()  # then the snapshot is the own store's, and goes with it
                        cluster, joins = ("", "") if moves else self._known_cluster()
                        new = moves or bool(joins) or not (state_dir / SNAPSHOT).exists()
                        store = open_store(self.config.store, state_dir, cluster)
                        await self._join(host, store, new, parts)
                        await self.cluster.presence.refuse_second()  # before anything is written
                        for words in filter(None, (news, joins)):
                            self._tell(words)
                        if not self.config.host_id:
                            keep(state_dir, identity)
                        await self.replica.accepted()
                        if new:
                            self._tell_first()
                            await self.cluster.come_back()
                        # The last agent's lease ends within seconds, and to take over may take longer.
                        parts.push_async_callback(self.cluster.presence.stop)
                        await self.cluster.presence.start()
                        await self._take_over(parts)
                        await parts.enter_async_context(self.founding.following(self.hosts, store, self._tell))
                        await parts.enter_async_context(self.founding.snapshots(identity))
                        yield
                finally:
                    with contextlib.suppress(Unavailable):  # the disk is full: the log beside the file has all events
                        self.journal.checkpoint()

    def _known_cluster(self) -> tuple[str, str]:
        """Return the id of this host's cluster ("": it may join any) and a message for the operator.

        A host may join any cluster if it is new, or if it was alone, has no network, and now gets a store.
        The store of a host that is alone is a cluster of its own. A cluster without a network has nothing to
        lose. If the snapshot's records are damaged, the cluster may have networks.
        """
        state_dir = Path(self.config.state_dir)
        snapshot = state_dir / SNAPSHOT
        known = remembered(snapshot)
        alone = bool(known.cluster) and known.cluster == own_cluster(state_dir)
        if not self.config.store or not alone or known.networks:
            return known.cluster, ""
        return "", "this host was alone and had no network: it joins the cluster of its store"

    def _tell(self, what: str) -> None:
        """Write a message about this agent's start to the log and to the events."""
        log.warning("%s", what)
        self.happenings.add("agent", what)

    async def _join(self, host: Host, store: Store, new: bool, parts: contextlib.AsyncExitStack) -> None:
        """Make the parts around a replica of the store. Without a snapshot, wait for the store."""
        own_record, endpoints = OwnRecord(host), dict[Identity, Endpoint]()
        silence = self._make_records(own_record, store, endpoints)
        self._make_endpoints(host, endpoints, parts)
        self._make_cluster(own_record, store, silence)
        self._make_watchers(host, endpoints)
        parts.push_async_callback(self.replica.stop)
        await self.founding.moved(self._waiting(self))
        await self.replica.start(new=new)
        await bootstrap.known(self.replica, self._waiting(self))

    def _make_records(self, own_record: OwnRecord, store: Store, endpoints: dict[Identity, Endpoint]) -> Silence:
        """Make the replica and what reads and writes its records; return what knows who is silent."""
        state_dir, id_, shared = Path(self.config.state_dir), own_record.host.id, bool(self.config.store)
        self.remote = RemoteEndpoints(store, id_, self._changed)
        self.replica = Replica(store, state_dir / SNAPSHOT, id_, self._changed, self.remote, provisional=True)
        self.interest = Interest(self.replica, self.remote, endpoints)
        self.published = Published(self.replica, id_, endpoints, self.remote, self.interest, shared=shared)
        self.hosts = Hosts(self.replica, own_record, shared=shared)
        silence = Silence(state_dir, STALE, self.hosts.promised)
        self.leases = Leases(self.replica, self.hosts, self.published.living, silence.overdue)
        self.networks = Networks(self.replica)
        self.allowances = Allowances(self.replica, self.networks)
        self.reservations = Reservations(self.replica, self.networks)
        self.disputes = Disputes(self.replica, self.hosts, self.leases, self.published, self.happenings)
        self.holdings = Holdings(
            self.replica, self.hosts, self.leases, self.networks, endpoints, self._busy, self.published.held
        )
        self.allocator = Allocator(
            self.networks,
            self.reservations,
            self.hosts,
            self.leases,
            self.disputes,
            self.published,
            self.config.cooldown,
            partial(silence.stalled, id_),
            self.holdings.note,
            self._take_part,
        )
        self.participation = Participation(self.hosts, self.leases, self.networks, self.allowances, endpoints)
        return silence

    def _make_endpoints(
        self, host: Host, endpoints: dict[Identity, Endpoint], parts: contextlib.AsyncExitStack
    ) -> None:
        """Make what attaches, detaches and names this host's endpoints, and the runtimes' services."""
        self.naming = Naming(
            self.worker,
            self.networks,
            self.replica,
            self.remote,
            host.id,
            endpoints,
            self.config,
            self.happenings,
        )
        listeners = HostListeners(self.naming.listening)
        parts.callback(listeners.close)
        self.ports = PortTable(listeners)
        self.registry = Registry(
            self.worker,
            self.journal,
            self.networks,
            self.allocator,
            self.ports,
            self.happenings,
            host.name,
            endpoints,
            self.metrics.operation,
        )
        for follower in (self.published, self.naming, self.interest):
            self.registry.subscribe(follower.note)
        self.orphans = Orphans(
            self.worker, self.journal, self.networks, self.allocator, self.happenings, self.config.orphans_after
        )
        self.recovery = Recovery(self.registry, self.published, self.orphans)
        self.reaper = Reaper(self.registry, self.config.reap_after)
        self.services = {
            name: runtime.serve(self, self.registry, self.config) for name, runtime in runtimes().items()
        }

    def _make_cluster(self, own_record: OwnRecord, store: Store, silence: Silence) -> None:
        """Make what follows the other hosts, and what changes the records of all."""
        self.cluster = Cluster(
            self.worker,
            self.replica,
            own_record,
            self.hosts,
            self.leases,
            self.networks,
            self.allocator,
            self.disputes,
            self.participation,
            silence,
            self.happenings,
            self.view,
            self._follow_networks,
            self.plans.drop,
            self._look,
            self.config,
            self._instance(),
        )
        self.network_changes = NetworkChanges(
            self.registry,
            self.replica,
            self.hosts,
            self.allowances,
            self.reservations,
            self.published,
            self.cluster,
            self.view,
            self._look,
        )
        self.upkeep = Upkeep(
            self.replica,
            maintenance(store, upkeep.KEY),
            own_record.host.name,
            self.config.store_upkeep,
            self._tell_of_store,
            self.metrics.upkeep.count,
        )
        self.control = ControlPlane(
            Path(self.config.state_dir),
            self.replica,
            own_record,
            self.hosts,
            self.networks,
            self._addresses,
            self.cluster.reregister,
        )

    def _make_watchers(self, host: Host, endpoints: dict[Identity, Endpoint]) -> None:
        """Make what watches the machine, the peers and the sessions with them, and what asks other agents."""
        machine = self.worker.machine
        self.probes = Probes(self.cluster.peers.known)
        self.peerings = Peerings(self.networks, self.view, machine.namespaces, self.happenings, self.metrics)
        self.associating = Associating(self.worker, self.happenings)
        self.cluster.peers.subscribe(self.associating.soon)
        self.ask = Ask(self.replica, host.id, self._answer)
        self.tracer = Tracer(
            machine.namespaces,
            Path(self.config.state_dir),
            self.hosts,
            self.leases,
            self.networks,
            endpoints,
            self.published,
            self.peerings.learning,
            self.probes.confirmed,
            self.ask,
        )
        self.survey = Survey(machine.namespaces, self.hosts, self.view, self.cluster.peers.known, self.ask)
        self.healer = Healer(
            self.registry,
            self.metrics,
            self.replan,
            self.cluster.look_around,
            self._look_at_programs,
            self.reaper.look,
        )
        self.forwarding = Forwarding(self.worker, self.happenings, self.replan)

    @property
    def facts(self) -> Facts:
        """Return what is known of this machine: a part of ``view`` that costs nothing."""
        return self._facts

    def _tell_of_store(self, what: str) -> None:
        log.warning("%s", what)
        self.happenings.add("store", what)

    async def _addresses(self) -> frozenset[str]:
        return await self.worker.run(underlay.every_address, self.worker.machine.sockets)

    @property
    def unreadable(self) -> set[str]:
        """Return the keys of records that are skipped."""
        return self.replica.unreadable | self.remote.reasons.keys()

    def _busy(self, identity: tuple[str, str]) -> bool:
        """Return whether an attach or a detach is under way."""
        return self.registry.busy(identity) or any(one.waits(identity) for one in self.services.values())

    async def _take_part(self, network: Network) -> None:
        await self.cluster.take_part(network)

    async def _changed(self, keys: frozenset[str]) -> None:
        self.ask.changed(keys)
        if self.published.has_own(keys):
            await self.recovery.learn()  # before records with no known owner are removed
        self.interest.changed(keys)
        self.naming.changed(keys)
        self.published.changed(keys)
        self.holdings.changed(keys)
        await self.cluster.changed(keys)

    async def _answer(self, question: Question) -> Told:
        if isinstance(question, Probe):
            return await self.survey.answer(question)
        if isinstance(question, Well):
            raise Invalid("an agent has no switches: only the controller has")
        return await self.tracer.answer(question)

    async def _take_over(self, parts: contextlib.AsyncExitStack) -> None:
        """Desire what the records and the journal want, apply it, and begin to watch."""
        sysctls, ran_before = self.worker.machine.sysctls, self.journal.witnessed_this_boot()
        if lost := await self.worker.run(sysctls.settle, ran_before=ran_before):
            self._tell(lost)
        await self.worker.run(self.worker.machine.keep_rules)
        self._facts = await self.worker.run(self.worker.machine.facts)
        self.networks.look(await self.worker.run(self.worker.machine.routes), None)
        self.networks.refresh()
        self.allocator.refresh()
        parts.callback(self.registry.retry_forgetting)
        inside = await self.recovery.run(self.replica.listed)
        await self.control.look()  # before any container gets an interface
        parts.push_async_callback(self.cluster.stop)
        await self.cluster.start()
        self._warn_of_namesakes()
        await self.naming.take_over()
        await self.orphans.spare()
        report = await self.worker.run(self.worker.machine.reconciler.resync, None, inside, log=False)
        self.healer.record(report)
        for part in (
            self.healer, self.forwarding, self.probes, self.peerings, self.associating,
        ):  # fmt: skip
            await part.start()
            parts.push_async_callback(part.stop)
        parts.push_async_callback(self.ask.stop)
        # The last one reads other hosts' endpoints, for names above all: what carries packets comes first.
        for follower in (
            self.orphans, self.published, self.holdings, self.naming, self.control, self.upkeep, self.interest,
        ):  # fmt: skip
            follower.start()
            parts.push_async_callback(follower.stop)
        for service in self.services.values():
            await service.start()
            parts.push_async_callback(service.stop)

    def _tell_first(self) -> None:
        """Report that a new host is the first one in its store: a URL without its prefix leads to an empty store."""
        if self.config.store and self.replica.listed and not self.hosts.all():
            where = told(self.config.store)
            self._tell(
                f"this host is the first one in store {where}, and starts a cluster there; if other hosts "
                "should be in it, "
                "compare the store's URL and its prefix with theirs"
            )

    def _warn_of_namesakes(self) -> None:
        """Warn that another host has the same name."""
        if ids := namesakes.shared(self.hosts.names()).get(self.host_name):
            own = f"{self.hosts.here.id} is this host's id"
            self._tell(f"{namesakes.told(self.host_name, ids)}, of which {own}; {namesakes.FIX}")

    def _instance(self) -> str:
        """Return the id of this agent's installation; it differs from that of another agent with the same host id."""
        folder = Path(self.config.state_dir).stat()
        return f"{self.host_name}:{folder.st_dev}:{folder.st_ino}"

    def view(self) -> HostView:
        """Return the view for the backends."""
        held = () if self.cluster.peers.withdrawn else self.leases.serving(self.networks.all())
        here = self.hosts.whole(self.hosts.here)
        closed = self.control.closed()
        seen = HostView(
            self.networks.all(), self.allowances.all(), self._facts, here, held,
            control=closed.places, control_here=closed.here,
        )  # fmt: skip
        if any(map(serves, seen.networks)):
            hosts = map(self.hosts.whole, self.hosts.all().values())
            seen = asked(seen, hosts, self.leases.networks(self.participation.all()))
        return learning(seen, self.leases, self.cluster.peers, self.registry.endpoints.values())

    async def _look(self) -> None:
        """Read facts of the machine from which no new state follows."""
        self._facts = await self.worker.run(self.worker.machine.facts)

    async def _look_at_programs(self) -> None:
        """Look for changes that cause no event (of a key file's mode, for example) if a network needs the program.

        The first network that needs a program looks, too.
        """
        ways = {way.backend for network in self.networks.all() for way in network.ways}
        for kind in {kind for way in ways for kind in backend(way).watches}:
            if await self.worker.run(self.worker.machine.program, kind) != self._facts.program(kind):
                await self.replan()

    async def replan(self) -> None:
        """Read the machine's facts, and apply what follows from them if they changed."""
        facts = await self.worker.run(self.worker.machine.facts)
        if facts != self._facts:
            self._facts = facts
            await self.plans.put()
            await self.plans.drop()
        await self.cluster.look_around()

    async def _follow_networks(self) -> dict[Key, LinkspanError]:
        """Follow the networks of the store, whichever host changed them."""
        for service in self.services.values():
            service.look()
        for identity in stranded(self.registry, self.hosts, self.leases):
            await detach.detach(self.registry, *identity)
        failed = await follow_mtus(self.registry)  # first: the next way may have a smaller MTU
        failed |= await follow_pools(self.registry)
        failed |= await self.plans.put()
        await self.recovery.learn()  # orphans may belong to a network that came back
        return failed

    # Endpoints

    async def attach(self, request: AttachRequest, namespace_fd: int, namespace_path: str) -> Endpoint:
        """Attach a container's namespace."""
        return await attach.attach(self.registry, request, namespace_fd, namespace_path)

    async def detach(self, id: str, ifname: str = "", network: str = "") -> int:
        """Detach a container's interfaces; return how many there were."""
        return await detach.detach(self.registry, id, ifname, network)

    async def recognise(self, container: str, ifname: str = "") -> None:
        """Identify a container whose id the journal lost."""
        await rename.recognise(self.registry, container, ifname)

    def endpoints(self) -> Mapping[tuple[str, str], Endpoint]:
        """Return this host's endpoints by (container id, interface)."""
        return self.registry.endpoints

    def network(self, name: str) -> Network:
        """Return a network. Raises NotFound."""
        return self.networks.get(name)

    def nameservers(self, endpoint: Endpoint) -> tuple[str, ...]:
        """Return the addresses of the DNS server of the container's network."""
        return self.naming.nameservers(endpoint)

    def free(self, network: str) -> int:
        """Return how many addresses a network has left."""
        return self.allocator.free(network)

    async def check(self, endpoint: Endpoint, namespace_fd: int, hardware: str, mtu: int) -> list[str]:
        """Return the differences between an endpoint and what its runtime knows of it."""
        return await check.check(self.registry, endpoint, namespace_fd, hardware, mtu)
