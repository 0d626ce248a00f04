"""Recovery: takes over the last agent's endpoints at the start.

An endpoint that was in place stays. One that was being attached or detached is not desired, so the first
resync removes what exists of it, and releases its address. Its row stays until then (``finish``): an agent that ends
before, however often, leaves the next one the same to do.

The journal is not the only source (``reconstruction``). Each pair in the kernel without a row in the journal
is an endpoint that the journal lost: it is rebuilt from the store's record, or from the kernel alone. A pair
about which neither has enough is an orphan. If the store is away now, its records are compared when it comes
back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from linkspan.backends import backend
from linkspan.cluster.address_usage import AddressUsage
from linkspan.cluster.endpoint_records import EndpointRecords
from linkspan.core.clock import now
from linkspan.core.desired import Source
from linkspan.core.errors import Conflict, LinkspanError, NotFound
from linkspan.core.model import Endpoint
from linkspan.core.states.host import HOST, Address, NftElement, Route, State, TokenBucket, Veth
from linkspan.endpoints import delivery, reconstruction, rename
from linkspan.endpoints.journal import Row
from linkspan.endpoints.orphans import Orphans
from linkspan.endpoints.reconstruction import Link
from linkspan.endpoints.registry import Identity, Registry

log = logging.getLogger("linkspan.endpoints.recovery")

_STORE, _KERNEL, _ROW = "the store's record", "what the kernel has", "the journal"
_ON_PAIRS = (Address, Route, NftElement, TokenBucket)
"""The kernel's objects of an endpoint on the host, besides its pair."""


class Recovery:
    """Goes through the journal once, and through what the kernel and the store know besides."""

    def __init__(
        self, registry: Registry, blocks: AddressUsage, endpoint_records: EndpointRecords, orphans: Orphans
    ) -> None:
        self._registry = registry
        self._worker = registry.worker
        self._journal = registry.journal
        self._networks = registry.networks
        self._blocks = blocks
        self._ports = registry.ports
        self._event_log = registry.event_log
        self._endpoint_records = endpoint_records
        self._orphans = orphans
        self._done = False
        self._learning = asyncio.Lock()
        self._ending: list[Row] = []
        """The rows of pairs that the first resync is to remove."""
        self.rebuilt = 0
        """How many endpoints the journal did not know at this agent's start."""
        self.doubt = ""
        """Why the journal did not know them, "" if it is the last agent's."""

    async def run(self, listed: bool) -> set[int]:
        """Take over the last agent's endpoints; ``listed`` says whether the store has been listed.

        Returns the namespaces in which objects of ours are or may be.
        """
        self.doubt = self._journal.doubt()
        rows, records = self._journal.rows(), {e.identity: e for e in self._own()}
        links = await self._linked(rows, records)
        gone = await self._take_over(rows, links, records, listed)
        await self._desire(list(self._registry.endpoints.values()))
        for row, _ in gone:
            if row not in self._ending:
                self._registry.forget(row.endpoint)
        for released in self._journal.released():
            self._blocks.cool(released.network, released.address, released.at)
        await self._rebuild(reconstruction.unheld(self._registry.endpoints.values(), links), records.values())
        for row, why in gone:
            self._cool(row.endpoint, why)
        self._journal.witness()
        self._done = True
        await self.learn()  # the store may have been listed meanwhile
        return await self._inhabited(row for row, _ in gone)

    def finish(self) -> None:
        """Drop the rows of pairs that the first resync has removed: a pair without a row would be rebuilt."""
        for row in self._ending:
            self._registry.forget(row.endpoint)

    async def _linked(self, rows: Sequence[Row], records: Mapping[Identity, Endpoint]) -> dict[str, Link]:
        """Return the kernel's objects of endpoints, by pair; keep the rows of pairs that wait for their network."""
        waiting = {row.endpoint.host_ifname: row for row in rows if self._waits(row)}
        settled = [row for row in rows if row.endpoint.host_ifname not in waiting]
        links = await self._worker.run(self._links, settled, records)
        self._orphans.keep_rows({name: row for name, row in waiting.items() if name in links})
        return links

    async def _take_over(
        self, rows: Iterable[Row], links: dict[str, Link], records: Mapping[Identity, Endpoint], listed: bool
    ) -> list[tuple[Row, str]]:
        """Admit the endpoints that exist; return the rows of the others with their reasons.

        ``links`` loses the pairs that the first resync is to remove.
        """
        gone: list[tuple[Row, str]] = []
        standing: list[tuple[Endpoint, Row]] = []
        for row in rows:
            if row.endpoint.host_ifname in self._orphans.rows:
                continue
            link = links.get(row.endpoint.host_ifname)
            if why := await self._why_gone(row, link, listed and row.endpoint.identity not in records):
                gone.append((row, why))
                if not self.doubt and row.boot_id == self._journal.boot_id:
                    self._end(links, row)
                continue
            standing.append((await self._current(row, link, records.get(row.endpoint.identity)), row))
        standing.sort(key=lambda pair: pair[0].host_ifname not in links)  # those that the kernel knows come first
        for endpoint, row in standing:
            try:
                endpoint = self._admit(endpoint, row.attached_ns)
            except LinkspanError as error:
                gone.append((row, error.message))
                if not self.doubt:
                    self._end(links, row)
                continue
            if endpoint != row.endpoint:
                self._journal.attached(endpoint)
        return gone

    def _cool(self, endpoint: Endpoint, why: str) -> None:
        """Give the addresses of an endpoint that is gone to nobody for a while, and write why it is gone."""
        for address in endpoint.prefixes:
            with contextlib.suppress(LinkspanError):
                self._blocks.cool(endpoint.network, address, now())
        what = f"{endpoint.name or endpoint.id} of network {endpoint.network}: {why}"
        self._event_log.add("recover", what, endpoint=endpoint.id)

    async def _inhabited(self, gone: Iterable[Row]) -> set[int]:
        """Return the namespaces of endpoints, and those in which an attach or a detach was under way."""
        inside = {endpoint.netns for endpoint in self._registry.endpoints.values() if endpoint.netns}
        machine = self._worker.machine
        for row in gone:
            halfway = row.phase != "attached" and row.boot_id == self._journal.boot_id
            if halfway and row.endpoint.netns not in inside and await self._worker.run(machine.alive, row.endpoint):
                machine.enter(row.endpoint)
                inside.add(row.endpoint.netns)
        return inside

    async def learn(self) -> None:
        """Compare the store's records and networks with unknown pairs: the store may have been away at the start."""
        if not self._done:
            return
        async with self._learning:  # records and networks may both trigger this at once
            await self._learn()

    async def _learn(self) -> None:
        nameless = {e.host_ifname: e for e in self._registry.endpoints.values() if reconstruction.is_unnamed(e)}
        if not nameless and not self._orphans.links:
            return
        records = {e.host_ifname: e for e in self._own() if e.host_ifname}
        links = await self._worker.run(self._links, (), {}) if nameless.keys() & records.keys() else {}
        for name in nameless.keys() & records.keys() & links.keys():
            if self._agrees(records[name], links[name]):
                named = await self._reached(records[name])
                await rename.rename(self._registry, nameless[name].identity, named)
        told = [record for name, record in records.items() if name in self._orphans.links]
        await self._rebuild(list(self._orphans.links.values()), told)

    def _waits(self, row: Row) -> bool:
        """Return whether a row's pair is an orphan until its network is back; the row then names its container.

        A lost store and snapshot do not mean that the network was deleted; an unusable record does not
        either.
        """
        standing = row.phase == "attached" and row.boot_id == self._journal.boot_id
        return standing and bool(row.endpoint.host_ifname) and self._networks.unknown(row.endpoint.network)

    def _end(self, links: dict[str, Link], row: Row) -> None:
        """Leave a row's pair to the first resync, which removes it."""
        if links.pop(row.endpoint.host_ifname, None) is not None:
            self._ending.append(row)
        self._orphans.ended.add(row.endpoint.host_ifname)

    def _own(self) -> Iterator[Endpoint]:
        """Yield the store's records of this host's endpoints whose networks exist."""
        for record in self._endpoint_records.own():
            if self._networks.has(record):
                yield reconstruction.believed(record, self._networks.get(record.network))

    def _links(self, rows: Iterable[Row], records: Mapping[Identity, Endpoint]) -> dict[str, Link]:
        """Observe the kernel's objects of endpoints (worker thread).

        If the journal has a row for each pair, and no record contradicts, observe only the pairs: to read all
        elements of our sets takes a while.
        """
        reconciler = self._worker.machine.reconciler
        pairs = reconciler.observed((Veth,))
        mine = {row.endpoint.host_ifname: row.endpoint for row in rows}
        differs = any(e.addresses != records.get(e.identity, e).addresses for e in mine.values())
        if not self.doubt and not differs and all(s.name in mine for s in pairs if isinstance(s, Veth)):
            return reconstruction.links(pairs)
        return reconstruction.links([*pairs, *reconciler.observed(_ON_PAIRS)])

    def _agrees(self, endpoint: Endpoint, link: Link) -> bool:
        networks = {network.name: network for network in self._networks.all()}
        return reconstruction.agrees(endpoint, networks.get(endpoint.network), link)

    async def _current(self, row: Row, link: Link | None, record: Endpoint | None) -> Endpoint:
        """Return a row's endpoint as it is now: a row from an older backup differs from the kernel and the store.

        Agents of older releases did not record cookies.
        """
        found = row.endpoint
        if link is not None and record is not None:
            networks = {network.name: network for network in self._networks.all()}
            found = reconstruction.chosen(link, row.endpoint, record, networks) or row.endpoint
        if found is row.endpoint and found.netns_cookie:
            return found
        return await self._reached(found)

    async def _why_gone(self, row: Row, link: Link | None, unpublished: bool) -> str:
        """Return why a row's endpoint is gone, "" if it exists."""
        endpoint = row.endpoint
        if why := self._networks.missing(endpoint):
            return why
        if row.boot_id != self._journal.boot_id:
            return "the machine was restarted"
        if row.phase != "attached":
            return f"the agent ended while the endpoint was {row.phase}"
        if self.doubt and unpublished and link is None and endpoint.host_ifname:
            return f"the journal {self.doubt}, and neither the kernel nor the store knows this endpoint"
        if endpoint.netns and not await self._worker.run(self._worker.machine.alive, endpoint):
            return "its container is gone"
        return ""

    async def _rebuild(self, links: Iterable[Link], records: Iterable[Endpoint]) -> None:
        """Take over pairs that the journal lacks, and endpoints without a pair if the journal is not current."""
        every = list(records)
        told = {record.host_ifname: record for record in every if record.host_ifname}
        by_store = by_kernel = 0
        for link in links:
            found: Endpoint | None
            name, by = link.veth.name, _KERNEL
            orphan, record, row = name in self._orphans.links, told.get(name), self._orphans.rows.get(name)
            if row is not None and self._networks.has(row.endpoint) and self._agrees(row.endpoint, link):
                found, by = await self._reached(row.endpoint), _ROW
            elif record is not None and self._agrees(record, link):
                found, by = await self._reached(record), _STORE
            else:
                found = await self._from_kernel(link)
            if orphan and name not in self._orphans.links:  # its grace time has ended meanwhile
                continue
            if found is None or not await self._adopt(found, by):
                self._orphans.add(link)
            else:
                by_store, by_kernel = by_store + (by == _STORE), by_kernel + (by == _KERNEL)
        if self.doubt and self._journal.witnessed_this_boot():
            for record in every:  # on the host's own network: ports, and nothing in the kernel
                known = record.host_ifname or record.identity in self._registry.endpoints
                if not known:
                    by_store += await self._adopt(record, _STORE)
        if by_store + by_kernel:
            self.rebuilt += by_store + by_kernel
            self.doubt = self.doubt or "did not know them"
            what = f"the journal {self.doubt}: {_count(by_store + by_kernel)} on this host recovered, "
            what += f"{by_store} from the store's records and {by_kernel} from the kernel alone"
            log.warning("%s", what)
            self._event_log.add("recover", what)

    async def _adopt(self, endpoint: Endpoint, by: str) -> bool:
        """Add a lost endpoint that exists to the known ones; return whether that succeeded."""
        try:
            await self._make_way(endpoint)
            self._orphans.unhold(endpoint.host_ifname)  # and reserved again at once: nobody else gets its addresses
            endpoint = self._admit(endpoint, 0)
        except LinkspanError as error:
            log.warning("%s on %s: %s", endpoint.called, endpoint.host_ifname, error.message)
            return False
        self._orphans.forget(endpoint.host_ifname)
        row = self._orphans.rows.pop(endpoint.host_ifname, None)
        self._journal.adopt(endpoint, instead=row.endpoint.identity if row else None)
        await self._desire([endpoint])
        why = "was in an unknown network" if row else "was not in the journal"
        what = f"{endpoint.called} of network {endpoint.network} {why}: recovered from {by}"
        self._event_log.add("recover", what, endpoint=endpoint.id, network=endpoint.network)
        return True

    async def _make_way(self, endpoint: Endpoint) -> None:
        """Detach endpoints of a dead namespace whose inode this endpoint's namespace has now."""
        lookup, (number, cookie) = self._worker.machine.namespaces.lookup, endpoint.namespace
        if not cookie:
            return
        with contextlib.suppress(NotFound):  # no path leads into it (yet)
            fd, _ = await self._worker.run(lookup, number, endpoint.netns_path, cookie)
            try:
                await delivery.make_way(self._registry, number, cookie, fd)
            finally:
                os.close(fd)

    def _admit(self, endpoint: Endpoint, attached_ns: int) -> Endpoint:
        """Add an endpoint to those in place, and return it with its current values.

        Raises LinkspanError, and reserves nothing, if that is impossible.
        """
        network = self._networks.get(endpoint.network)
        for other in self._registry.within(endpoint.netns):
            if other.namespace != endpoint.namespace:
                raise Conflict(f"{other.called} has a namespace with the inode {other.netns}", "attach it again")
        list(backend(network.backend).endpoint(network, endpoint) if endpoint.host_ifname else ())
        self._blocks.restore(endpoint)
        self._ports.restore(endpoint)
        mates = self._registry.beside(endpoint)
        tableless = endpoint.delivered and endpoint.netns and not endpoint.metric  # an older agent gave it no table
        if tableless or any(mate.metric == endpoint.metric for mate in mates):
            endpoint = self._registry.ranked(network, endpoint)
        self._registry.admit(endpoint, attached_ns)
        return endpoint

    async def _desire(self, endpoints: Iterable[Endpoint]) -> None:
        """Desire what endpoints need; all must be known: some states follow from all interfaces of a container."""
        for endpoint in endpoints:
            if not (endpoint.host_ifname or endpoint.ports):
                continue
            states = self._registry.states(self._networks.get(endpoint.network), endpoint)
            if endpoint.host_ifname:  # nobody may know yet where it was delivered
                await self._orphans.hand_over(endpoint.host_ifname, states)
            else:
                await self._worker.run(self._wanted, states)

    def _wanted(self, states: Mapping[Source, Iterable[State]]) -> None:
        """Desire these states (worker thread)."""
        for source, some in states.items():
            self._worker.machine.reconciler.desired.replace(source, some)

    async def _from_kernel(self, link: Link) -> Endpoint | None:
        netns, end = link.identity_of_peer
        ways, inside = await self._worker.run(self._inside, netns) if netns != HOST else ([], [])
        names = [Path(way).name for way in ways]
        every = [network for network in self._networks.all() if not network.on_host]
        metric = reconstruction.metric(inside, end)
        found = reconstruction.from_kernel(link, every, names, self._registry.host, metric)
        return found if found is None else await self._reached(found)

    def _inside(self, netns: int) -> tuple[list[str], list[State]]:
        """Return the paths into a namespace, and our routes in it (worker thread)."""
        machine = self._worker.machine
        try:
            return list(machine.namespaces.ways(netns)), machine.reconciler.observed((Route,), netns)
        except NotFound:
            return [], []

    async def _reached(self, endpoint: Endpoint) -> Endpoint:
        """Return an endpoint with a path of its namespace, which only this host can know."""
        return await self._worker.run(self._worker.machine.reached, endpoint)


def _count(number: int) -> str:
    return "1 endpoint" if number == 1 else f"{number} endpoints"
