"""Replica: the store's records as this host knows them. Everything reads from it, also while the store is away.

The replica has the records in memory. A watch keeps them up to date, and a snapshot in the state folder contains them
too. So an agent that starts while the store is away serves what it knows. Of endpoints the replica has only this host's
own: those of the other hosts are most of a store's records, and a host needs few of them. Another part follows their
changes (``Aside``).

**A lost record stays in force.** If a record is missing without a tombstone, its key is in ``lost`` until its owner
puts it back (`store/lost_records.py`). Until then nothing new may be claimed.

**A write is seen at once**, with its revision, and the watch may report older changes after that. So the replica skips
a change that is older than the known revision of its record (or of the record's tombstone). It compares revisions only
within one listing and the watch that follows, because a restored store counts from an earlier revision.

**Hosts list one after the other.** If a store is restored, or its history is compacted beyond the watches' revisions,
the watches of all hosts end at one moment. A listing costs etcd LISTED for each record. So each host waits for a random
part of what all of them cost together: nothing in a small cluster, up to SPREAD in a large one.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from linkspan.core.clock import loop_time
from linkspan.core.errors import Conflict, Full, LinkspanError, NotFound, Unavailable, counted
from linkspan.core.store_contract import JOIN, Batch, Record, Store
from linkspan.core.supervise import lasting, woken
from linkspan.store import records, validation
from linkspan.store.absence import LATE_ABSENCE, Absences
from linkspan.store.contact import Contact
from linkspan.store.fence import fenced
from linkspan.store.lost_records import LostRecords, value_to_put_back
from linkspan.store.overtaken import Overtaken
from linkspan.store.record_cache import RecordCache
from linkspan.store.records import ALIVE, CLAIMS, ENDPOINTS, EPHEMERAL, GONE, Tombstone
from linkspan.store.snapshot import Content, Kept, Snapshot

log = logging.getLogger("linkspan.store.replica")

AWAY = 3.0
"""Seconds without an answered keepalive, after which that is a problem: an election takes 1 to 2 s, and stops claims
for that time."""
FIRST_ANSWER = 3.0
"""Seconds that a start waits for the store before it serves what the snapshot has."""
LOOK = 2.0
"""Seconds for the store's answer to somebody who waits, and looks for what may not exist."""
RETRIES = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds until the store is listed again that did not answer, or up to a half less."""
LISTED = 9e-6
"""Seconds of etcd's processor time for each record of a listing: 0.9 s for 100,000 (etcd 3.5.16, by pages of PAGE).

Larger pages cost less, but an etcd that all hosts ask at once may be too slow for these."""
SPREAD = 30.0
"""The most seconds in which all hosts list again."""
PACK_AFTER, PACKED, PACK_PAUSE = 5.0, 200, 0.05
"""The snapshot's records are packed so many seconds after the start, so many at a time (3 ms), with pauses between."""


MANY = ("blocks/", "hosts/", "leases/")
"""Kinds of which a large cluster has many records."""
SAME = b"the value that this host knows"
"""Stands for a value in a listing, and is compared by identity: whoever writes records may write any bytes."""


class Aside(Protocol):
    """The part that follows the other hosts' endpoints."""

    def take(self, batch: Batch) -> set[str]:
        """Adopt changes of other hosts' endpoints, and return the keys of those that this host needs."""

    def listed(self) -> None:
        """Read again all that this host needs: the store was listed, because changes may have been missed."""

    def count(self) -> int:
        """Return how many endpoints this host reads after a listing."""


class Replica(RecordCache):
    """The store's records, for the host with the id ``host``; it calls ``changed`` with the keys that changed."""

    def __init__(
        self,
        store: Store,
        snapshot: Path,
        host: str,
        changed: Callable[[frozenset[str]], Awaitable[None]],
        aside: Aside | None = None,
        *,
        provisional: bool = False,
    ) -> None:
        """``aside`` follows the other hosts' endpoints; without one nobody does.

        ``provisional``: no snapshot is written until ``accepted``: the cluster may still refuse this host.
        """
        super().__init__(validation.decode)
        self.store = store
        self._losses = LostRecords(self, host)
        self.lost = self._losses.keys
        self.displaced = self._losses.displaced
        self.rewritten = self._losses.rewritten
        self._provisional = provisional
        self.contact = Contact()
        self.absences = Absences(store, self._forget)
        """Liveness records that are gone from the store, and still among ``records``."""
        self.listed = False
        """True if the store's records were listed since the start."""
        self.fix = ""
        """What to do about the last ``problem``."""
        self._overtaken = Overtaken(validation.decode)
        self._ended: dict[str, int] = {}
        """The revisions at which this host's standing records ended: the answer to an earlier put may come later."""
        self.remembered: dict[str, bytes] = {}
        """The networks' records of the snapshot at the start: those in force when this host's last agent ended."""
        self._reading = ""
        self._writing = ""
        self._keeping = ""
        self._unkept: float | None = None
        """Since when the store answers no keepalive, by the loop's time; None while it answers."""
        self._snapshot = Snapshot(snapshot, self._kept)
        self._cluster = ""
        self._host = host
        self._own_endpoints = f"{ENDPOINTS}{host}/"
        self._aside = aside
        self._changed = changed
        self._first = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def problem(self) -> str:
        """Return the store's problem, '' if it has none: of reading, of writing, or of the keepalive each second."""
        return self._reading or self._writing or self._keeping

    @property
    def settled(self) -> bool:
        """Return whether new claims may be made: the store answers, and no record is lost."""
        return not self.problem and not self.lost

    async def start(self, *, new: bool = False) -> None:
        """Read the snapshot, then the store; return without the store if it does not answer within FIRST_ANSWER.

        ``new``: this host joins the store's cluster, so an existing snapshot is another cluster's, and is ignored.
        """
        known = Content("", []) if new else self._snapshot.read()
        self._index.load(known.records)
        self._cluster = known.cluster
        if known.host != self._host:
            self._snapshot.note()
        del known  # the index has the records
        self._losses.recall()
        self.remembered = {key: record.value for key, record in self.under("networks/").items()}
        work = {
            "following the store": self._follow,
            "keeping the snapshot": self._snapshot.follow,
            "following absent hosts": self.absences.follow,
            "packing the snapshot's records": self._pack,
        }
        self._tasks = [lasting(*one) for one in work.items()]
        await woken(self._first, FIRST_ANSWER)

    async def _pack(self) -> None:
        """Pack the snapshot's records, a few at a time, once the start is over."""
        await asyncio.sleep(PACK_AFTER)
        left = True
        while left:
            left = self._index.pack(PACKED)
            await asyncio.sleep(PACK_PAUSE)

    async def stop(self) -> None:
        """End the watch, and write the snapshot, after a write that still runs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._snapshot.write()
        await self.store.close()

    def require_settled(self, what: str) -> None:
        """Raise Unavailable, with the reason, if nothing new may be claimed now; ``what`` failed because of it."""
        if self.problem:
            raise Unavailable(f"{what}: {self.problem}", "`linkspan status` shows the store")
        if self.lost:
            lost = counted(len(self.lost), "record")
            raise Unavailable(
                f"{what}: the store lost {lost}, and their owners have not put all back yet",
                "`linkspan status` lists them; restore the store, or remove hosts that will not come back",
            )

    async def write(
        self,
        values: Mapping[str, bytes | msgspec.Struct],
        deletes: Iterable[str] = (),
        absent: Iterable[str] = (),
        unchanged: Mapping[str, int] | None = None,
        standing: bool = False,
    ) -> bool:
        """Write to the store, with tombstones for ``deletes``, and adopt the result here at once.

        Returns False, and writes nothing, if a condition of ``absent`` or ``unchanged`` fails. ``standing`` records
        exist for as long as ``keep`` keeps them. Raises as ``fenced`` does.
        """
        puts = {k: v if isinstance(v, bytes) else self.encoded(k, v) for k, v in values.items()}
        tombstone = records.encode(Tombstone(self._host, time.time()), b"", self.settings.writes)
        graves = {GONE + key: tombstone for key in deletes if not key.startswith((GONE, *EPHEMERAL))}
        raised = [GONE + key for key in puts if GONE + key in self.records or GONE + key in self._overtaken.graves]
        deletes = [*deletes, *raised]
        asked, written = dict.fromkeys(absent, 0) | dict(unchanged or {}), {**puts, **graves}
        keys = [key for key in (*puts, *deletes) if key not in asked and not key.startswith(GONE)]
        as_was = {key: self.known_revision(key) for key in keys}
        self._losses.note_written(puts)
        begun = loop_time()
        try:
            if standing:  # it expires by itself, so a late arrival does no harm
                self._ended = dict.fromkeys(puts, 0) | self._ended
                revision = await self.store.transaction(written, deletes, unchanged=asked, standing=True)
            else:
                revision = await fenced(self.store, written, deletes, as_was, asked)
        except Unavailable as error:
            if standing:
                self._falls(error, begun)
                raise
            if self._writing != error.message:
                log.warning("%s", error.told)
            self._writing, self.fix = error.message, error.hint
            if isinstance(error, Full):
                self.note_room(full=True)
            raise
        self._writing = ""
        if written:  # a delete proves nothing: a full store takes deletes, too
            self.note_room(full=False)
        if standing:
            self._keeping, self._unkept = "", None
        self.contact.wrote(loop_time() - begun)
        if revision:
            seen = (Record(key, value, revision) for key, value in written.items())
            await self._take(Batch(revision, tuple(seen), tuple(deletes)))
            if not standing:  # the keepalive must not wait for this: every other write does it, and `membership`
                await self.put_back()
            # If the agent is killed now, and the store restored, this host must still know it.
            if any(key.startswith(("blocks/", "networks/")) for key in puts):
                await self._snapshot.save()
        return bool(revision)

    def note_room(self, *, full: bool) -> None:
        """Record whether the store takes writes. Once it does, an earlier refusal is no problem any more."""
        if self.contact.full and not full:
            self._writing = ""
        self.contact.found(full=full)

    async def keep(self) -> float:
        """Keep the standing records, as ``Store.keep`` does.

        Raises Unavailable; once no keepalive was answered for AWAY seconds, ``problem`` names it too.
        """
        begun = loop_time()
        try:
            kept = await self.store.keep()
        except Unavailable as error:
            self._falls(error, begun)
            raise
        if kept:
            self._keeping, self._unkept = "", None
            self.contact.kept()
        return kept

    def _falls(self, error: Unavailable, begun: float) -> None:
        """Record that the store took no keepalive, or no standing record, in a call that began at ``begun``."""
        self._unkept = begun if self._unkept is None else self._unkept
        if loop_time() - self._unkept >= AWAY:
            if self._keeping != error.message:
                log.warning("%s", error.told)
            self._keeping, self.fix = error.message, error.hint

    async def revision(self, key: str) -> int:
        """Read a record from the store into the replica, and return its revision. Raises NotFound if there is none."""
        if (record := await self.store.get(key)) is None:
            raise NotFound(f"record {key} is not in the store")
        await self._take(Batch(record.revision, (record,), ()))
        return record.revision

    async def look(self, prefix: str) -> bool:
        """Read the records whose keys begin with ``prefix`` now; return whether any of their kind are others by then.

        The watch would report them a moment later, or reports them meanwhile. A record that no agent can have written
        changes nothing. A store that is away, or takes longer than LOOK, has nothing new.
        """
        if self.problem:
            return False
        kind = prefix.partition("/")[0]
        before = self.changes(kind)
        try:
            async with asyncio.timeout(LOOK):
                found, _ = await self.store.list(prefix)
        except (LinkspanError, TimeoutError):
            return False
        new = tuple(record for record in found if self._known(record.key) < record.revision)
        if new:
            await self._take(Batch(max(record.revision for record in new), new, ()))
        return self.changes(kind) != before

    async def _follow(self) -> None:
        """List the records, watch from that revision, and list again whenever the watch ends."""
        tries = 0
        while True:
            try:
                revision = await self._list()
                tries = 0
                async for batch in self.store.watch("", revision):
                    self.contact.told(batch)
                    if batch.puts or batch.deletes:
                        await self._apply(batch)
            except NotFound as error:  # compacted, or restored from a backup
                log.info("%s", error.message)
                each = len(self.records) + (self._aside.count() if self._aside is not None else 0)
                together = len(self.keys_under("hosts/")) * each * LISTED
                await asyncio.sleep(random.uniform(0, min(together, SPREAD)))  # noqa: S311 - it spreads
            except LinkspanError as error:
                if self._reading != error.message:
                    log.warning("%s", error.told)
                self._reading, self.fix = error.message, error.hint
                self._first.set()
                pause = RETRIES[min(tries, len(RETRIES) - 1)]
                await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - it spreads, and hides nothing
                tries += 1

    async def _list(self) -> int:
        self._ended = dict.fromkeys(self._ended, 0)
        self._overtaken.note(self._index.forget_revisions())
        found, revision = await self.store.list("", ENDPOINTS, self._shortened)
        found = self._overtaken.sifted(found)
        # Only this host writes these, so a later snapshot does no harm.
        found += (await self.store.list(self._own_endpoints))[0]
        if self._cluster and self.store.cluster != self._cluster:
            raise Conflict(
                f"the store is cluster {self.store.cluster}, and this host belongs to {self._cluster}",
                f"correct the agent's store; {JOIN}",
            )
        if self._cluster != self.store.cluster or self._overtaken.differs(found):
            self._snapshot.note()  # it has revisions, too
        self._cluster = self.store.cluster
        self._reading = ""
        there = {record.key for record in found}
        self._ended.update((key, revision) for key in self._ended if key not in there)
        # A skipped record may be in `reasons` alone.
        missing = tuple(key for key in dict.fromkeys((*self.records, *self.reasons)) if key not in there)
        batch = Batch(revision, tuple(found), missing)
        self.contact.told(batch)
        for key in missing:
            if key.startswith(ALIVE) and key in self.records and self.known_revision(key) <= revision:
                self.absences.note(key, LATE_ABSENCE)
        if any(ALIVE + key.removeprefix("hosts/") not in there for key in there if key.startswith("hosts/")):
            await self.absences.look()
        await self._take(batch)
        self._overtaken.listed(self.lost)
        await self.put_back()
        if self._aside is not None:
            self._aside.listed()
        self.listed = True
        self._first.set()
        return revision

    def _shortened(self, record: Record) -> Record:
        """Return a record of a listing, with SAME instead of a value that is known.

        So most records are compared while the store sends others, and their values are not kept until all have come.
        """
        if not record.key.startswith(MANY) or record.key in self.reasons:
            return record
        known = self.records.get(record.key)
        if known is None or known.value != record.value:
            return record
        return Record(record.key, SAME, record.revision)

    async def _apply(self, batch: Batch) -> None:
        """Adopt changes, and put back this host's lost records."""
        await self._take(batch)
        await self.put_back()

    async def _take(self, batch: Batch) -> None:
        """Adopt changes, and report the keys whose records changed."""
        batch, beside = self._parted(batch)
        touched = self._aside.take(beside) if beside is not None and self._aside is not None else set()
        listers = self._losses.listers({key.split("/", 2)[1] for key in batch.deletes if key.startswith("blocks/")})
        for record in batch.puts:
            if record.value is SAME:
                if self._index.touch(record.key, record.revision):  # else it was removed while the store was listed
                    self.lost.discard(record.key)
                continue
            if self._is_misfit(record):
                continue
            if self._known(record.key) > record.revision:
                continue
            old = self.records.get(record.key)
            self._replace(old, record)
            self.absences.back(record.key)
            self.lost.discard(record.key)
            if old is not None and old.value == record.value:
                continue
            if old is not None and record.key.startswith(CLAIMS):
                self._losses.compare(old, record)
            elif record.key.startswith("leases/"):
                self._losses.compare_lease(old, record)
            self._judge(record.key)
            touched.add(record.key)
        for key in batch.deletes:
            if key in self._ended:
                self._ended[key] = max(batch.revision, self._ended[key])
            if key not in self.records:
                self._unskip(key)
                continue
            if self.known_revision(key) > batch.revision:
                continue
            if key.startswith(ALIVE):  # its own host must react now, all others only after the absence has lasted
                self.absences.note(key)
                touched.add(key)
                continue
            removed = key.startswith((GONE, *EPHEMERAL)) or GONE + key in self.records
            missed = None if removed else self._losses.missed(key, listers.get(key, ()))
            self._unskip(key)
            if missed is None:
                self._drop(key)
                self.lost.discard(key)
                touched.add(key)
            elif key not in self.lost:
                self._keep(missed)
                self.lost.add(key)
                touched.add(key)
        touched |= self._found_removed(batch)
        if touched:
            if any(not key.startswith(EPHEMERAL) for key in touched):  # the snapshot has no others
                self._snapshot.note()
            await self._changed(frozenset(touched))

    def _parted(self, batch: Batch) -> tuple[Batch, Batch | None]:
        """Return the changes for the replica, and those of other hosts' endpoints, if there are any."""
        puts = tuple(record for record in batch.puts if self._is_aside(record.key))
        deletes = tuple(key for key in batch.deletes if self._is_aside(key))
        if not puts and not deletes:
            return batch, None
        kept = tuple(record for record in batch.puts if not self._is_aside(record.key))
        left = tuple(key for key in batch.deletes if not self._is_aside(key))
        return Batch(batch.revision, kept, left), Batch(batch.revision, puts, deletes)

    def _is_aside(self, key: str) -> bool:
        return key.startswith(ENDPOINTS) and not key.startswith(self._own_endpoints)

    async def _forget(self, keys: frozenset[str]) -> None:
        """Drop the liveness records of hosts whose absence has lasted."""
        for key in keys & self.records.keys():
            self._drop(key)
        await self._changed(keys)

    def _found_removed(self, batch: Batch) -> set[str]:
        """Drop lost records that have a tombstone now, or whose host has one; return their keys.

        The store does not have these records, so it reports no deletion, only the tombstone.
        """
        if not self.lost or not any(one.key.startswith(GONE) for one in batch.puts):
            return set()
        found: set[str] = set()
        # First the records with a tombstone, hosts among them: the second test asks for the hosts' records.
        for over in (self._losses.is_removed, self._losses.counts_for_nothing):
            for key in [key for key in self.lost if over(key)]:
                self._unskip(key)
                self._drop(key)
                self.lost.discard(key)
                found.add(key)
        return found

    def _known(self, key: str) -> int:
        """Return the latest known revision of a record, of its tombstone or of its end, 0 if none is known."""
        known = max(self.known_revision(key), self._ended.get(key, 0))
        if key.startswith(GONE):
            return max(known, self.known_revision(key.removeprefix(GONE)))
        if not self.change_in("gone", key.partition("/")[0]):  # most kinds have no tombstone
            return known
        return max(known, self.known_revision(GONE + key))

    async def put_back(self) -> None:
        """Put back this host's lost records, as far as the store takes them now. Raises nothing.

        What others change must be seen in any case: a store that was restored may be full.
        """
        try:
            await self._put_back()
        except Full:
            self.note_room(full=True)
        except LinkspanError as error:
            log.debug("put back lost records: %s", error.message)

    async def _put_back(self) -> None:
        if self.problem:
            return
        for key in [k for k in self.lost if self._losses.is_mine(k)]:
            if key not in self.lost:  # it came back or was removed while others were put back
                continue
            grave = GONE + key
            raised = {grave: at} if (at := self._overtaken.graves.get(grave)) else {}
            absent, value = [one for one in (key, grave) if one not in raised], value_to_put_back(self.records[key])
            if await self.store.transaction({key: value}, deletes=[*raised], absent=absent, unchanged=raised):
                self.lost.discard(key)
                self._overtaken.graves.pop(grave, None)
                log.warning("record %s was lost by the store and is put back", key)

    async def save(self) -> None:
        """Write the snapshot now: an agent that starts while the store is away must know what changed just now."""
        await self._snapshot.save()

    async def accepted(self) -> None:
        """Write snapshots from now on: the cluster has accepted this host's id."""
        self._provisional = False
        if self._snapshot.due:
            await self._snapshot.save()

    def withhold(self, keys: Iterable[str]) -> None:
        """Leave the records with these keys out of the snapshot, because they contradict others.

        The caller has used ``remembered`` by then, so it is dropped.
        """
        self._losses.withhold(keys)
        self.remembered = {}

    def _kept(self) -> Kept | None:
        """Return the content of the snapshot, None while it must stay as it is."""
        return None if self._provisional else Kept(self._cluster, self._kept_records(), self._host)

    def _kept_records(self) -> Iterator[Record]:
        left_out = self._losses.withheld
        for record in self._index.all():
            if not record.key.startswith(EPHEMERAL) and record.key not in left_out:
                yield self._lasting(record)

    def _lasting(self, record: Record) -> Record:
        """Return the version of a record that belongs into the snapshot: the last valid one."""
        if record.key not in self.reasons:
            known = self._overtaken.revision(record)  # of a lost one it tells which tombstones do not count
            return record if known == record.revision else Record(record.key, record.value, known)
        return Record(record.key, self.earlier(record.key) or record.value, record.revision)
