"""Event log of the agent: attach, detach, lease, heal, peer. It keeps the last events, and followers get new ones.

The events are lines of JSON in a file, so that a restarted agent can show what the last one did. Nothing
depends on them: nobody waits for the file, and if it cannot be written or read, only its lines are lost.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import time
from collections.abc import AsyncIterator
from io import FileIO
from pathlib import Path

import msgspec

KEPT = 1000


class LoggedEvent(msgspec.Struct, frozen=True):
    """One event: ``at`` in seconds since the epoch, ``type`` one word, ``what`` a sentence, ``about`` its object."""

    at: float
    type: str
    what: str
    about: dict[str, str]


class Once:
    """Remembers the last KEPT messages, so that each is reported once."""

    def __init__(self) -> None:
        self._told: dict[str, None] = {}

    def first(self, what: str) -> bool:
        """Return whether this is new, and remember it."""
        if what in self._told:
            return False
        self._told[what] = None
        if len(self._told) > KEPT:
            del self._told[next(iter(self._told))]
        return True


class EventLog:
    """The log: the last KEPT events, in memory and (between KEPT and twice as many) in a file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lines = 0
        self._out: FileIO | None = None
        self._kept: collections.deque[LoggedEvent] = collections.deque(maxlen=KEPT)
        self._followers: set[asyncio.Queue[LoggedEvent | None]] = set()

    def read(self) -> None:
        """Read the last agent's events; leave out a line that was cut off when it ended."""
        with contextlib.suppress(OSError):
            for line in self._file.read_bytes().splitlines():
                with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
                    self._kept.append(msgspec.json.decode(line, type=LoggedEvent))
        self._rewrite()

    def close(self) -> None:
        """Close the file; later events are not written."""
        if self._out is not None:
            self._out.close()
            self._out = None

    def add(self, type_: str, what: str, **about: str) -> None:
        """Record an event and give it to all followers."""
        event = LoggedEvent(time.time(), type_, what, about)
        self._kept.append(event)
        self._write(event)
        for follower in self._followers:
            # a follower that reads too slowly loses events, so that the agent's memory stays bounded
            if not follower.full():
                follower.put_nowait(event)

    def end(self) -> None:
        """End all followers once they have what waits for them: an agent that ends would wait for them."""
        for follower in self._followers:
            if follower.full():
                follower.get_nowait()
            follower.put_nowait(None)

    def _write(self, event: LoggedEvent) -> None:
        if self._out is None:
            return
        if self._lines >= 2 * KEPT:
            self._rewrite()
            return
        with contextlib.suppress(OSError):
            self._out.write(msgspec.json.encode(event) + b"\n")
            self._lines += 1

    def _rewrite(self) -> None:
        """Rewrite the file with the kept events, in one step: a kill during it loses nothing."""
        self.close()
        new = self._file.with_name(f"{self._file.name}.new")
        with contextlib.suppress(OSError):
            new.write_bytes(b"".join(msgspec.json.encode(event) + b"\n" for event in self._kept))
            new.replace(self._file)
            self._lines = len(self._kept)
            self._out = self._file.open("ab", buffering=0)

    def kept(self, type_: str = "", last: int = KEPT, since: float = 0) -> list[LoggedEvent]:
        """Return the last events since a time (seconds since the epoch), oldest first, of all types or of one."""
        found = [h for h in self._kept if type_ in ("", h.type) and h.at >= since]
        return found[len(found) - min(last, len(found)) :]

    async def follow(self, last: int = KEPT, since: float = 0) -> AsyncIterator[LoggedEvent]:
        """Yield the kept events (the last ones, since a time), then new ones, until ``end``."""
        queue: asyncio.Queue[LoggedEvent | None] = asyncio.Queue(KEPT)
        self._followers.add(queue)
        try:
            for event in self.kept(last=last, since=since):
                yield event
            while (new := await queue.get()) is not None:
                yield new
        finally:
            self._followers.discard(queue)
