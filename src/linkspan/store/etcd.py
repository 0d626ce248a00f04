"""Store in etcd v3, for a cluster of machines, through etcd's JSON gateway.

Etcd may have executed a call that failed at one endpoint before the next one is asked. So puts and deletes may happen
twice. If a condition then fails, the records show whether this call wrote them: they are exactly what it put.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from linkspan.core.errors import Unavailable
from linkspan.core.store_contract import Batch, Page, Record
from linkspan.core.store_url import OWN_CLIENTS, OWN_PEERS, OWN_SIGNER, EtcdUrl, etcd_parts
from linkspan.core.supervise import ended
from linkspan.store.etcd_errors import Refused
from linkspan.store.etcd_gateway import Gateway
from linkspan.store.etcd_guard import ClusterGuard
from linkspan.store.etcd_lease import TRY, StandingLease
from linkspan.store.etcd_page_size import PageSize
from linkspan.store.etcd_watch import EtcdWatch
from linkspan.store.etcd_wire import (
    MEMBERS_OWN,
    Grant,
    Json,
    KeyValue,
    Members,
    Range,
    Status,
    after,
    has_revision,
    lease_of,
    prefix_range,
    puts_and_deletes,
    range_of,
    ranges_beside,
    record_of,
)
from linkspan.store.request import Request

Records = list[Record]  # inside the class, `list` is a method

MEMBERS_SECONDS = 1.0
"""Seconds for etcd's list of its members: an agent's start waits for it."""

SLICE = 500
"""Records of a listing that are taken without a pause of the event loop: about 5 microseconds each."""

PEER_PORT = 2380
"""etcd's default for --listen-peer-urls."""


class EtcdStore:
    """Records by key, such as ``networks/demo``, under a prefix of an etcd cluster."""

    def __init__(self, url: str, cluster: str = "") -> None:
        """Parse the URL, without a call to etcd. Raises Invalid if it cannot be parsed.

        ``cluster`` is the id that a new store gets and an existing one must have ('': any).
        """
        self._gateway = Gateway(etcd_parts(url))
        self._standing = StandingLease(self._gateway)
        self._guard = ClusterGuard(self._gateway, cluster)
        self._closing = asyncio.Event()
        self._watch = EtcdWatch(self._gateway, self._guard, self._closing)

    @property
    def cluster(self) -> str:
        """Return the cluster's id; if it was not given, '' until etcd has answered once."""
        return self._guard.cluster

    @property
    def url(self) -> EtcdUrl:
        """The parts of the URL, with the present endpoints."""
        return self._gateway.url

    @property
    def gateway(self) -> Gateway:
        """The connections, for calls that are not about records."""
        return self._gateway

    async def get(self, key: str) -> Record | None:
        """Return a record, None if there is none."""
        answer, _ = await self._guard.carry_out([], [range_of(self.url.prefix + key)])
        return next((record_of(each, self.url.prefix) for each in answer.range(0).kvs), None)

    async def list(
        self, prefix: str, beside: str = "", each: Callable[[Record], Record] | None = None
    ) -> tuple[list[Record], int]:
        """Return the records whose keys begin with ``prefix``, and not with ``beside``, and the snapshot's revision."""
        ranges = [prefix_range(self.url.prefix + prefix)]
        if beside:
            ranges = ranges_beside(ranges[0], prefix_range(self.url.prefix + beside))
        while True:
            found: Records = []
            revision = 0
            try:
                async for page, at in self._pages(ranges):
                    revision = at
                    async for records in self._sliced(page):
                        found += map(each, records) if each is not None else records
            except Refused as error:
                if not error.compacted:  # a compaction between two pages: begin again
                    raise
            else:
                return found, revision

    async def pages(self, prefix: str) -> AsyncIterator[Page]:
        """Yield the records whose keys begin with ``prefix``, and the revision of each page's snapshot, in parts."""
        keys = prefix_range(self.url.prefix + prefix)
        while True:
            try:
                async for page, revision in self._pages([keys]):
                    yield [record async for some in self._sliced(page) for record in some], revision
                    keys = after(keys, page)
            except Refused as error:
                if not error.compacted:  # between two pages: the rest is of a later moment
                    raise
            else:
                return

    async def _pages(self, ranges: Sequence[Json]) -> AsyncIterator[tuple[Range, int]]:
        """Yield the answers about ranges of keys, all of one revision; while one is used, the next is on its way."""
        size = PageSize()

        async def first(most: int) -> tuple[Range, int]:
            answer, _ = await self._guard.carry_out([], [{"request_range": {**ranges[0], "limit": most}}])
            return answer.range(0), answer.header.revision

        page, revision = await size.fitting(first)
        while left := [after(ranges[0], page), *ranges[1:]] if page.more else ranges[1:]:
            coming = asyncio.create_task(self._page({**left[0], "revision": revision}, size))
            try:
                yield page, revision
                page = await coming
            finally:
                await ended(coming)
            ranges = left
        yield page, revision

    async def _page(self, keys: Json, size: PageSize) -> Range:
        """Return the answer about the first records of a range of keys."""
        return await size.fitting(lambda most: self._gateway.ask("/v3/kv/range", {**keys, "limit": most}, Range))

    async def _sliced(self, page: Range) -> AsyncIterator[Records]:
        """Yield a page's records in slices, and let others run in between: the next page is on its way, too."""
        for start in range(0, len(page.kvs), SLICE):
            if start:
                await asyncio.sleep(0)
            yield self._records(page.kvs[start : start + SLICE])

    def _records(self, found: Sequence[KeyValue]) -> Records:
        cluster = self._guard.key.encode()
        return [record_of(each, self.url.prefix) for each in found if each.key != cluster]

    async def transaction(
        self,
        puts: Mapping[str, bytes],
        deletes: Sequence[str] = (),
        absent: Sequence[str] = (),
        unchanged: Mapping[str, int] | None = None,
        ttl: float = 0,
        standing: bool = False,
    ) -> int:
        """Put and delete all, and return the revision; or change nothing and return 0 if a condition fails.

        Etcd raises a ``ttl`` to its minimum, 2 s by default. All standing records of this connection are tied to one
        etcd lease; a put of them gives each member only TRY seconds.
        """
        request = Request(puts, deletes, absent, unchanged, ttl, standing)
        request.check()
        if not standing:
            lease = (await self._gateway.ask("/v3/lease/grant", lease_of(ttl), Grant)).ID if ttl else ""
            return await self._carry_out(request, lease)
        lease = await self._standing.granted()
        try:
            return await self._carry_out(request, lease)
        except Refused as error:
            if not error.missing:
                raise
        self._standing.forget(lease)  # it has ended, and perhaps no ``keep`` has noticed
        return await self._carry_out(request, await self._standing.granted())

    async def _carry_out(self, request: Request, lease: str) -> int:
        puts, deletes, prefix = request.puts, request.deletes, self.url.prefix
        operations = puts_and_deletes(
            {prefix + key: value for key, value in puts.items()}, [prefix + key for key in deletes], lease
        )
        conditions = [has_revision(prefix + key, revision) for key, revision in request.conditions.items()]
        answer, unsure = await self._guard.carry_out(conditions, operations, TRY if request.standing else 0)
        if answer.succeeded or not unsure or not conditions:
            return answer.header.revision if answer.succeeded else 0
        return await self._was_ours(puts)

    async def keep(self) -> float:
        """Renew the standing lease; return for how many seconds it exists, 0 if there is none (any more)."""
        return await self._standing.keep()

    async def full(self) -> bool:
        """Return whether the alarm NOSPACE is on: until somebody lifts it etcd takes no puts and grants no leases.

        If etcd refuses the question, return False: otherwise no host would ever count as dead.
        """
        try:
            found = await self._gateway.ask("/v3/maintenance/status", {}, Status, TRY)
        except Refused:
            return False
        return any("NOSPACE" in error for error in found.errors)

    async def _was_ours(self, puts: Mapping[str, bytes]) -> int:
        """Return the revision of a transaction whose answer was lost; 0 if what it put is not in the store."""
        if not puts:
            raise Unavailable(
                f"store etcd {self._gateway.endpoint}: the connection broke, and whether the deletes were done "
                "is not known",
                "list the records and try again",
            )
        answer, _ = await self._guard.carry_out([], [range_of(self.url.prefix + key) for key in puts])
        found = [each for number in range(len(puts)) for each in answer.range(number).kvs]
        same = [each.value for each in found] == [bytes(value) for value in puts.values()]
        revisions = {each.mod_revision for each in found}
        return revisions.pop() if same and len(revisions) == 1 else 0

    def watch(self, prefix: str, revision: int) -> AsyncIterator[Batch]:
        """Yield the changes after ``revision``, as ``EtcdWatch.changes`` does."""
        return self._watch.changes(prefix, revision)

    async def services(self) -> tuple[str, ...]:
        """Return HOST:PORT of the endpoints, and of the members' advertised addresses for clients and other members.

        A member may listen on more than it advertises, so etcd's default port for members is always included, and so
        are both ports beside those for clients where linkspan runs etcd itself: that for members, and the signer's.
        """
        hosts = [one.rpartition(":")[::2] for one in self.url.endpoints]
        peers = (f"{host}:{PEER_PORT}" for host, _ in hosts)
        founded = [host for host, port in hosts if port == str(OWN_CLIENTS)]
        own = (f"{host}:{port}" for host in founded for port in (OWN_PEERS, OWN_SIGNER))
        known = (*self.url.endpoints, *peers, *own)
        try:
            async with asyncio.timeout(MEMBERS_SECONDS):
                found = await self._gateway.ask("/v3/cluster/member/list", {}, Members)
        except (Unavailable, TimeoutError):
            return known
        urls = (url for member in found.members for url in (*member.clients, *member.peers))
        told = (url.rpartition("://")[2].rstrip("/") for url in urls)
        return (*known, *(one for one in told if not one.startswith(MEMBERS_OWN)))

    def renew(self) -> None:
        """Reconnect, watches included; running calls end by their own timeout."""
        self._gateway.renew()

    async def close(self) -> None:
        """Close all connections; watches end."""
        self._closing.set()
        self._standing.close()
        await self._gateway.close()
