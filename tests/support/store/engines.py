"""One empty store of each kind, to which a test makes its connections; and a watch that is checked."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from pathlib import Path

from linkspan.core.store_contract import Batch, Store
from linkspan.store.etcd import EtcdStore
from linkspan.store.memory import Memory, MemoryStore
from linkspan.store.sqlite import SqliteStore
from support.polling import eventually
from support.store.etcd_members import Members


class Engine:
    """Parts that a test of the contract needs besides the contract."""

    def __init__(self) -> None:
        self._opened: list[Store] = []

    def connect(self) -> Store:
        """Return one more connection to the store; it is closed after the test."""
        store = self.open()
        self._opened.append(store)
        return store

    def open(self) -> Store:
        """Return one more connection."""
        raise NotImplementedError

    async def compact(self, revision: int) -> None:
        """Let the store forget what was before a revision."""
        raise NotImplementedError

    async def close(self) -> None:
        """Close the connections."""
        for store in self._opened:
            await store.close()


class MemoryEngine(Engine):
    """A store in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = Memory()

    def open(self) -> Store:
        """Return one more connection."""
        return MemoryStore(self.memory)

    async def compact(self, revision: int) -> None:
        """Let the store forget what was before a revision."""
        self.memory.prune(revision)


class SqliteEngine(Engine):
    """A store in a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def open(self) -> SqliteStore:
        """Return one more connection."""
        return SqliteStore(self.folder)

    async def compact(self, revision: int) -> None:
        """Let the store forget what was before a revision."""
        store = self.open()
        await store.prune(revision)
        await store.close()


class EtcdEngine(Engine):
    """A prefix of an etcd that runs already; the test is in its namespace."""

    def __init__(self, members: Members, test: str) -> None:
        super().__init__()
        self.members = members
        self.url = members.url(f"/{hashlib.sha1(test.encode()).hexdigest()}")  # noqa: S324 (a name)

    def open(self) -> Store:
        """Return one more connection."""
        return EtcdStore(self.url)

    async def compact(self, revision: int) -> None:
        """Let the store forget what was before a revision."""
        self.members.control("compact", str(revision))


class Watched:
    """Changes that a watch has yielded, and the resulting records."""

    def __init__(self, store: Store, prefix: str, revision: int) -> None:
        self.batches: list[Batch] = []
        self.proofs = 0
        """Empty batches: how often the watch has proved that it lives."""
        self.records: dict[str, bytes] = {}
        self.error: Exception | None = None
        self._task = asyncio.create_task(self._follow(store, prefix, revision))

    async def _follow(self, store: Store, prefix: str, revision: int) -> None:
        try:
            async for batch in store.watch(prefix, revision):
                if not batch.puts and not batch.deletes:
                    self.proofs += 1
                    continue
                self.batches.append(batch)
                self.records.update({record.key: record.value for record in batch.puts})
                for key in batch.deletes:
                    self.records.pop(key, None)
        except Exception as error:  # noqa: BLE001 (the test looks at it)
            self.error = error

    @property
    def ended(self) -> bool:
        """Return whether the watch is over."""
        return self._task.done()

    @property
    def deleted(self) -> list[str]:
        """The keys that were deleted, in order."""
        return [key for batch in self.batches for key in batch.deletes]

    async def has(self, records: dict[str, bytes]) -> None:
        """Wait until these are the records."""
        with contextlib.suppress(AssertionError):  # the comparison says which records there were in the end
            await eventually(lambda: self.records == records or self.ended, "they are watched", 60)
        assert self.records == records, self.error

    async def stop(self) -> None:
        """Watch no more."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
