"""Store in memory: for tests of parts that use a store. It passes the same tests as the real ones.

``Memory`` is what all hosts share, and each has a connection to it, a ``MemoryStore``, that can be cut.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence

from linkspan.core.contracts import LIFE, PROOF_SECONDS, Batch, Record
from linkspan.core.errors import Full, Unavailable
from linkspan.core.supervise import woken
from linkspan.store.request import Request
from linkspan.store.table import refuse_revision


class Memory:
    """Records, as a store keeps them."""

    def __init__(self) -> None:
        self.cluster = uuid.uuid4().hex
        self.revision = 0
        self.pruned = 0
        self.full = False
        """Whether it takes nothing new, as an etcd whose quota is full; what there is lives, and ends."""
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
        """Return the revision of a record, 0 where there is none."""
        value, revision = self.entries.get(key, (None, 0))
        return 0 if value is None else revision

    def changes(self, prefix: str, after: int) -> Batch:
        """Return the changes after a revision. Raises NotFound if they are not known."""
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
        """Forget the deletes up to a revision; who watches from below them lists anew."""
        self.pruned = max(self.pruned, min(upto, self.revision))
        for key, (value, revision) in list(self.entries.items()):
            if value is None and revision <= self.pruned:
                del self.entries[key]

    def restore(self, revision: int, entries: Mapping[str, tuple[bytes | None, int]]) -> None:
        """Go back to the content at a revision, as from a backup; ``restore(0, {})`` empties it."""
        self.revision, self.pruned, self.entries = revision, 0, dict(entries)
        self.ring()

    def ring(self) -> None:
        """Wake the watchers."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self) -> None:
        """Wait for the next change, at most for PROOF_SECONDS."""
        await woken(self._changed, PROOF_SECONDS)


class MemoryStore:
    """One host's connection."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._connected = True
        self._closed = False
        self._standing: dict[str, int] = {}
        self._end: asyncio.TimerHandle | None = None
        self.cluster = memory.cluster

    def cut(self) -> None:
        """Let calls fail, and watches wait, from now on."""
        self._connected = False

    def mend(self) -> None:
        """Let calls succeed again, and watches continue where they were."""
        self._connected = True
        self._memory.ring()

    def _answer(self) -> Memory:
        if self._closed or not self._connected:
            raise Unavailable("store in memory: the connection is cut", "mend it")
        return self._memory

    async def get(self, key: str) -> Record | None:
        """Return a record, None where there is none."""
        await asyncio.sleep(0)  # like every real store, let others run first
        value, revision = self._answer().entries.get(key, (None, 0))
        return None if value is None else Record(key, value, revision)

    async def list(self, prefix: str) -> tuple[list[Record], int]:
        """Return the records whose keys begin with ``prefix``, and the revision at which that was so."""
        await asyncio.sleep(0)
        memory = self._answer()
        found = [
            Record(key, value, revision)
            for key, (value, revision) in sorted(memory.entries.items(), key=lambda item: item[0].encode())
            if value is not None and key.startswith(prefix)
        ]
        return found, memory.revision

    async def transaction(
        self,
        puts: Mapping[str, bytes],
        deletes: Sequence[str] = (),
        absent: Sequence[str] = (),
        unchanged: Mapping[str, int] | None = None,
        ttl: float = 0,
        standing: bool = False,
    ) -> int:
        """Put and delete all, and return the revision of that; or nothing, 0, where a condition does not hold."""
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
        """Let the standing records end later; returns for how many seconds, 0 if there are none."""
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
        """Let the standing records end, as if they had not been kept."""
        ended, self._standing = self._standing, {}
        self._memory.expire(ended)

    async def full(self) -> bool:
        """Tell whether it takes nothing new."""
        await asyncio.sleep(0)
        return self._answer().full

    async def watch(self, prefix: str, revision: int) -> AsyncIterator[Batch]:
        """Yield what changes after ``revision``: at each time all there is, each key once."""
        while not self._closed:
            if self._connected:
                upto = self._memory.revision
                batch = self._memory.changes(prefix, revision)
                revision = upto
                yield batch
                if self._closed or upto != self._memory.revision:  # while the caller had it
                    continue
            await self._memory.changed()

    async def services(self) -> tuple[str, ...]:
        """Return none: it is no service."""
        return ()

    def renew(self) -> None:
        """Do nothing: there is no connection."""

    async def close(self) -> None:
        """Close the connection; watches end."""
        self._closed = True
        self._memory.ring()
