"""Store in one SQLite file, for the agents of one machine; it survives a reboot.

Each transaction has reached the disk when it returns (synchronous=FULL). The file records the machine's id:
SQLite's locks do not work on a folder that several machines share, so another machine's store is refused.

The store has a thread of its own for all work on the file, because a commit waits for the disk and for the other
agents' commits. After a commit the agent opens and closes the file ``changed`` beside the store, which inotify reports
to the other agents (0.4 ms; the event of the write-ahead log would come before the commit can be seen). If the user has
no inotify instance left, an agent looks at that file's time instead. A poll each second finds records that expire.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

from linkspan.core.clock import loop_time
from linkspan.core.errors import KernelError, LinkspanError, NotFound, Unavailable
from linkspan.core.remedies import reason, remedy
from linkspan.core.store_contract import LIFE, PAGE, PROOF_SECONDS, Batch, Page, Record
from linkspan.core.supervise import pause, until_whole, woken
from linkspan.kernel.io.inotify import FolderWatch
from linkspan.store.request import Request
from linkspan.store.table import KEEP, Table

FILE = "store.db"
MACHINE_ID = Path("/etc/machine-id")

POLL_SECONDS = 1.0
"""Seconds between two polls: a record expires at most so late."""
LOOK_SECONDS = 0.1
"""Seconds between two looks at the time of ``changed``: without inotify another agent's change is seen so late."""

P = ParamSpec("P")
R = TypeVar("R")


def machine_id() -> str:
    """Return this machine's id (machine-id(5)), '' if it has none."""
    with contextlib.suppress(OSError):
        return MACHINE_ID.read_text().strip()
    return ""


class SqliteStore:
    """Records by key, such as ``networks/demo``, in ``FOLDER/store.db``; several processes may open it."""

    def __init__(
        self, folder: Path, machine: str | None = None, cluster: str = "", keep: int = KEEP
    ) -> None:
        """Open or make the store. ``cluster`` is the id that a new store gets and an existing one must have ('': any).

        ``machine`` is this machine's id (None: read it), ``keep`` the number of revisions that are kept for watches.
        Raises Unavailable if the file is corrupt, from a newer linkspan, another machine's or another cluster's.
        """
        self.path = folder / FILE
        self._machine = machine_id() if machine is None else machine
        self._keep = keep
        make_folder(folder)
        self._table = Table(self.path, self._machine, cluster, keep)
        self.cluster = self._table.cluster
        self._thread = ThreadPoolExecutor(1, "store")
        self._standing: dict[str, int] = {}
        """By key: the revision of each standing record of this connection. Only the store's thread uses it."""
        self._ends = 0.0
        """When the standing records end, by the table's clock."""
        self._notice = Notice(folder)
        self._poll: asyncio.Task[None] | None = None
        self._looked = float("-inf")
        """When the file was last polled and its changes reported, by the loop's time."""
        self._closed = False

    async def get(self, key: str) -> Record | None:
        """Return a record, None if there is none."""
        return await self._run(lambda table: table.get(key))

    async def list(
        self, prefix: str, beside: str = "", each: Callable[[Record], Record] | None = None
    ) -> tuple[list[Record], int]:
        """Return the records whose keys begin with ``prefix``, and not with ``beside``, and the snapshot's revision."""
        found, revision = await self._run(lambda table: table.list(prefix, beside))
        return [*map(each, found)] if each is not None else found, revision

    async def pages(self, prefix: str) -> AsyncIterator[Page]:
        """Yield the records whose keys begin with ``prefix``, and the revision of each page's snapshot, in parts."""
        last = ""
        while True:
            found, revision = await self._run(lambda table, last=last: table.page(prefix, last, PAGE))
            yield found, revision
            if len(found) < PAGE:
                return
            last = found[-1].key

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

        def commit(table: Table) -> int:
            begun = table.now()
            done = table.commit(request, LIFE if standing else ttl)
            if done:
                self._notice.give()
            if done and standing:
                self._standing |= dict.fromkeys(puts, done)
                self._ends = begun + LIFE
            return done

        return await self._run(commit)

    async def keep(self) -> float:
        """Keep the standing records; return for how many seconds, 0 if there are none (any more).

        Each agent of a machine so writes one page of the file each second, and does not wait for the disk.
        """

        def keep(table: Table) -> float:
            begun = table.now()
            if begun >= self._ends:
                self._standing.clear()
            if not self._standing:
                return 0.0
            table.prolong(self._standing, LIFE)
            self._ends = begun + LIFE
            return LIFE

        return await self._run(keep)

    async def full(self) -> bool:
        """Return False: on a full disk records do not end either, so no host can seem dead."""
        return False

    async def watch(self, prefix: str, revision: int) -> AsyncIterator[Batch]:
        """Yield the changes after ``revision``: each batch has all changes so far, each key once.

        If the poll finds no change, that proves that the watch lives: an empty batch.
        """
        file = 0
        while not self._closed:
            seen = self._notice.count
            try:
                file, (batch, revision) = await self._run(_changes, file, prefix, revision)
            except Unavailable:
                # Writes report a failing disk; the watch continues once the disk works again.
                await asyncio.sleep(POLL_SECONDS)
                continue
            yield batch
            while not await self._notice.wait(seen, until_whole(PROOF_SECONDS)) and self._was_looked_at():
                yield Batch(revision)

    def _was_looked_at(self) -> bool:
        return loop_time() - self._looked <= PROOF_SECONDS + POLL_SECONDS

    async def prune(self, upto: int) -> None:
        """Forget the deletes up to a revision; a watch from before it must list again."""
        await self._run(lambda table: table.prune(upto))

    async def services(self) -> tuple[str, ...]:
        """Return none: a file is no service."""
        return ()

    def renew(self) -> None:
        """Do nothing: there is no connection."""

    async def close(self) -> None:
        """Close the file; watches end."""
        self._closed = True
        if self._poll:
            self._poll.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._poll
        self._notice.close()
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, lambda: self._table.close())
        self._thread.shutdown()

    async def _run(self, work: Callable[..., R], *arguments: object) -> R:
        """Call ``work`` with the table in the store's thread. Raises Unavailable, and as ``work`` does."""
        if self._closed:
            raise Unavailable(f"store {self.path} is closed", "the agent is stopping")
        loop = asyncio.get_running_loop()
        if self._poll is None:
            self._notice.listen()
            self._poll = loop.create_task(self._keep_time())

        def in_thread() -> R:
            if self._reopened():
                loop.call_soon_threadsafe(self._notice.listen)  # the folder may have been replaced, too
            return work(self._table, *arguments)

        return await loop.run_in_executor(self._thread, in_thread)

    def _reopened(self) -> bool:
        """Open the present file and return True, if the open one was deleted or replaced.

        A deleted store is made again, with the cluster's id. Agents see its revision go back, and put their records
        into it again.
        """
        if not self._table.replaced():
            return False
        make_folder(self.path.parent)
        table = Table(self.path, self._machine, self.cluster, self._keep)
        self._table.close()
        self._table = table
        return True

    async def _keep_time(self) -> None:
        """Delete records that expire, and notice changes of which nobody told."""
        loop = asyncio.get_running_loop()
        seen = (0, -1)
        while True:
            wait = POLL_SECONDS
            # The next call reports what is wrong; the poll tries again.
            with contextlib.suppress(LinkspanError):
                file, tick = await self._run(lambda table: (table.inode, table.sweep()))
                if tick.swept:
                    self._notice.give()
                if tick.next_expiry is not None:
                    wait = min(wait, max(tick.next_expiry, 0.01))
                if (file, tick.revision) != seen:
                    seen = (file, tick.revision)
                    self._notice.ring()
                self._looked = loop.time()
            await pause(wait)


def _changes(table: Table, file: int, prefix: str, after: int) -> tuple[int, tuple[Batch, int]]:
    """Return the file's inode and what ``Table.changes`` returns. Raises NotFound if ``file`` was another inode."""
    if file and file != table.inode:
        raise NotFound(
            f"store {table.path}: it is another file now: deleted and made again, or restored from a backup; "
            f"its revision went back from {after}",
            "list the records again; what is missing must be put back",
        )
    return table.inode, table.changes(prefix, after)


class Notice:
    """Notification between agents: each closes a file in the folder after a commit, and the others wait for that."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "changed"
        self._watch: FolderWatch | None = None
        self._looks: asyncio.Task[None] | None = None
        self._rung = asyncio.Event()
        self._closed = False
        self.count = 0

    def listen(self) -> None:
        """Start to receive notifications."""
        self._deafen()
        if self._closed:
            return
        try:
            self._watch = FolderWatch(self._file.parent, self.ring)
        except KernelError:  # the user has no inotify instance left
            self._looks = asyncio.get_running_loop().create_task(self._look())

    async def _look(self) -> None:
        seen = self._time()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if (now := self._time()) != seen:
                seen = now
                self.ring()

    def _time(self) -> int:
        """Return the time of the last notification, 0 before the first."""
        with contextlib.suppress(OSError):
            return self._file.stat().st_mtime_ns
        return 0

    def ring(self) -> None:
        """Wake the waiting tasks of this process."""
        self.count += 1
        self._rung.set()
        self._rung = asyncio.Event()

    def give(self) -> None:
        """Notify every process. The change itself is committed, so a failed notification is no error."""
        with contextlib.suppress(OSError):
            file = os.open(self._file, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            try:
                now = time.time_ns()  # the kernel's own time of a file has steps of some milliseconds
                os.utime(file, ns=(now, now))
            finally:
                os.close(file)

    async def wait(self, seen: int, seconds: float) -> bool:
        """Wait until more than ``seen`` notifications have come, at most ``seconds``; return whether they have."""
        if self.count <= seen:
            await woken(self._rung, seconds)
        return self.count > seen

    def close(self) -> None:
        """Stop listening, and wake the waiting tasks."""
        self._closed = True
        self._deafen()
        self.ring()

    def _deafen(self) -> None:
        if self._watch:
            self._watch.close()
            self._watch = None
        if self._looks:
            self._looks.cancel()
            self._looks = None


def make_folder(folder: Path) -> None:
    """Make the store's folder, readable for root alone. Raises Unavailable, which names the folder."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        hint = remedy(error, folder, "correct the path in the store's URL")
        raise Unavailable(f"store folder {folder} cannot be made: {reason(error)}", hint) from error
