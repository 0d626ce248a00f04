"""What an agent does at its start with what the last one left.

An endpoint that stood still stands. One that was being attached or detached is not desired, so the first resync
takes away what there is of it, and its address is given back.
"""

from __future__ import annotations

import contextlib

from linkspan.allocator import Allocator
from linkspan.attach import Attacher
from linkspan.errors import LinkspanError
from linkspan.happenings import Happenings
from linkspan.journal import Journal, Row
from linkspan.machine import Worker
from linkspan.model import Endpoint
from linkspan.networks import Networks, now
from linkspan.ports import PortTable


class Recovery:
    """Goes through the journal once, and gives the attacher the endpoints that stand."""

    def __init__(
        self,
        worker: Worker,
        journal: Journal,
        networks: Networks,
        allocator: Allocator,
        ports: PortTable,
        happenings: Happenings,
        attacher: Attacher,
    ) -> None:
        self._worker = worker
        self._journal = journal
        self._networks = networks
        self._allocator = allocator
        self._ports = ports
        self._happenings = happenings
        self._attacher = attacher

    async def run(self) -> set[int]:
        """Take over what the last agent left: endpoints that stand, and those it was killed in the middle of.

        Returns the namespaces in which something of ours is or may be.
        """
        gone: list[tuple[Row, str]] = []
        stood: list[Endpoint] = []
        for row in self._journal.rows():
            if why := await self._why_gone(row):
                gone.append((row, why))
                continue
            endpoint = row.endpoint
            try:
                self._allocator.restore(endpoint)
            except LinkspanError as error:
                gone.append((row, error.message))
                continue
            self._ports.restore(endpoint)
            if endpoint.delivered and endpoint.netns and not endpoint.metric:  # of an agent that gave it no table
                endpoint = self._attacher.ranked(self._networks.get(endpoint.network), endpoint)
            self._attacher.admit(endpoint, row.attached_ns)
            stood.append(endpoint)
        for endpoint in stood:  # all are known: some states follow from a container's interfaces together
            if endpoint.host_ifname:  # where it was delivered to, nobody may know yet
                for source, states in self._attacher.states(self._networks.get(endpoint.network), endpoint).items():
                    await self._worker.run(self._worker.machine.reconciler.desired.replace, source, states)
        for released in self._journal.released():
            self._allocator.cool(released.network, released.address, released.at)
        for row, why in gone:
            self._journal.forget(row.endpoint, now())
            for address in row.endpoint.prefixes:
                with contextlib.suppress(LinkspanError):
                    self._allocator.cool(row.endpoint.network, address, now())
            who = row.endpoint.name or row.endpoint.id
            self._happenings.add(
                "recover", f"{who} of network {row.endpoint.network}: {why}", endpoint=row.endpoint.id
            )
        halfway = [row.endpoint for row, _ in gone if row.phase != "attached" and row.boot_id == self._journal.boot_id]
        for endpoint in halfway:
            self._worker.machine.enter(endpoint)
        return {endpoint.netns for endpoint in (*stood, *halfway) if endpoint.netns}

    async def _why_gone(self, row: Row) -> str:
        """Return why a row's endpoint is not to stand any more, "" where it is."""
        endpoint = row.endpoint
        if not self._networks.has(endpoint):
            return "its network was deleted"
        if row.boot_id != self._journal.boot_id:
            return "the machine was restarted"
        if row.phase != "attached":
            return f"the agent ended while it was {row.phase}"
        if endpoint.netns:
            machine = self._worker.machine
            machine.enter(endpoint)
            if not await self._worker.run(machine.namespaces.alive, endpoint.netns):
                return "its container is gone"
        return ""
