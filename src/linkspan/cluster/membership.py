"""Membership of this host in the cluster: its record and liveness, its leases, and its states for each peer.

A change of the store's records wakes ``converge``, which follows exactly what changed: networks, this host's
claims, and the peers concerned.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping

from linkspan import SCHEMA, __version__
from linkspan.backends import backend, migration
from linkspan.cluster.allocator import Allocator
from linkspan.cluster.conflicts import Disputes
from linkspan.cluster.key_rotation import Rotating
from linkspan.cluster.leases import Leases
from linkspan.cluster.liveness import Silence
from linkspan.cluster.migration_runner import Migrating
from linkspan.cluster.networks import Networks
from linkspan.cluster.own_record import OwnRecord
from linkspan.cluster.peers import Peers
from linkspan.cluster.presence import Presence
from linkspan.cluster.shared_states import AfterPeers
from linkspan.core.config import Config
from linkspan.core.errors import LinkspanError, NotFound
from linkspan.core.event_log import Happenings
from linkspan.core.model import Host, HostView, Network
from linkspan.core.states.host import Key
from linkspan.core.supervise import lasting, pause, woken
from linkspan.kernel.worker import Worker
from linkspan.store.compare_and_swap import revised
from linkspan.store.replica import EPHEMERAL, Replica

log = logging.getLogger("linkspan.cluster.membership")

RECORDS_EVERY = 2.0
"""Seconds between two looks whether this host's own records are in the store."""
AGAIN = 5.0
"""Seconds until what is not finished is tried again: a claim that failed (no block left, store away), a fault."""
CATCH_UP = 1.0
"""Seconds that a question waits for what is being followed: a reload of a helper may take a while."""
LOOK_EVERY = 1.0
"""Seconds between two looks at how long this host has been silent."""

OWN = ("networks/", "hosts/", "gone/hosts/", "settings/")
"""Kinds of records that this host's claims depend on."""
View = Callable[[], HostView]


class Cluster:
    """Follows the store, and keeps the peers' states reconciled."""

    def __init__(
        self,
        worker: Worker,
        replica: Replica,
        own_record: OwnRecord,
        leases: Leases,
        networks: Networks,
        allocator: Allocator,
        disputes: Disputes,
        silence: Silence,
        happenings: Happenings,
        view: View,
        put_plans: Callable[[], Awaitable[Mapping[Key, LinkspanError]]],
        drop_plans: Callable[[], Awaitable[None]],
        keys_changed: Callable[[], Awaitable[None]],
        config: Config,
        instance: str,
    ) -> None:
        """``instance`` tells this agent, over restarts, from another one with the same host id."""
        self._worker = worker
        self._replica = replica
        self._own = own_record
        self._leases = leases
        self._networks = networks
        self._allocator = allocator
        self._disputes = disputes
        self._silence = silence
        self._happenings = happenings
        self._view = view
        self._put_plans = put_plans
        self._drop_plans = drop_plans
        self._config = config
        self._shared = bool(config.store)
        self.presence = Presence(replica, leases, silence, self._alone_again, instance, shared=self._shared)
        self._keys: set[str] = set()
        self._watching: dict[int, dict[Key, LinkspanError]] = {}
        self._wake = asyncio.Event()
        self._converging = asyncio.Lock()
        self._followed = asyncio.Event()
        """Set while nothing is being followed, or is to be."""
        self._tasks: list[asyncio.Task[None]] = []
        self.peers = Peers(worker, leases, networks, disputes, happenings, view)
        self.astray = ""
        """Why the chosen underlay interface cannot be read, else empty."""
        self.migrating = Migrating(replica, leases, networks, happenings, view, self.peers)
        self.unclaimed: dict[str, str] = {}
        self.after_peers = AfterPeers(worker, view)
        self.rotating = Rotating(worker, own_record, leases, happenings, view, put_plans, self._register, keys_changed)

    @property
    def host(self) -> Host:
        """This host's record."""
        return self._own.host

    @property
    def stalled(self) -> str:
        """Why this host gives no address now, '' where it does."""
        return self._silence.stalled(self.host.id)

    async def start(self) -> None:
        """Say who this host is, and take the whole store's state over."""
        await self._observe_underlay()
        await self.rotating.settle()
        if not self._replica.problem:
            await self._try_to_register()
        self.peers.withdraw(self._silence.withdrawn(self.host.id))
        self._tasks = [
            lasting("putting this host's records", self._put_records),
            lasting("following the store's records", self._follow),
            lasting("minding this host's silence", self._mind),
        ]
        await self.converge({""})
        self.peers.start()

    async def come_back(self) -> None:
        """Join as a new host, where somebody removed one of this id: this host remembers nothing of the cluster.

        Its state folder is new, so an operator has uninstalled it or set it up again. A host that was removed while it
        ran remembers, and stays away.
        """
        if not self._leases.removed():
            return
        try:
            await self._replica.write({f"hosts/{self.host.id}": self.host})
        except LinkspanError as error:
            log.warning("join as a new host: %s", error.message)
            return
        text = f"host {self.host.name} had been removed from the cluster, and joins it as a new one"
        log.info("%s", text)
        self._happenings.add("agent", text)

    async def stop(self) -> None:
        """End what goes on; the records stay, and liveness ends by itself."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.peers.stop()

    async def changed(self, keys: frozenset[str]) -> None:
        """Take note of records that changed (called by the replica)."""
        self.presence.changed(keys)
        told = {key for key in keys if not key.startswith(EPHEMERAL) or self._disputes.concern(key)}
        if told:
            self._keys |= told
            self._followed.clear()
            self._wake.set()

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
        """Repair what another agent with this host's id wrote last: its leases, perhaps."""
        await self.changed(frozenset({"networks/"}))

    async def _put_records(self) -> None:
        """Put this host's records that are missing in the store: its own, and those that the store lost."""
        while True:
            await pause(RECORDS_EVERY)
            await self._try_to_register()
            if self._replica.lost:
                await self._replica.put_back()

    async def _mind(self) -> None:
        """Withdraw when this host has been silent for as long as it promised, and come back after contact."""
        while True:
            await pause(LOOK_EVERY)
            if (withdrawn := self._silence.withdrawn(self.host.id)) != self.peers.withdrawn:
                self.peers.withdraw(withdrawn)
                what = (
                    "withdraws from all networks that cross hosts" if withdrawn else "is back in its networks"
                )
                text = f"host {self.host.name} {what}"
                log.warning("%s", text)
                self._happenings.add("lease", text)
                await self.converge({""})

    async def _try_to_register(self) -> None:
        try:
            await self._register()
        except LinkspanError as error:
            log.debug("host record: %s", error.message)

    async def _register(self) -> None:
        """Put this host's record where it is not what it should be; one that was removed stays away."""
        self._adopt_settings()
        if not self._leases.removed() and self._leases.record(self.host.id) != self.host:
            await revised(self._replica, f"hosts/{self.host.id}", self._adopt_settings)

    def _adopt_settings(self) -> Host:
        """Take over settings that were set from another host, and what holds for all; return this host's record."""
        known = self._leases.record(self.host.id)
        return self._own.change(
            settings=known.settings if known is not None else self.host.settings,
            reads=SCHEMA,
            withdraws=self._replica.settings.reclaim_after if self._shared else 0,
        )

    async def _observe_underlay(self) -> bool:
        """Look at the underlay interface, and return whether it changed; one that is not there may come yet."""
        before, self.astray = self.astray, ""
        try:
            look, config = self._worker.machine.underlay, self._config
            found = await self._worker.run(look, config.underlay, config.advertise)
        except NotFound as error:
            found, self.astray = None, error.told
            if self.astray != before:
                log.warning("%s", self.astray)
        if found == self.host.underlay:
            return False
        self._own.change(underlay=found, version=__version__)
        return True

    async def observe_routes(self) -> bool:
        """Look at this host's own routes, and return whether a network may be in force now that was not."""
        machine = self._worker.machine
        return self._networks.look(await self._worker.run(machine.routes), self.host.underlay)

    async def look_around(self) -> None:
        """Follow a change of this host's own addresses or routes: the record, the leases, the way to each peer."""
        moved = await self._observe_underlay()
        excluded = await self.observe_routes()
        if moved:
            self._replica.store.renew()
            try:
                await self._register()
            except LinkspanError as error:
                log.warning("host record: %s", error.message)
        if moved or excluded:
            await self.converge({"networks/"})
        await self.peers.follow(self.peers.known.keys())
        await self.after_peers.put()

    async def reregister(self) -> None:
        """Write this host's record where it is another now, and put what networks need by it."""
        try:
            await self._register()
        except LinkspanError as error:
            log.warning("host record: %s", error.message)
        await self.converge({"hosts/"})

    @contextlib.contextmanager
    def watched(self) -> Iterator[Mapping[Key, LinkspanError]]:
        """Collect errors meanwhile: the task that writes a record may not be the first to follow it."""
        refused: dict[Key, LinkspanError] = {}
        self._watching[id(refused)] = refused
        try:
            yield refused
        finally:
            del self._watching[id(refused)]

    async def converge(self, keys: set[str] | None = None) -> dict[Key, LinkspanError]:
        """Follow what changed since the last time (and ``keys``; '' is everything); returns what was refused."""
        async with self._converging:
            self._followed.clear()
            self._wake.clear()
            changed, self._keys = self._keys | (keys or set()), set()
            try:
                failed = await self._converged(changed)
            except Exception:  # raised on; what it was about is followed again, not forgotten
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
        self._adopt_settings()
        if everything or any(k.startswith(("leases/", "blocks/", *OWN)) for k in changed):
            self._disputes.look(self._networks.all())
        # Its own lease and blocks, too: a write of this host that came late, or somebody else's, may have made them
        # others. But a second agent that lives by this id would put them right as often: neither would ever cease.
        mine = not self.presence.second and any(self._is_own(k) for k in changed)
        if everything or self._disputes.fresh or mine or any(k.startswith(OWN) for k in changed):
            await self._claim()
            self._disputes.look(self._networks.all())
        self._allocator.refresh()
        if changed:
            concerned = set(self.peers.concerned(changed, everything))
            networks = {network.name: network for network in self._networks.all()}
            await self.peers.follow(pair for pair in concerned if pair[0] not in networks)
            failed = dict(await self._put_plans())
            await self.peers.follow(concerned)
            failed |= await self.after_peers.put()
            await self._drop_plans()  # last: what peers had on a device that goes
            unwell = self._worker.machine.reconciler.unwell
            await self._rotate()
            stand = {
                name
                for name, one in networks.items()
                if not failed
                and not unwell(("network", name))
                and not any(unwell(("host", way.backend)) for way in one.ways)
            }
            await self.migrating.advance(stand)
        self._disputes.fresh.clear()
        return failed

    async def rotate(self) -> None:
        """Begin to change this host's key."""
        async with self._converging:
            await self.rotating.begin()
        await self.converge({f"hosts/{self.host.id}"})

    async def _rotate(self) -> None:
        try:
            await self.rotating.advance()
        except LinkspanError as error:
            log.warning("%s", error.message)

    async def caught_up(self) -> None:
        """Wait until this host has followed all records that it knows of, but not for a store that is away."""
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
        if self._networks.withheld:  # by a route, perhaps, of whose end nobody tells us
            return True
        drained = self.host.settings.get("drained")  # what it announces follows from what is left on it
        changing = self.host.next_keys
        if drained or changing or self.unclaimed or self._keys or any(network.migration for network in networks):
            return True
        return any(self._disputes.lost_by(network.name, self.host.id) for network in networks)

    async def _claim(self) -> None:
        """Make sure of this host's lease in every network that crosses hosts."""
        if self._leases.removed():
            return
        await self._leave()
        for network in self._networks.all():
            way = backend(network.backend)
            if not way.crosses_hosts:
                continue
            try:
                await self._disputes.settle(network)
                mine = self._leases.mine(network.name)
                await self._leases.claim(network, migration.offers(self._view(), network, mine))
                self.unclaimed.pop(network.name, None)
            except LinkspanError as error:
                if self.unclaimed.get(network.name) != error.told:
                    log.warning("%s", error.within(f"network {network.name}").told)
                self.unclaimed[network.name] = error.told
        for name in self.unclaimed.keys() - {network.name for network in self._networks.all()}:
            del self.unclaimed[name]

    async def _leave(self) -> None:
        try:
            await self._leases.leave(self._networks.all())
        except LinkspanError as error:
            log.warning("claims in deleted networks stay for now: %s", error.message)

    async def migrate(self, name: str, way: str, options: Mapping[str, str]) -> Network:
        """Begin to migrate a network, or turn it round. Raises where this host sees that it could not end well."""
        await self.migrating.begin(name, way, options)
        await self.converge({"networks/"})
        return self._networks.get(name)
