"""Watch of an etcd: the changes after a revision, over lost connections, members that hang, and restored stores."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
from typing import NoReturn

from linkspan.core.clock import loop_time
from linkspan.core.errors import NotFound, Unavailable
from linkspan.core.store_contract import PROOF_SECONDS, Batch
from linkspan.core.supervise import ended, until_whole, woken
from linkspan.store.etcd_errors import Refused
from linkspan.store.etcd_gateway import Gateway
from linkspan.store.etcd_guard import ClusterGuard
from linkspan.store.etcd_stream import Stream
from linkspan.store.etcd_wire import (
    Event,
    Header,
    Txn,
    Watch,
    WatchLine,
    decode,
    prefix_range,
    range_at,
    record_of,
)
from linkspan.store.table import refuse_revision

log = logging.getLogger("linkspan.store.etcd_watch")

SEEN = 8
"""Last changes that a watch remembers: a restored store cannot have the same ones at the same revisions by chance."""

ASKED = -1
"""The watch id in etcd's answer to a progress request. Before etcd 3.4.25 and 3.5.8 such an answer may come before
changes of the revision that it names (etcd issue 15220). So it only proves that the watch lives. The revision at which
a watch begins again comes from changes, and from progress that etcd reports unasked."""

QUIET_SECONDS = 1.5
"""Seconds for the answer to a progress request. Then the watch is opened again, at any member that answers: a
connection from an address that the host has lost is silent, and never ends."""
COMPARE_SECONDS = 10.0
"""Seconds between two comparisons of the watch with the store. A follower whose disk hangs still answers progress
requests, and applies nothing: it reports no change any more. So the store's revision is read through raft, which such a
member cannot answer, and the watch's own member must tell it, too. Such a read is no entry in raft's log."""
LAG_SECONDS, LAG_STEP = 3.0, 0.5
"""Seconds in which it must have told that, and between two progress requests for it. Time does not count in which it
tells more, as one that is behind and catches up, or in which a long message arrives slowly."""
LONGEST_PATIENCE = 16
"""Largest multiple of QUIET_SECONDS that a watch waits. It doubles after each watch that told no change and proved
nothing: an overloaded etcd needs longer until it sends the first of many past changes."""

PACE = 10
"""Most times a second that a watch is read, while changes come without a pause: a change waits a tenth of a second."""
PLENTY = 1 << 16
"""Bytes of one reading that show that more is waiting: aiohttp holds 128 KiB (3.9) or 512 KiB before it stops etcd."""

RETRY_SECONDS = (0.05, 2.0)
"""The first and the longest pause before a watch is opened again."""


class EtcdWatch:
    """Watches of one etcd; all of them end once ``closing`` is set."""

    def __init__(self, gateway: Gateway, guard: ClusterGuard, closing: asyncio.Event) -> None:
        self._gateway = gateway
        self._guard = guard
        self._closing = closing
        self._prefix = gateway.url.prefix

    async def changes(self, prefix: str, revision: int) -> AsyncIterator[Batch]:
        """Yield the changes after ``revision``, each key once in a batch; a lost connection is opened again.

        After PROOF_SECONDS without a message the agent sends a progress request on the watch's own connection. That
        costs etcd no raft entry and no revision. The answer proves that the watch lives: it becomes an empty batch.
        """
        place = Place(self._prefix + prefix, revision)
        shortest, longest = RETRY_SECONDS
        pause, patience = shortest, 1
        while not self._closing.is_set():
            told = False
            # Other calls report what is wrong; the watch continues once etcd answers again.
            with contextlib.suppress(Unavailable):
                async with contextlib.aclosing(self.follow(place, patience * QUIET_SECONDS)) as batches:
                    async for batch in batches:
                        told, pause, patience = True, shortest, 1
                        yield batch
                if told:  # the member fell silent; another one may answer
                    continue
                patience = min(patience * 2, LONGEST_PATIENCE)
            # Many hosts lose their connections at once, and should not all come back at once.
            await woken(self._closing, pause * random.uniform(0.5, 1))  # noqa: S311 - it spreads, and hides nothing
            pause = min(pause * 2, longest)

    async def follow(self, place: Place, quiet: float) -> AsyncGenerator[Batch, None]:
        """Watch until the connection is lost, or is silent for ``quiet`` seconds after a progress request.

        Raises NotFound if changes were missed.
        """
        answer, _ = await self._guard.carry_out([], [])
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
        stream = await self._gateway.stream(endpoint, "/v3/watch", {"create_request": request})
        async with self._compared(stream, place):
            pace = Pace()
            while (line := await self._first(stream, quiet)) is not None:
                lines = (line, *stream.waiting())
                messages, wrong = self._messages(lines, endpoint)
                place.handle(message.header.revision for message in messages)
                if changed := [message for message in messages if message.events]:
                    events = (*rest, *(event for message in changed for event in message.events))
                    last = events[-1].kv.mod_revision if changed[-1].fragment else 0
                    # A revision counts once it is complete: a watch that is opened again begins after it.
                    events, rest = _parted(events, last)
                    if events:
                        place.saw(events)
                    for step in _steps(events):
                        batch = self._batch(step)
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
                await stream.pause(pace.rest(loop_time(), sum(map(len, lines))))
                place.await_more()

    @contextlib.asynccontextmanager
    async def _compared(self, stream: Stream, place: Place) -> AsyncIterator[None]:
        """Compare a watch with the store meanwhile, and close its stream in the end."""
        place.begin()
        with contextlib.closing(stream):
            comparing = asyncio.create_task(self._compare(stream, place))
            try:
                yield
            finally:
                await ended(comparing)

    async def _compare(self, stream: Stream, place: Place) -> None:
        """End a stream whose member lags, and have other members asked first."""
        while True:
            await asyncio.sleep(until_whole(COMPARE_SECONDS))
            try:
                answer, _ = await self._guard.carry_out([], [])
            except Unavailable:  # nobody knows whether there is more to tell
                continue
            waited = 0.0
            while place.told < answer.header.revision:
                if waited >= LAG_SECONDS:
                    log.warning("etcd %s reports no changes any more; another member is asked", stream.endpoint)
                    self._gateway.doubt(stream.endpoint)
                    stream.end()
                    return
                if place.reading:
                    stream.send({"progress_request": {}})
                told, readings, received = place.told, place.readings, stream.received
                await asyncio.sleep(LAG_STEP)
                arrives = stream.received > received and place.readings == readings  # a long message, slowly
                if place.reading and place.told == told and not arrives:
                    waited += LAG_STEP

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
                # The history of the oldest one is gone, so it cannot be compared. The next ones are old, too, and to
                # try them one by one would be as many requests from each host.
                del seen[: (len(seen) + 1) // 2]
                continue
            for number, event in enumerate(seen):
                had = next((each.mod_revision for each in answer.range(number).kvs), 0)
                if had != (event.kv.mod_revision if event.type == "PUT" else 0):
                    place.refuse(self._gateway.endpoint)
            return

    async def _first(self, stream: Stream, quiet: float) -> bytes | None:
        """Return the next line of a watch; None if it was quiet, and did not answer a progress request either."""
        try:
            return await _line(stream, until_whole(PROOF_SECONDS))
        except TimeoutError:
            stream.send({"progress_request": {}})
            while True:
                received = stream.received
                try:
                    return await _line(stream, quiet)
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
        last.pop(self._guard.key.encode(), None)
        changes = sorted(last.values(), key=lambda event: event.kv.mod_revision)
        return Batch(
            max((event.kv.mod_revision for event in changes), default=0),
            tuple(record_of(event.kv, self._prefix) for event in changes if event.type == "PUT"),
            tuple(record_of(event.kv, self._prefix).key for event in changes if event.type == "DELETE"),
        )


def _parted(events: tuple[Event, ...], revision: int) -> tuple[tuple[Event, ...], tuple[Event, ...]]:
    """Return the events of all other revisions, and those of this one."""
    others = tuple(event for event in events if event.kv.mod_revision != revision)
    return others, events[len(others) :]


def _steps(events: Sequence[Event]) -> Iterator[list[Event]]:
    """Yield the events in parts of whole revisions, such that no part puts a key again that it deletes.

    A batch has the last change of each key only. If it left out a deletion, another host's claim of a block that was
    free would look like one against its former owner.
    """
    step, gone = list[Event](), set[bytes]()
    for _, revision in itertools.groupby(events, lambda event: event.kv.mod_revision):
        changes = list(revision)
        if any(event.type == "PUT" and event.kv.key in gone for event in changes):
            yield step
            step, gone = [], set()
        step += changes
        gone.update(event.kv.key for event in changes if event.type == "DELETE")
    if step:
        yield step


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
        self.told = revision
        """The highest revision that the watch's present member named: changes before it may be on their way."""
        self.reading = True
        """False while changes are handled: more may have come."""
        self.readings = 0
        """How often messages were read: bytes may come without a whole one."""
        self.seen: deque[Event] = deque(maxlen=SEEN)
        """The last changes: they show that the store is still the same one."""
        self._etcd = ""
        self._term = 0

    def begin(self) -> None:
        """Begin at another member, which has told nothing yet."""
        self.told, self.reading = self.revision, True

    def handle(self, revisions: Iterable[int]) -> None:
        """Take the revisions that messages of the member named; these messages are handled from now on."""
        self.told, self.reading = max(self.told, *revisions, 0), False
        self.readings += 1

    def await_more(self) -> None:
        """Wait for further messages: all that came were handled."""
        self.reading = True

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
