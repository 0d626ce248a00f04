"""Store in memory, for tests of parts that use a store. It passes the same tests as the real stores.

All hosts share one ``Memory``. Each host has a ``MemoryStore``, a connection to it that a test can cut.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from linkspan.core.errors import Full, Unavailable
from linkspan.core.store_contract import LIFE, PAGE, PROOF_SECONDS, Batch, Page, Record
from linkspan.core.supervise import woken
from linkspan.store.request import Request
from linkspan.store.table import refuse_revision


class Memory:
    """The records of a store, with their revisions and deletes."""

    def __init__(self) -> None:
        self.cluster = uuid.uuid4().hex
        self.revision = 0
        self.pruned = 0
        self.full = False
        """True if it takes no puts, as an etcd whose quota is full; records still end."""
        self.entries: dict[str, tuple[bytes | None, int]] = {}
        """Value and revision by key; a deleted key has no value until it is pruned."""
        self._changed = asyncio.Event()

    def commit(self, request: Request) -> int:
        """Execute the request and return its revision, or 0 if one of its conditions fails."""
        if any(self.revision_of(key) != revision for key, revision in request.conditions.items()):
            return 0
        changes: dict[str, bytes | None] = dict(request.puts)
        changes.update({key: None for key in request.deletes if self.revision_of(key)})
        if not changes:
            return max(self.revision, 1)
        self.revision += 1
        self.entries.update({key: (value, self.revision) for key, value in changes.items()})
        if request.ttl:
            put = dict.fromkeys(request.puts, self.revision)
            asyncio.get_running_loop().call_later(request.ttl, self.expire, put)
        self.ring()
        return self.revision

    def expire(self, revisions: Mapping[str, int]) -> None:
        """Delete the keys that were not put again after these revisions."""
        gone = [key for key, revision in revisions.items() if self.revision_of(key) == revision]
        self.commit(Request({}, gone))

    def revision_of(self, key: str) -> int:
        """Return the revision of a record, 0 if there is none."""
        value, revision = self.entries.get(key, (None, 0))
        return 0 if value is None else revision

    def changes(self, prefix: str, after: int) -> Batch:
        """Return the last change of each key after a revision. Raises NotFound as ``refuse_revision`` does."""
        refuse_revision("in memory", after, self.pruned, self.revision)
        puts, deletes, last = [], [], after
        for key, (value, revision) in sorted(self.entries.items(), key=lambda item: item[1][1]):
            if revision > after and key.startswith(prefix):
                last = revision
                if value is None:
                    deletes.append(key)
                else:
                    puts.append(Record(key, value, revision))
        return Batch(last, tuple(puts), tuple(deletes))

    def prune(self, upto: int) -> None:
        """Forget the deletes up to a revision; a watch from before it must list again."""
        self.pruned = max(self.pruned, min(upto, self.revision))
        for key, (value, revision) in list(self.entries.items()):
            if value is None and revision <= self.pruned:
                del self.entries[key]

    def restore(self, revision: int, entries: Mapping[str, tuple[bytes | None, int]]) -> None:
        """Go back to the content at a revision, as from a backup; ``restore(0, {})`` empties it."""
        self.revision, self.pruned, self.entries = revision, 0, dict(entries)
        self.ring()

    def ring(self) -> None:
        """Wake the watches."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self) -> None:
        """Wait for the next change, at most for PROOF_SECONDS."""
        await woken(self._changed, PROOF_SECONDS)


class MemoryStore:
    """One host's connection to a ``Memory``: a ``Store``."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._connected = True
        self._closed = False
        self._standing: dict[str, int] = {}
        self._end: asyncio.TimerHandle | None = None
        self.cluster = memory.cluster

    def cut(self) -> None:
        """Make calls fail and watches wait, until ``mend``."""
        self._connected = False

    def mend(self) -> None:
        """Make calls succeed again, and watches continue where they were."""
        self._connected = True
        self._memory.ring()

    def _answer(self) -> Memory:
        if self._closed or not self._connected:
            raise Unavailable("store in memory: the connection is cut", "mend it")
        return self._memory

    async def get(self, key: str) -> Record | None:
        """Return a record, None if there is none."""
        await asyncio.sleep(0)  # other tasks run meanwhile, as with every real store
        value, revision = self._answer().entries.get(key, (None, 0))
        return None if value is None else Record(key, value, revision)

    async def list(
        self, prefix: str, beside: str = "", each: Callable[[Record], Record] | None = None
    ) -> tuple[list[Record], int]:
        """Return the records whose keys begin with ``prefix``, and not with ``beside``, and the snapshot's revision."""
        await asyncio.sleep(0)
        memory = self._answer()
        found = [
            Record(key, value, revision)
            for key, (value, revision) in sorted(memory.entries.items(), key=lambda item: item[0].encode())
            if value is not None and key.startswith(prefix) and not (beside and key.startswith(beside))
        ]
        return [*map(each, found)] if each is not None else found, memory.revision

    async def pages(self, prefix: str) -> AsyncIterator[Page]:
        """Yield the records whose keys begin with ``prefix``, and the revision of each page's snapshot, in parts."""
        found, revision = await self.list(prefix)
        for start in range(0, max(len(found), 1), PAGE):
            yield found[start : start + PAGE], revision
            await asyncio.sleep(0)
            self._answer()

    async def transaction(
        self,
        puts: Mapping[str, bytes],
        deletes: Sequence[str] = (),
        absent: Sequence[str] = (),
        unchanged: Mapping[str, int] | None = None,
        ttl: float = 0,
        standing: bool = False,
    ) -> int:
        """Put and delete all, and return the revision; or change nothing and return 0 if a condition fails."""
        request = Request(puts, deletes, absent, unchanged, ttl, standing)
        request.check()
        await asyncio.sleep(0)
        memory = self._answer()
        if memory.full and puts:
            raise Full("store in memory: its quota is full, so it takes no writes", "make room")
        done = memory.commit(request)
        if done and standing:
            self._standing |= dict.fromkeys(puts, done)
            self._prolong()
        return done

    async def keep(self) -> float:
        """Keep the standing records; return for how many seconds, 0 if there are none."""
        await asyncio.sleep(0)
        self._answer()
        if self._standing:
            self._prolong()
        return LIFE if self._standing else 0.0

    def _prolong(self) -> None:
        if self._end is not None:
            self._end.cancel()
        self._end = asyncio.get_running_loop().call_later(LIFE, self.lapse)

    def lapse(self) -> None:
        """End the standing records, as if nobody had kept them."""
        ended, self._standing = self._standing, {}
        self._memory.expire(ended)

    async def full(self) -> bool:
        """Return whether the store takes no puts."""
        await asyncio.sleep(0)
        return self._answer().full

    async def watch(self, prefix: str, revision: int) -> AsyncIterator[Batch]:
        """Yield the changes after ``revision``: each batch has all changes so far, each key once."""
        while not self._closed:
            if self._connected:
                upto = self._memory.revision
                batch = self._memory.changes(prefix, revision)
                revision = upto
                yield batch
                if self._closed or upto != self._memory.revision:  # it changed while the caller had the batch
                    continue
            await self._memory.changed()

    async def services(self) -> tuple[str, ...]:
        """Return none: memory is no service."""
        return ()

    def renew(self) -> None:
        """Do nothing: there is no connection."""

    async def close(self) -> None:
        """Close the connection; watches end."""
        self._closed = True
        self._memory.ring()
