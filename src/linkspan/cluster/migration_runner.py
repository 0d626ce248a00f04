"""Migration runner: this host's steps in migrations, which ``backends/migration`` describes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping

import msgspec

from linkspan.backends import backend, migration
from linkspan.backends.wireguard.backend import asked
from linkspan.cluster import controller_status, network_plans
from linkspan.cluster.hosts import Hosts
from linkspan.cluster.leases import Leases
from linkspan.cluster.networks import Networks
from linkspan.cluster.peers import Pair, Peers
from linkspan.core.errors import Conflict, LinkspanError, Unavailable
from linkspan.core.event_log import EventLog
from linkspan.core.host_view import HostView
from linkspan.core.model import Network
from linkspan.core.states.host import Key
from linkspan.store.replica import Replica

log = logging.getLogger("linkspan.cluster.migration_runner")

class Progress(msgspec.Struct, frozen=True):
    """Progress of a host; ``sends`` is the backend by which *this* host sends to it now, '' for itself or if none.

    ``alive`` is None if that is unknown, as while the store is away. ``receives`` has the backends of its offers.
    """

    host: str
    alive: bool | None
    receives: list[str]
    sends: str
    switched: bool


class MigrationRunner:
    """This host's part in all migrations."""

    def __init__(
        self,
        replica: Replica,
        hosts: Hosts,
        leases: Leases,
        networks: Networks,
        event_log: EventLog,
        view: Callable[[], HostView],
        peers: Peers,
    ) -> None:
        self._replica = replica
        self._hosts = hosts
        self._leases = leases
        self._networks = networks
        self._event_log = event_log
        self._view = view
        self._peers = peers

    async def begin(self, name: str, way: str, options: Mapping[str, str]) -> None:
        """Write the record of a migration's start or reversal. Raises LinkspanError if this host could not end it."""
        network, view = self._networks.get(name), self._view()
        here = self._hosts.here.underlay
        if here is None:
            raise Unavailable(
                f"this host has no underlay, by which network {name} could cross hosts",
                "give one: linkspan agent --underlay IFNAME",
            )
        self._replica.require_settled(f"migrate network {name}")
        changed = network_plans.migrated(
            network, way, options, self._networks.every(), here, self._leases.all(name), self._hosts.all().values()
        )
        new = changed.target
        if new is not None:
            controller_status.require(self._replica, new, "migrate network")
            hosts = map(self._hosts.whole, self._hosts.all().values())
            seen = asked(msgspec.structs.replace(view, networks=(changed,)), hosts, self._leases.networks([name]))
            list(backend(new.backend).network(seen, new))
            list(backend(new.backend).host(seen))
            for pair in self._others(name) & self._peers.known.keys():
                list(backend(new.backend).peer(seen, new, migration.expected(new, self._peers.known[pair])))
        if not await self._networks.turn(network, changed):
            raise Conflict(
                f"network {name}, or what it needs for itself, was changed by another host at this moment",
                f"look at `linkspan network show {name}`, and try again",
            )
        text = f"network {name} migrates from {changed.backend} to {way}"
        self._event_log.add("network", text, network=name)

    async def advance(self, stand: Collection[str]) -> None:
        """Take the next step of every migration whose network is in ``stand``: all of its states are in the kernel."""
        for network in self._networks.all():
            if network.migration is None or network.name not in stand or self._hosts.removed():
                continue
            try:
                await self._say(network)
                if not migration.waiting(network, self._leases.all(network.name)):
                    await self._finish(network)
            except LinkspanError as error:
                log.warning("network %s does not migrate further yet: %s", network.name, error.message)

    async def _say(self, network: Network) -> None:
        """Offer the new backend once this host accepts all peers' packets by it.

        Once this host also sends to all peers by it, the offer says so.
        """
        new, move, mine = network.target, network.migration, self._leases.mine(network.name)
        others = self._others(network.name)
        if new is None or move is None or mine is None:
            return
        if any(self._peers.met.get(pair, (0, ""))[0] != move.number for pair in others):
            return
        said = new.backend in mine.endpoints and all(self._peers.met[pair][1] == new.backend for pair in others)
        offer = migration.offer(self._view(), new, move.number if said else 0)
        offers = mine.endpoints | {new.backend: offer}
        await self._leases.claim(network, offers, self._networks.revision(network))

    async def _finish(self, network: Network) -> None:
        new = network.target
        if new is not None and await self._networks.turn(network, new):
            text = f"network {network.name} has migrated from {network.backend} to {new.backend}"
            self._event_log.add("network", text, network=network.name)

    def _others(self, name: str) -> set[Pair]:
        """Return the pairs of the other hosts in a network."""
        known = self._hosts.all()
        hosts = {lease.host for lease in self._leases.all(name)} & known.keys()
        return {(name, host) for host in hosts - {self._hosts.here.id}}

    def not_switched(self, network: Network) -> list[str]:
        """Return the names of the hosts that a migration waits for, sorted."""
        hosts = migration.lagging(network, self._leases.all(network.name)) if network.migration else ()
        return sorted(self._hosts.name(host) for host in hosts)

    def progress(self, network: Network) -> list[Progress]:
        """Return the progress of each host, in the order of names; none if the network does not migrate."""
        if network.migration is None:
            return []
        leases = self._leases.all(network.name)
        behind = migration.waiting(network, leases)
        found = [
            Progress(
                host=self._hosts.name(lease.host),
                alive=self._hosts.lives(lease.host),
                receives=sorted(lease.endpoints),
                sends=self._peers.met.get((network.name, lease.host), (0, ""))[1],
                switched=lease.host not in behind,
            )
            for lease in leases
        ]
        return sorted(found, key=lambda one: one.host)

    def reasons(self) -> dict[Key, str]:
        """Return why additional states exist while networks migrate, by key."""
        view = self._view()
        found: dict[Key, str] = {}
        for network in self._networks.all():
            peers = [peer for (name, _), peer in self._peers.known.items() if name == network.name]
            found |= migration.reasons(view, network, peers)
        return found
