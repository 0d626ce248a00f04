"""Store in etcd v3, for a cluster of machines, through etcd's JSON gateway.

Every call is a transaction that first compares the cluster's id, a key beside the records. So linkspan never writes
into another cluster's store, and never counts a record as lost because it is missing there. If the id is gone (an
emptied store), the first host that knows it puts it back.

Etcd may have executed a call that failed at one endpoint before the next one is asked. So puts and deletes may happen
twice. If a condition then fails, the records show whether this call wrote them: they are exactly what it put.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
import uuid
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import NoReturn

from linkspan.core.contracts import JOIN, PAGE, PROOF_SECONDS, Batch, Page, Record
from linkspan.core.errors import NotFound, Unavailable
from linkspan.core.store_url import OWN_CLIENTS, OWN_PEERS, OWN_SIGNER, EtcdUrl, etcd_parts
from linkspan.core.supervise import ended, until_whole, woken
from linkspan.store.etcd_gateway import Gateway, Refused, Stream
from linkspan.store.etcd_lease import TRY, StandingLease
from linkspan.store.etcd_wire import (
    MEMBERS_OWN,
    Event,
    Grant,
    Header,
    Json,
    KeyValue,
    Members,
    Range,
    Status,
    Txn,
    Watch,
    WatchLine,
    after,
    decode,
    has_revision,
    has_value,
    lease_of,
    prefix_range,
    puts_and_deletes,
    range_at,
    range_of,
    ranges_beside,
)
from linkspan.store.request import Request
from linkspan.store.table import refuse_revision

Records = list[Record]  # inside the class, `list` is a method

MEMBERS_SECONDS = 1.0
"""Seconds for etcd's list of its members: an agent's start waits for it."""

PEER_PORT = 2380
"""etcd's default for --listen-peer-urls."""

LARGEST = 4 * PAGE
"""Records of one answer while each one before has come within PROMPT seconds. With each answer etcd counts all records
that are still to come: in pages of 4,000 a listing of 100,000 costs it half of the processor time as in pages of 1,000.
To decode such an answer blocks the event loop four times as long as one of PAGE."""
PROMPT = 0.5
"""Seconds: over a slow link a large answer would not come within the gateway's time."""

SEEN = 8
"""Last changes that a watch remembers: a restored store cannot have the same ones at the same revisions by chance."""

ASKED = -1
"""The watch id in etcd's answer to a progress request. Before etcd 3.4.25 and 3.5.8 such an answer may come before
changes of the revision that it names (etcd issue 15220). So it only proves that the watch lives. The revision at which
a watch begins again comes from changes, and from progress that etcd reports unasked."""

QUIET_SECONDS = 1.5
"""Seconds for the answer to a progress request. Then the watch is opened again, at any member that answers: a
connection from an address that the host has lost is silent, and never ends."""

PACE = 10
"""Most times a second that a watch is read, while changes come without a pause: a change waits a tenth of a second."""
PLENTY = 1 << 16
"""Bytes of one reading that show that more is waiting: aiohttp holds 128 KiB (3.9) or 512 KiB before it stops etcd."""

RETRY_SECONDS = (0.05, 2.0)
"""The first and the longest pause before a watch is opened again."""


class EtcdStore:
    """Records by key, such as ``networks/demo``, under a prefix of an etcd cluster."""

    def __init__(self, url: str, cluster: str = "") -> None:
        """Parse the URL, without a call to etcd. Raises Invalid if it cannot be parsed.

        ``cluster`` is the id that a new store gets and an existing one must have ('': any).
        """
        self._gateway = Gateway(etcd_parts(url))
        self.cluster = cluster
        """The cluster's id; if it was not given, '' until etcd has answered once."""
        self._standing = StandingLease(self._gateway)
        self._cluster_key = f"{self.url.prefix}.cluster"
        self._meeting = asyncio.Lock()
        self._met = False
        self._closing = asyncio.Event()

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
        answer, _ = await self._guarded([], [range_of(self.url.prefix + key)])
        return next((self._record(each) for each in answer.range(0).kvs), None)

    async def list(self, prefix: str, beside: str = "") -> tuple[list[Record], int]:
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
                    found += self._records(page)
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
                    yield self._records(page), revision
                    keys = after(keys, page)
            except Refused as error:
                if not error.compacted:  # between two pages: the rest is of a later moment
                    raise
            else:
                return

    async def _pages(self, ranges: Sequence[Json]) -> AsyncIterator[tuple[Range, int]]:
        """Yield the answers about ranges of keys, all of one revision; while one is used, the next is on its way."""
        begun = time.monotonic()
        answer, _ = await self._guarded([], [{"request_range": {**ranges[0], "limit": PAGE}}])
        page, revision, took = answer.range(0), answer.header.revision, time.monotonic() - begun
        while left := [after(ranges[0], page), *ranges[1:]] if page.more else ranges[1:]:
            coming = asyncio.create_task(
                self._page({**left[0], "revision": revision}, LARGEST if took < PROMPT else PAGE)
            )
            try:
                yield page, revision
                page, seconds = await coming
            finally:
                await ended(coming)
            ranges, took = left, max(took, seconds)
        yield page, revision

    async def _page(self, keys: Json, most: int) -> tuple[Range, float]:
        """Return the answer about the first records of a range of keys, and how many seconds it took.

        These are ``most`` records, or PAGE if so many do not come in time: they may be larger than those before.
        """
        begun = time.monotonic()
        try:
            answer = await self._gateway.ask("/v3/kv/range", {**keys, "limit": most}, Range)
        except Unavailable:
            if most == PAGE:
                raise
            answer = await self._gateway.ask("/v3/kv/range", {**keys, "limit": PAGE}, Range)
        return answer, time.monotonic() - begun

    def _records(self, page: Range) -> Records:
        cluster = self._cluster_key.encode()
        return [self._record(each) for each in page.kvs if each.key != cluster]

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
        try:
            return await self._carry_out(request, await self._standing.granted())
        except Refused as error:
            if not error.missing:
                raise
        self._standing.forget()  # the lease has ended, and no ``keep`` has noticed
        return await self._carry_out(request, await self._standing.granted())

    async def _carry_out(self, request: Request, lease: str) -> int:
        puts, deletes, prefix = request.puts, request.deletes, self.url.prefix
        operations = puts_and_deletes(
            {prefix + key: value for key, value in puts.items()}, [prefix + key for key in deletes], lease
        )
        conditions = [has_revision(prefix + key, revision) for key, revision in request.conditions.items()]
        answer, unsure = await self._guarded(conditions, operations, TRY if request.standing else 0)
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
            found = await self._gateway.ask("/v3/maintenance/status", {}, Status)
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
        answer, _ = await self._guarded([], [range_of(self.url.prefix + key) for key in puts])
        found = [each for number in range(len(puts)) for each in answer.range(number).kvs]
        same = [each.value for each in found] == [bytes(value) for value in puts.values()]
        revisions = {each.mod_revision for each in found}
        return revisions.pop() if same and len(revisions) == 1 else 0

    async def watch(self, prefix: str, revision: int) -> AsyncIterator[Batch]:
        """Yield the changes after ``revision``, each key once in a batch; a lost connection is opened again.

        After PROOF_SECONDS without a message the agent sends a progress request on the watch's own connection. That
        costs etcd no raft entry and no revision. The answer proves that the watch lives: it becomes an empty batch.
        """
        place = Place(self.url.prefix + prefix, revision)
        shortest, longest = RETRY_SECONDS
        pause = shortest
        while not self._closing.is_set():
            told = False
            # Other calls report what is wrong; the watch continues once etcd answers again.
            with contextlib.suppress(Unavailable):
                async with contextlib.aclosing(self._follow(place)) as batches:
                    async for batch in batches:
                        told, pause = True, shortest
                        yield batch
                if told:  # the member fell silent; another one may answer
                    continue
            # Many hosts lose their connections at once, and should not all come back at once.
            await woken(self._closing, pause * random.uniform(0.5, 1))  # noqa: S311 - it spreads, and hides nothing
            pause = min(pause * 2, longest)

    async def _follow(self, place: Place) -> AsyncGenerator[Batch, None]:
        """Watch until the connection is lost or silent. Raises NotFound if changes were missed."""
        answer, _ = await self._guarded([], [])
        place.check(answer.header, self._gateway.endpoint)
        await self._require_seen(place)
        endpoint = self._gateway.endpoint
        request = {
            **prefix_range(place.prefix),
            "start_revision": place.revision + 1,
            "progress_notify": True,
            # A watch that is behind gets up to 1,000 revisions in one message: etcd would be silent for seconds first.
            "fragment": True,
        }
        rest: tuple[Event, ...] = ()
        with contextlib.closing(
            await self._gateway.stream(endpoint, "/v3/watch", {"create_request": request})
        ) as stream:
            pace = Pace()
            while (line := await self._first(stream)) is not None:
                lines = (line, *stream.waiting())
                messages, wrong = self._messages(lines, endpoint)
                if changed := [message for message in messages if message.events]:
                    events = (*rest, *(event for message in changed for event in message.events))
                    last = events[-1].kv.mod_revision if changed[-1].fragment else 0
                    # A revision counts once it is complete: a watch that is opened again begins after it.
                    events, rest = _parted(events, last)
                    if events:
                        batch = self._batch(events)
                        place.saw(events)
                        if batch.puts or batch.deletes:
                            yield batch
                for message in messages:
                    if message.compact_revision:
                        refuse_revision(f"etcd {endpoint}", place.revision, message.compact_revision, 1 << 63)
                    if message.canceled:
                        raise Unavailable(f"store etcd {endpoint}: watch ended: {message.cancel_reason}")
                    if message.events or message.created:  # the latter has the present revision, before past changes
                        continue
                    if message.watch_id != ASKED:
                        place.progress(message.header)
                    yield Batch(place.revision)
                if wrong is not None:
                    raise wrong
                await asyncio.sleep(pace.rest(asyncio.get_running_loop().time(), sum(map(len, lines))))

    async def _require_seen(self, place: Place) -> None:
        """Raise NotFound if the last changes that the watch saw are not what this etcd had at their revisions.

        Other hosts' writes may bring a restored store to the watch's revision again before the watch reconnects: then
        the revision alone shows nothing. All of it is one request, because every host asks this when etcd is back.
        """
        seen = [*place.seen]
        while seen:
            ranges = [range_at(event.kv.key, event.kv.mod_revision) for event in seen]
            try:
                answer = await self._gateway.ask("/v3/kv/txn", {"success": ranges}, Txn)
            except Refused as error:
                if not error.compacted:
                    raise
                del seen[0]  # the oldest one: its history is gone, so it cannot be compared
                continue
            for number, event in enumerate(seen):
                had = next((each.mod_revision for each in answer.range(number).kvs), 0)
                if had != (event.kv.mod_revision if event.type == "PUT" else 0):
                    place.refuse(self._gateway.endpoint)
            return

    async def _first(self, stream: Stream) -> bytes | None:
        """Return the next line of a watch; None if it was quiet, and did not answer a progress request either."""
        try:
            return await _line(stream, until_whole(PROOF_SECONDS))
        except TimeoutError:
            stream.send({"progress_request": {}})
            while True:
                received = stream.received
                try:
                    return await _line(stream, QUIET_SECONDS)
                except TimeoutError:
                    if stream.received == received:  # else a long message is arriving, slowly
                        return None

    def _messages(self, lines: Sequence[bytes], endpoint: str) -> tuple[Sequence[Watch], Unavailable | None]:
        """Return the messages up to the first line that is none, and why that is none: what came before it counts."""
        found = []
        for line in lines:
            try:
                found.append(self._message(line, endpoint))
            except Unavailable as error:
                return found, error
        return found, None

    def _message(self, line: bytes, endpoint: str) -> Watch:
        told = decode(line, WatchLine)
        if told.result is None:
            why = told.error.message if told.error else line[:200].decode(errors="replace")
            raise Unavailable(f"store etcd {endpoint}: watch ended: {why}")
        return told.result

    def _batch(self, events: Sequence[Event]) -> Batch:
        """Return the last change of each key as one batch."""
        last = {event.kv.key: event for event in events}
        last.pop(self._cluster_key.encode(), None)
        changes = sorted(last.values(), key=lambda event: event.kv.mod_revision)
        return Batch(
            max((event.kv.mod_revision for event in changes), default=0),
            tuple(self._record(event.kv) for event in changes if event.type == "PUT"),
            tuple(self._record(event.kv).key for event in changes if event.type == "DELETE"),
        )

    def _record(self, found: KeyValue) -> Record:
        # A key that is not UTF-8 is not linkspan's; the replica skips it and names it.
        key = found.key.decode(errors="replace").removeprefix(self.url.prefix)
        return Record(key, found.value, found.mod_revision)

    async def _guarded(
        self, conditions: Sequence[Json], operations: Sequence[Json], seconds: float = 0
    ) -> tuple[Txn, bool]:
        """Carry out a transaction if the store is this cluster's; return also whether a failed try may have done so.

        Each endpoint gets ``seconds`` (0: the gateway's own time). Raises Unavailable if the store is another
        cluster's.
        """
        await self._meet()
        body = {
            "compare": [has_value(self._cluster_key, self.cluster), *conditions],
            "success": list(operations),
            "failure": [range_of(self._cluster_key)],
        }
        for _ in range(3):
            text, unsure = await self._gateway.call("/v3/kv/txn", body, seconds)
            answer = decode(text, Txn)
            if answer.succeeded:
                return answer, unsure
            if found := answer.range(0).kvs:
                self._refuse_other(found[0])
                return answer, unsure
            await self._name(self.cluster)
        raise Unavailable(f"store etcd {self._gateway.endpoint}: {self._cluster_key} is deleted again and again")

    async def _meet(self) -> None:
        """Learn the cluster's id, or give the store one, the first time that etcd answers."""
        if self._met:
            return
        async with self._meeting:
            if not self._met:
                read = {"key": self._cluster_key.encode()}
                found = await self._gateway.ask("/v3/kv/range", read, Range)
                if not found.kvs:  # read first: a full etcd refuses every put, even if the id exists
                    await self._name(self.cluster or uuid.uuid4().hex)
                    found = await self._gateway.ask("/v3/kv/range", read, Range)
                if not found.kvs:
                    raise Unavailable(f"store etcd {self._gateway.endpoint}: {self._cluster_key} was deleted")
                self.cluster = self.cluster or found.kvs[0].value.decode(errors="replace")
                self._refuse_other(found.kvs[0])
                self._met = True

    async def _name(self, cluster: str) -> None:
        """Give the store its cluster id, unless it has one."""
        put = puts_and_deletes({self._cluster_key: cluster.encode()}, [], "")
        body = {"compare": [has_revision(self._cluster_key, 0)], "success": put}
        await self._gateway.call("/v3/kv/txn", body)

    def _refuse_other(self, found: KeyValue) -> None:
        if found.value != self.cluster.encode():
            raise Unavailable(
                f"store etcd {self._gateway.endpoint}: {self.url.prefix} is cluster "
                f"{found.value.decode(errors='replace')}'s, and this host belongs to {self.cluster}",
                f"point `store` at the cluster's own etcd and prefix; {JOIN}; nothing was read or written",
            )

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


def _parted(events: tuple[Event, ...], revision: int) -> tuple[tuple[Event, ...], tuple[Event, ...]]:
    """Return the events of all other revisions, and those of this one."""
    others = tuple(event for event in events if event.kv.mod_revision != revision)
    return others, events[len(others) :]


async def _line(stream: Stream, seconds: float) -> bytes:
    """Return the next line. Raises TimeoutError if none comes."""
    async with asyncio.timeout(seconds):
        return await stream.next()


class Pace:
    """Lets a watch be read at most PACE times a second, of which up to PACE may come at once.

    So single changes pass at once, and what many hosts write without a pause is read together: each turn of the loop
    and all that follows changes cost more than the changes. A reading of PLENTY or more does not wait: the rest of what
    has come is not held back.
    """

    def __init__(self) -> None:
        self._due = float("-inf")

    def rest(self, now: float, read: int) -> float:
        """Return how many seconds the next reading must wait.

        One of ``read`` bytes was done just ``now`` (the loop's time).
        """
        if read >= PLENTY:
            return 0.0
        self._due = max(self._due + 1 / PACE, now - 1)
        return max(self._due - now, 0.0)


class Place:
    """Position of a watch: what it has seen, of which etcd cluster and of which term."""

    def __init__(self, prefix: str, revision: int) -> None:
        self.prefix = prefix
        self.revision = revision
        self.seen: deque[Event] = deque(maxlen=SEEN)
        """The last changes: they show that the store is still the same one."""
        self._etcd = ""
        self._term = 0

    def check(self, header: Header, endpoint: str) -> None:
        """Raise NotFound if this is another etcd, or if its revision or term is lower than the watch has seen.

        The header must come from a linearizable read: a member that lags behind may have a lower revision for a moment.
        """
        refuse_revision(f"etcd {endpoint}", self.revision, 0, header.revision)
        etcd, self._etcd = self._etcd, header.cluster_id
        term, self._term = self._term, header.raft_term
        if (etcd and etcd != header.cluster_id) or header.raft_term < term:
            self.refuse(endpoint)

    def refuse(self, endpoint: str) -> NoReturn:
        """Raise NotFound, which says that the store was restored or replaced."""
        raise NotFound(
            f"store etcd {endpoint}: it is another one now, restored from a backup or set up again",
            "list the records again; what is missing must be put back",
        )

    def saw(self, events: Sequence[Event]) -> None:
        """Record the changes that the watch reported."""
        self.revision = max(event.kv.mod_revision for event in events)
        self.seen.extend(events)

    def progress(self, header: Header) -> None:
        """Record that there were no further changes up to the header's revision."""
        self.revision = max(self.revision, header.revision)
