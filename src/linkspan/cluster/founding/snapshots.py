"""Snapshots of linkspan's own etcd: taken online, checked before they count, and kept in the state folder.

A file is what `etcdctl snapshot save` writes: etcd's database, and behind it the SHA-256 of it. So `etcdutl snapshot
status` and `restore` read it. It has the hashes of all hosts' passwords and every record, so it is root's alone. It has
no key of the authorities: they are files of the voters.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import stat
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import msgspec

from linkspan.cluster.founding.trust_files import Voter
from linkspan.core.errors import Invalid, LinkspanError, Unavailable
from linkspan.core.remedies import reason, remedy
from linkspan.kernel.io.exchange import sync
from linkspan.store.etcd_gateway import Gateway
from linkspan.store.etcd_wire import Header, StreamError, decode
from linkspan.store.vault import Vault

log = logging.getLogger("linkspan.cluster.founding.snapshots")

FOLDER = "snapshots"
"""The folder of automatic snapshots, in the state folder."""
EVERY = 12 * 3600.0
"""Seconds between two automatic snapshots of a voter."""
KEPT = 7
"""Automatic snapshots that are kept."""
LOOK_EVERY, FIRST_LOOK = 300.0, 30.0
"""Seconds between two checks whether one is due, and until the first: an agent that starts has other work."""
AHEAD = 3600.0
"""Seconds by which a snapshot's time may be ahead of the clock, which somebody may have set back a little."""
SILENCE = 20.0
"""Seconds without a byte of a snapshot after which it has failed."""
TURN, TURN_SECONDS = "snapshot-turn", 600.0
"""The vault's key that says which voter takes a snapshot, and how long its turn lasts at most: one at a time reads."""
SPARE = 64 << 20
"""Bytes that an automatic snapshot leaves free on the disk: the agent's own files are there, too."""
PREFIX, SUFFIX = "linkspan-", ".db"
UNFINISHED = ".linkspan-snapshot-"
"""How the name of a file begins that is being written."""
SUM, PAGE = 32, 512
"""Bytes of the SHA-256 at the end, and what the database before it is a multiple of (etcd's snapshot format)."""
_AGAIN = "take it again, or take an earlier one: nothing was changed"


class _Part(msgspec.Struct, frozen=True):
    header: Header = Header()
    remaining_bytes: int = 0
    blob: bytes = b""


class _Line(msgspec.Struct, frozen=True):
    result: _Part | None = None
    error: StreamError | None = None


class Taken(msgspec.Struct, frozen=True):
    """A snapshot: its file, and its size in bytes."""

    file: str
    bytes: int


class Turn(msgspec.Struct, frozen=True):
    """The voter that takes a snapshot now, and until when (seconds since the epoch) the others wait for it."""

    host: str
    until: float


async def take(gateway: Gateway, file: Path) -> Taken:
    """Write a snapshot of one etcd, as its root, to a file for root alone. Raises Unavailable, and then leaves nothing.

    The file appears under its name after it was checked, in place of an earlier one.
    """
    new = ""
    try:
        fd, new = tempfile.mkstemp(prefix=UNFINISHED, dir=file.parent)
        with os.fdopen(fd, "wb") as output:
            await _stream(gateway, output.write)
            output.flush()
            await asyncio.to_thread(os.fsync, output.fileno())
        size = await asyncio.to_thread(check, Path(new), "what etcd sent")
        if file.is_dir():
            raise Unavailable(f"snapshot {file}: it is a folder", "name a file")
        await asyncio.to_thread(_name, Path(new), file)
    except OSError as error:
        hint = remedy(error, file, "name another file")
        raise Unavailable(f"snapshot {file} cannot be written: {reason(error)}", hint) from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(new)  # noqa: PTH108 - '' is no path
    return Taken(str(file), size)


def _name(new: Path, file: Path) -> None:
    """Give a finished file its name, also after a power failure."""
    new.rename(file)
    sync(file.parent)


async def _stream(gateway: Gateway, write: Callable[[bytes], object]) -> None:
    """Write etcd's database as it comes. Raises Unavailable if it does not come whole."""
    endpoint = gateway.endpoint
    with contextlib.closing(await gateway.stream(endpoint, "/v3/maintenance/snapshot", {}, SILENCE)) as stream:
        while True:
            try:
                async with asyncio.timeout(SILENCE):
                    line = await stream.next()
            except TimeoutError as error:
                raise gateway.failure(endpoint, error, SILENCE) from error
            told = decode(line, _Line)
            if told.result is None:
                why = told.error.message if told.error else "it sent something else"
                raise Unavailable(f"store etcd {endpoint}: the snapshot broke off: {why}", "try again")
            write(told.result.blob)
            if not told.result.remaining_bytes and len(told.result.blob) == SUM:
                return


def check(file: Path, called: str = "") -> int:
    """Return a snapshot's size in bytes if it is whole. Raises Invalid with the reason; slow, so for a thread."""
    name = called or f"snapshot {file}"
    try:
        with os.fdopen(os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as source:  # a pipe never comes
            found = os.fstat(source.fileno())
            size = found.st_size if stat.S_ISREG(found.st_mode) else 0
            if size % PAGE != SUM:
                why = f"its {size} bytes do not end with a checksum"
                raise Invalid(f"{name}: it is cut short, or no snapshot of etcd: {why}", _AGAIN)
            digest, left = hashlib.sha256(), size - SUM
            while left and (some := source.read(min(left, 1 << 20))):
                digest.update(some)
                left -= len(some)
            if source.read() != digest.digest():
                raise Invalid(f"{name}: it is damaged: its content does not match the checksum at its end", _AGAIN)
    except OSError as error:
        raise Invalid(f"{name} cannot be read: {reason(error)}", "give the path of a snapshot on this host") from error
    return size


def kept(folder: Path) -> list[Path]:
    """Return the automatic snapshots in a folder, the oldest first: their names have their times."""
    try:
        return sorted(folder.glob(f"{PREFIX}*{SUFFIX}"))
    except OSError:
        return []


def age(folder: Path, now: float) -> float | None:
    """Return the age of the last automatic snapshot in seconds, None if there is none; ``now`` is the time.

    One of the future was taken with a wrong clock: it says nothing about the last hours, so it does not count.
    """
    for file in reversed(kept(folder)):
        with contextlib.suppress(OSError):
            if (at := file.stat().st_mtime) <= now + AHEAD:
                return max(now - at, 0.0)
    return None


def spent(files: Sequence[Path], last: Path) -> list[Path]:
    """Return which automatic snapshots are not kept, once ``last`` was taken. Pure.

    While the clock is wrong, the others seem to be of the future: they are counted apart, so the good ones outlive it.
    """
    earlier = [one for one in files if one.name <= last.name]
    return [*earlier[:-KEPT], *[one for one in files if one.name > last.name][:-KEPT]]


class Keeper:
    """Takes a voter's automatic snapshots, one voter at a time."""

    def __init__(
        self,
        state_dir: Path,
        host: str,
        voter: Callable[[], Voter | None],
        vault: Callable[[Voter], AbstractAsyncContextManager[Vault]],
    ) -> None:
        """``voter`` returns this host's part as a voter now; ``vault`` opens the vault at its own etcd."""
        self.folder = state_dir / FOLDER
        self.problem = ""
        """Why the last one failed."""
        self._host = host
        self._voter = voter
        self._vault = vault

    @property
    def acts(self) -> bool:
        """Return whether this host is a voter, which takes snapshots."""
        return self._voter() is not None

    async def follow(self) -> None:
        """Take a snapshot whenever one is due, for as long as the agent runs."""
        await asyncio.sleep(FIRST_LOOK)
        while True:
            await self.look()
            await asyncio.sleep(LOOK_EVERY)

    async def look(self) -> None:
        """Take a snapshot if one is due and no other voter takes one; remember the reason if it fails."""
        old, voter = age(self.folder, time.time()), self._voter()
        if voter is None or (old is not None and old < EVERY):
            return
        try:
            async with self._vault(voter) as vault:
                await self._in_turn(vault)
        except LinkspanError as error:
            if self.problem != error.told:
                log.warning("no automatic snapshot was taken: %s", error.told)
            self.problem = error.told

    async def _in_turn(self, vault: Vault) -> None:
        turn, revision = await vault.get(TURN, Turn)
        now = time.time()
        if turn is not None and turn.host != self._host and now < turn.until <= now + TURN_SECONDS:
            return
        if not await vault.put({TURN: (Turn(self._host, now + TURN_SECONDS), revision)}):
            return
        try:
            await self._take(vault.gateway)
        finally:
            _, revision = await vault.get(TURN, Turn)
            await vault.put({TURN: (None, revision)})
        self.problem = ""

    async def _take(self, gateway: Gateway) -> None:
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            for left in self.folder.glob(f"{UNFINISHED}*"):
                left.unlink(missing_ok=True)
            last = max((file.stat().st_size for file in kept(self.folder)[-1:]), default=0)
            disk = os.statvfs(self.folder)
        except OSError as error:
            hint = remedy(error, self.folder, "the agent's state folder is needed")
            raise Unavailable(f"{self.folder}: {reason(error)}", hint) from error
        if (free := disk.f_bavail * disk.f_frsize) < last + SPARE:
            what = f"{self.folder}: its disk has {free >> 20} MiB left, and the agent's own files need them"
            raise Unavailable(what, "free some space there; linkspan cluster snapshot FILE writes to another disk")
        moment = time.strftime("%Y-%m-%dT%H-%M-%SZ", time.gmtime())
        new = self.folder / f"{PREFIX}{moment}{SUFFIX}"
        await take(gateway, new)
        for file in spent(kept(self.folder), new):
            with contextlib.suppress(OSError):
                file.unlink()
