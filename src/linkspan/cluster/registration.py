"""Registration of this host: its own record in the store, and what it observes of its own underlay and routes."""

from __future__ import annotations

import logging

from linkspan import SCHEMA, __version__
from linkspan.cluster.hosts import Hosts
from linkspan.cluster.networks import Networks
from linkspan.cluster.own_record import OwnRecord
from linkspan.core.config import Config
from linkspan.core.errors import LinkspanError, NotFound
from linkspan.core.event_log import EventLog
from linkspan.core.model import Host
from linkspan.core.supervise import pause
from linkspan.kernel.drivers import bridge_filters
from linkspan.kernel.worker import Worker
from linkspan.store.compare_and_swap import revised
from linkspan.store.replica import Replica

log = logging.getLogger("linkspan.cluster.registration")

RECORDS_EVERY = 2.0
"""Seconds between two checks that this host's own records are in the store."""


class Registration:
    """Keeps this host's record true, and in the store."""

    def __init__(
        self, worker: Worker, replica: Replica, own_record: OwnRecord, hosts: Hosts, event_log: EventLog, config: Config
    ) -> None:
        self.own_record = own_record
        self.astray = ""
        """Why the chosen underlay interface cannot be read, '' if it can."""
        self._worker = worker
        self._replica = replica
        self._hosts = hosts
        self._event_log = event_log
        self._config = config

    @property
    def host(self) -> Host:
        """This host's record."""
        return self.own_record.host

    async def come_back(self) -> None:
        """Join as a new host, if a host with this id was removed. Only a host without a snapshot may call this.

        Its state folder is new, so an operator has uninstalled it or set it up again. A host that was removed
        while it ran has its snapshot, and stays away.
        """
        if not self._hosts.removed():
            return
        try:
            await self._replica.write({f"hosts/{self.host.id}": self.host})
        except LinkspanError as error:
            log.warning("join as a new host: %s", error.message)
            return
        text = f"host {self.host.name} had been removed from the cluster, and joins it as a new one"
        log.info("%s", text)
        self._event_log.add("agent", text)

    async def begin(self) -> None:
        """Put this host's record, unless the store is known to be away."""
        if not self._replica.problem:
            await self.try_to_put()

    async def keep(self) -> None:
        """Put this host's record whenever it differs, and put back records that the store lost, until cancelled."""
        while True:
            await pause(RECORDS_EVERY)
            await self.try_to_put()
            if self._replica.lost:
                await self._replica.put_back()

    async def announce_move(self) -> None:
        """Put the record with the new underlay, by new connections: the local address of open ones may be gone."""
        self._replica.store.renew()
        await self.try_to_put(logging.WARNING)

    async def try_to_put(self, level: int = logging.DEBUG) -> None:
        """Put this host's record as ``put`` does; an error is logged only."""
        try:
            await self.put()
        except LinkspanError as error:
            log.log(level, "host record: %s", error.message)

    async def put(self) -> None:
        """Put this host's record if the store's differs; after a removal of the host it stays away."""
        self.adopt_settings()
        if not self._hosts.removed() and self._hosts.record(self.host.id) != self.host:
            await revised(self._replica, f"hosts/{self.host.id}", self.adopt_settings)

    def adopt_settings(self) -> Host:
        """Adopt settings that were set from another host, the cluster's, and what the kernel can do.

        Return this host's record.
        """
        known = self._hosts.record(self.host.id)
        return self.own_record.change(
            settings=known.settings if known is not None else self.host.settings,
            reads=SCHEMA,
            filters=bridge_filters.available(),
            withdraws=self._replica.settings.reclaim_after if self._config.store else 0,
        )

    async def observe_underlay(self) -> bool:
        """Read the underlay interface, and return whether it changed; a missing interface may still appear."""
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
        self.own_record.change(underlay=found, version=__version__)
        return True

    async def observe_routes(self, networks: Networks) -> bool:
        """Read this host's own routes, and return whether a withheld network may be in force now."""
        return networks.look(await self._worker.run(self._worker.machine.routes), self.host.underlay)
