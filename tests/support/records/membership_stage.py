"""A host with its membership of a cluster: a store and a kernel in memory, and no agent around it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from linkspan.cluster.claims import Claims
from linkspan.cluster.key_rotation import KeyRotation
from linkspan.cluster.liveness import Liveness
from linkspan.cluster.membership import Membership
from linkspan.cluster.migration_runner import MigrationRunner
from linkspan.cluster.network_states import NetworkStates
from linkspan.cluster.peers import Peers
from linkspan.cluster.presence import Presence
from linkspan.cluster.registration import Registration
from linkspan.cluster.shared_states import SharedStates
from linkspan.cluster.withdrawal import Withdrawal
from linkspan.core.addresses import Prefix
from linkspan.core.config import Config
from linkspan.core.errors import LinkspanError
from linkspan.core.host_view import HostView
from linkspan.core.model import Network
from linkspan.core.states.host import Key
from linkspan.kernel.io.namespaces import Namespaces
from linkspan.kernel.io.sockets import Sockets
from linkspan.store.contact import STALE
from linkspan.store.memory import Memory
from support.memory_machine import MemoryMachine, worker_of
from support.records.peer_stage import Kernel, underlay_of
from support.records.replicas import Member


class Machine(MemoryMachine):
    """A machine with the routes ``own``."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__()
        self.reconciler = kernel
        self.sockets = Sockets(Namespaces())
        self.own: dict[Prefix, str] = {}

    def routes(self) -> dict[Prefix, str]:
        """Return them."""
        return dict(self.own)


class MembershipStage(Member):
    """Host h1 with an underlay, and its membership."""

    def __init__(self, folder: Path) -> None:
        super().__init__(Memory(), folder, "h1")
        self.planned = 0
        """How often something was followed."""
        self.own_record.change(underlay=underlay_of(1))
        self.kernel = Kernel()
        self.machine = Machine(self.kernel)
        worker, config = worker_of(self.machine), Config(store="etcd://203.0.113.1")
        here, log = (self.hosts, self.leases, self.networks), self.event_log
        taking, put, nothing = (self.conflicts, self.participation), self._put_plans, self._nothing
        self.registration = Registration(worker, self.replica, self.own_record, self.hosts, log, config)
        self.liveness = Liveness(folder, STALE, lambda _host: 0.0)
        self.presence = Presence(self.replica, self.hosts, self.liveness, nothing, "h1:1:1:boot", shared=True)
        self.peers = self.kernel.peers = Peers(worker, *here, *taking, log, self._view)
        self.claims = Claims(*here, *taking, self.blocks, self._view)
        shared = SharedStates(worker, self._view)
        rotation = (self.own_record, self.hosts, log, self._view, put, self.registration.put, nothing)
        self.membership = Membership(
            self.registration,
            self.presence,
            self.networks,
            self.claims,
            NetworkStates(worker, self.networks, self.peers, shared, put, nothing),
            Withdrawal(self.hosts, self.liveness, self.peers, log),
            KeyRotation(worker, *rotation),
            MigrationRunner(self.replica, *here, log, self._view, self.peers),
        )

    def _view(self) -> HostView:
        networks = self.networks.all()
        return HostView(networks, self.allowances.all(), host=self.hosts.here, leases=self.leases.serving(networks))

    async def _put_plans(self) -> Mapping[Key, LinkspanError]:
        self.planned += 1
        return {}

    async def _nothing(self) -> None:
        pass

    async def _changed(self, keys: frozenset[str]) -> None:
        await super()._changed(keys)
        self.presence.changed(keys)
        await self.membership.changed(keys)

    async def _take_part(self, net: Network) -> None:
        await self.membership.take_part(net)
