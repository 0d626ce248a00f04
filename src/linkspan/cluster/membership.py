"""Membership of this host in the cluster: its liveness, its leases, and its states for each peer.

A change of the store's records wakes ``converge``, which updates only what depends on them: networks, this host's
claims, and the states for the peers concerned.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping

from linkspan.backends import backend, migration
from linkspan.cluster.allocator import Allocator
from linkspan.cluster.conflicts import Conflicts
from linkspan.cluster.hosts import Hosts
from linkspan.cluster.key_rotation import KeyRotation
from linkspan.cluster.leases import Leases
from linkspan.cluster.liveness import Liveness
from linkspan.cluster.migration_runner import MigrationRunner
from linkspan.cluster.networks import Networks
from linkspan.cluster.participation import Participation
from linkspan.cluster.peers import Peers
from linkspan.cluster.presence import Presence
from linkspan.cluster.registration import Registration
from linkspan.cluster.shared_states import SharedStates
from linkspan.core.errors import Conflict, LinkspanError
from linkspan.core.event_log import EventLog
from linkspan.core.model import Host, HostView, Network
from linkspan.core.states.host import Key
from linkspan.core.supervise import lasting, pause, woken
from linkspan.kernel.worker import Worker
from linkspan.store.records import EPHEMERAL
from linkspan.store.replica import Replica

log = logging.getLogger("linkspan.cluster.membership")

RECORDS_EVERY = 2.0
"""Seconds between two checks that this host's own records are in the store."""
AGAIN = 5.0
"""Seconds until unfinished work is retried: a claim that failed (no block left, store away), or an error."""
CATCH_UP = 1.0
"""Seconds that a question waits until this host has followed the records: a helper's reload may take longer."""
LOOK_EVERY = 1.0
"""Seconds between two checks of how long this host has been silent."""

OWN = ("networks/", "allowances/", "hosts/", "gone/hosts/", "settings/")
"""Kinds of records that this host's claims depend on."""
OF_NETWORKS = ("leases/", "blocks/", "addresses/")
"""Kinds of records that concern only hosts that take part in their network."""
View = Callable[[], HostView]


class Membership:
    """Follows the store, and keeps the peers' states reconciled."""

    def __init__(
        self,
        worker: Worker,
        replica: Replica,
        registration: Registration,
        hosts: Hosts,
        leases: Leases,
        networks: Networks,
        allocator: Allocator,
        conflicts: Conflicts,
        participation: Participation,
        liveness: Liveness,
        event_log: EventLog,
        view: View,
        put_plans: Callable[[], Awaitable[Mapping[Key, LinkspanError]]],
        drop_plans: Callable[[], Awaitable[None]],
        keys_changed: Callable[[], Awaitable[None]],
        instance: str,
    ) -> None:
        """``instance`` distinguishes this agent, over restarts, from another one with the same host id."""
        self._worker = worker
        self._replica = replica
        self.registration = registration
        self._hosts = hosts
        self._leases = leases
        self._networks = networks
        self._allocator = allocator
        self._conflicts = conflicts
        self._participation = participation
        self._liveness = liveness
        self._event_log = event_log
        self._view = view
        self._put_plans = put_plans
        self._drop_plans = drop_plans
        self.presence = Presence(replica, hosts, liveness, self._alone_again, instance, shared=hosts.shared)
        self._keys: set[str] = set()
        self._watching: dict[int, dict[Key, LinkspanError]] = {}
        self._wake = asyncio.Event()
        self._converging = asyncio.Lock()
        self._followed = asyncio.Event()
        """Set while this host has followed all records that it knows."""
        self._tasks: list[asyncio.Task[None]] = []
        self.peers = Peers(worker, hosts, leases, networks, conflicts, participation, event_log, view)
        self.migration_runner = MigrationRunner(replica, hosts, leases, networks, event_log, view, self.peers)
        self.unclaimed: dict[str, str] = {}
        self.shared_states = SharedStates(worker, view)
        self.key_rotation = KeyRotation(
            worker, registration.own_record, hosts, event_log, view, put_plans, registration.put, keys_changed
        )

    @property
    def host(self) -> Host:
        """This host's record."""
        return self.registration.host

    @property
    def stalled(self) -> str:
        """Why this host may give out no address now, '' if it may."""
        return self._liveness.stalled(self.host.id)

    async def start(self) -> None:
        """Put this host's record, and follow all records of the store."""
        await self.registration.observe_underlay()
        await self.key_rotation.settle()
        if not self._replica.problem:
            await self.registration.try_to_put()
        self.peers.withdraw(self._liveness.withdrawn(self.host.id))
        self._tasks = [
            lasting("putting this host's records", self._put_records),
            lasting("following the store's records", self._follow),
            lasting("watching this host's silence", self._mind),
        ]
        await self.converge({""})
        self.peers.start()

    async def stop(self) -> None:
        """End all tasks; the records stay, and the liveness record expires."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.peers.stop()

    async def changed(self, keys: frozenset[str]) -> None:
        """Wake ``converge`` for these changed keys; the replica calls this."""
        self.presence.changed(keys)
        told = {key for key in keys if not key.startswith(EPHEMERAL) or self._conflicts.concern(key)}
        if any(key.startswith(OF_NETWORKS) for key in told):
            told -= self._beside(told)
        if told:
            self._keys |= told
            self._followed.clear()
            self._wake.set()

    def _beside(self, keys: set[str]) -> set[str]:
        """Return the keys of records about networks in which this host takes no part, has no peer and lost no lease."""
        concerned = self._participation.all() | {name for name, _ in self.peers.known}
        return {
            key
            for key in keys
            if key.startswith(OF_NETWORKS)
            and key.split("/", 2)[1] not in concerned
            and not key.endswith(f"/{self.host.id}")
        }

    async def _follow(self) -> None:
        while True:
            if not await woken(self._wake, AGAIN):
                if not self._unfinished():
                    continue
                self._keys.add("networks/")
            try:
                await self.converge()
            except LinkspanError as error:
                log.warning("%s", error.message)

    async def _alone_again(self) -> None:
        """Correct records that another agent with this host's id may have written last, such as its leases."""
        await self.changed(frozenset({"networks/"}))

    async def _put_records(self) -> None:
        """Put this host's own record if it differs, and put back records that the store lost."""
        while True:
            await pause(RECORDS_EVERY)
            await self.registration.try_to_put()
            if self._replica.lost:
                await self._replica.put_back()

    async def _mind(self) -> None:
        """Withdraw when this host has been silent for as long as it promised, and come back after contact."""
        while True:
            await pause(LOOK_EVERY)
            if (withdrawn := self._liveness.withdrawn(self.host.id)) != self.peers.withdrawn:
                self.peers.withdraw(withdrawn)
                what = (
                    "withdraws from all networks that cross hosts" if withdrawn else "is back in its networks"
                )
                text = f"host {self.host.name} {what}"
                log.warning("%s", text)
                self._event_log.add("lease", text)
                await self.converge({""})

    async def observe_routes(self) -> bool:
        """Read this host's own routes, and return whether a withheld network may be in force now."""
        machine = self._worker.machine
        return self._networks.look(await self._worker.run(machine.routes), self.host.underlay)

    async def look_around(self) -> None:
        """Follow a change of this host's own addresses or routes: its record, its leases, its states for each peer."""
        moved = await self.registration.observe_underlay()
        excluded = await self.observe_routes()
        if moved:
            self._replica.store.renew()
            try:
                await self.registration.put()
            except LinkspanError as error:
                log.warning("host record: %s", error.message)
        if moved or excluded:
            await self.converge({"networks/"})
        await self.peers.look()
        await self.shared_states.put()

    async def reregister(self) -> None:
        """Write this host's changed record, and apply the states that depend on it."""
        try:
            await self.registration.put()
        except LinkspanError as error:
            log.warning("host record: %s", error.message)
        await self.converge({"hosts/"})

    @contextlib.contextmanager
    def watched(self) -> Iterator[Mapping[Key, LinkspanError]]:
        """Collect the errors of every ``converge`` meanwhile: another task may follow what the caller wrote."""
        refused: dict[Key, LinkspanError] = {}
        self._watching[id(refused)] = refused
        try:
            yield refused
        finally:
            del self._watching[id(refused)]

    async def converge(self, keys: set[str] | None = None) -> dict[Key, LinkspanError]:
        """Follow the keys that changed since the last time, and ``keys`` ('' means everything).

        Returns the errors by the key of the state.
        """
        async with self._converging:
            self._followed.clear()
            self._wake.clear()
            changed, self._keys = self._keys | (keys or set()), set()
            try:
                failed = await self._converged(changed)
            except Exception:  # raised again; the keys are not forgotten, but followed once more
                self._keys |= changed
                raise
            finally:
                if not self._keys:
                    self._followed.set()
            for refused in self._watching.values():
                refused.update(failed)
            return failed

    async def _converged(self, changed: set[str]) -> dict[Key, LinkspanError]:
        failed: dict[Key, LinkspanError] = {}
        everything = "" in changed
        if everything or any(k.startswith("networks/") for k in changed):
            await self.observe_routes()
        if everything or any(k.startswith(("networks/", "hosts/", "allowances/", "reservations/")) for k in changed):
            self._networks.refresh()
        self.registration.adopt_settings()
        if everything or any(k.startswith(OWN) for k in changed):
            self._conflicts.look(self._participation.all())
        elif about := {k.split("/", 2)[1] for k in changed if k.startswith(("leases/", "blocks/"))}:
            self._conflicts.look(self._participation.all(), about)
        # A late write of this host, or somebody else's, may have changed its own lease and blocks. But if a second
        # agent uses this id, both would correct them forever.
        mine = not self.presence.second and any(self._is_own(k) for k in changed)
        if everything or self._conflicts.fresh or mine or any(k.startswith(OWN) for k in changed):
            await self._claim()
            self._conflicts.look(self._participation.all())
        self._allocator.refresh()
        if changed:
            concerned = set(self.peers.concerned(changed, everything))
            networks = {network.name: network for network in self._networks.all()}
            await self.peers.follow(pair for pair in concerned if pair[0] not in networks)
            failed = dict(await self._put_plans())
            await self.peers.follow(concerned)
            failed |= await self.shared_states.put()
            await self._drop_plans()  # last, because peers' states may be on a device that is removed
            unwell = self._worker.machine.reconciler.unwell
            await self._rotate()
            stand = {
                name
                for name, one in networks.items()
                if not failed
                and not unwell(("network", name))
                and not any(unwell(("host", way.backend)) for way in one.ways)
            }
            await self.migration_runner.advance(stand)
        self._conflicts.fresh.clear()
        return failed

    async def rotate(self) -> None:
        """Begin to change this host's key."""
        async with self._converging:
            await self.key_rotation.begin()
        await self.converge({f"hosts/{self.host.id}"})

    async def _rotate(self) -> None:
        try:
            await self.key_rotation.advance()
        except LinkspanError as error:
            log.warning("%s", error.message)

    async def caught_up(self) -> None:
        """Wait until this host has followed all records that it knows, at most CATCH_UP seconds."""
        await woken(self._followed, CATCH_UP)

    def _is_own(self, key: str) -> bool:
        """Return whether a record is a lease of this host, or of a block that it lists."""
        kind, _, rest = key.partition("/")
        network, _, last = rest.partition("/")
        if kind == "blocks":
            lease = self._leases.mine(network)
            return lease is not None and last in lease.prefixes
        return kind == "leases" and last == self.host.id

    def _unfinished(self) -> bool:
        networks = self._networks.all()
        if self._networks.withheld:  # perhaps because of a route, and no event says when that is gone
            return True
        drained = self.host.settings.get("drained")  # its announcements depend on the containers that are left
        changing = self.host.next_keys
        if drained or changing or self.key_rotation.gathering or self.unclaimed or self._keys:
            return True
        if any(network.migration for network in networks):
            return True
        wanted = () if self._hosts.removed() else self._participation.wanted()
        if any(self._leases.mine(name) is None for name in wanted):  # of a container that was found again
            return True
        return self._conflicts.pending or any(self._conflicts.lost_by(one.name, self.host.id) for one in networks)

    async def _claim(self) -> None:
        """Make sure that this host has a lease in every network across hosts in which it takes part."""
        if self._hosts.removed():
            return
        await self._leave()
        taking = self._participation.all()
        for network in self._networks.all():
            if network.name not in taking or not backend(network.backend).crosses_hosts:
                continue
            try:
                await self._claim_in(network)
                self.unclaimed.pop(network.name, None)
            except LinkspanError as error:
                if self.unclaimed.get(network.name) != error.told:
                    log.warning("%s", error.within(f"network {network.name}").told)
                self.unclaimed[network.name] = error.told
        for name in self.unclaimed.keys() - (taking & {network.name for network in self._networks.all()}):
            del self.unclaimed[name]

    async def _claim_in(self, network: Network) -> None:
        await self._conflicts.settle(network)
        mine = self._leases.mine(network.name)
        await self._leases.claim(network, migration.offers(self._view(), network, mine))

    async def take_part(self, network: Network) -> None:
        """Claim a lease in a network for this host's first container in it, and put the states of its peers.

        Raises what ``Leases.claim`` raises.
        """
        if self._hosts.removed():
            raise self._hosts.gone()
        with self._participation.expecting(network.name):
            async with self._converging:
                for last in (False, True):
                    try:
                        if self._leases.mine(network.name) is None:
                            await self._claim_in(network)
                        break
                    except Conflict:  # the network was changed at this moment, perhaps
                        if last:
                            raise
            await self.converge()

    async def _leave(self) -> None:
        try:
            await self._leases.leave(self._networks.all())
        except LinkspanError as error:
            log.warning("claims in deleted networks stay for now: %s", error.message)

    async def migrate(self, name: str, way: str, options: Mapping[str, str]) -> Network:
        """Start the migration of a network to the backend ``way``, or reverse a running one.

        Raises LinkspanError if this host sees that the migration would fail.
        """
        await self.migration_runner.begin(name, way, options)
        await self.converge({"networks/"})
        return self._networks.get(name)
