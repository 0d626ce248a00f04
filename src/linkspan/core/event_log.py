"""What happened: attach, detach, lease, heal, peer. The last ones are kept, and whoever follows gets the rest.

They are lines of JSON in a file, so that an agent that was started anew can tell what the last one did. Nothing
depends on them: the file is not waited for, and one that cannot be written or read costs its lines only.
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


class Happening(msgspec.Struct, frozen=True):
    """One event: ``at`` in seconds since the epoch, ``type`` one word, ``what`` a sentence, ``about`` its object."""

    at: float
    type: str
    what: str
    about: dict[str, str]


class Once:
    """Remembers the last KEPT things that were told, so that each is told once."""

    def __init__(self) -> None:
        self._told: dict[str, None] = {}

    def first(self, what: str) -> bool:
        """Tell whether this is new, and remember it."""
        if what in self._told:
            return False
        self._told[what] = None
        if len(self._told) > KEPT:
            del self._told[next(iter(self._told))]
        return True


class Happenings:
    """The log: the last KEPT events, in memory and (between KEPT and twice as many) in a file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lines = 0
        self._out: FileIO | None = None
        self._kept: collections.deque[Happening] = collections.deque(maxlen=KEPT)
        self._followers: set[asyncio.Queue[Happening]] = set()

    def read(self) -> None:
        """Take over what the last agent wrote; a line that was cut off by its end is left out."""
        with contextlib.suppress(OSError):
            for line in self._file.read_bytes().splitlines():
                with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
                    self._kept.append(msgspec.json.decode(line, type=Happening))
        self._rewrite()

    def close(self) -> None:
        """Close the file; what happens from now on is not in it."""
        if self._out is not None:
            self._out.close()
            self._out = None

    def add(self, type_: str, what: str, **about: str) -> None:
        """Record an event and give it to all followers."""
        happening = Happening(time.time(), type_, what, about)
        self._kept.append(happening)
        self._write(happening)
        for follower in self._followers:
            if not follower.full():  # who reads too slowly loses events rather than our memory
                follower.put_nowait(happening)

    def _write(self, happening: Happening) -> None:
        if self._out is None:
            return
        if self._lines >= 2 * KEPT:
            self._rewrite()
            return
        with contextlib.suppress(OSError):
            self._out.write(msgspec.json.encode(happening) + b"\n")
            self._lines += 1

    def _rewrite(self) -> None:
        """Write what is kept in the file's place, in one step: who is killed here loses nothing."""
        self.close()
        new = self._file.with_name(f"{self._file.name}.new")
        with contextlib.suppress(OSError):
            new.write_bytes(b"".join(msgspec.json.encode(happening) + b"\n" for happening in self._kept))
            new.replace(self._file)
            self._lines = len(self._kept)
            self._out = self._file.open("ab", buffering=0)

    def kept(self, type_: str = "", last: int = KEPT, since: float = 0) -> list[Happening]:
        """Return the last events since a time (seconds since the epoch), oldest first, all or of one type."""
        found = [h for h in self._kept if type_ in ("", h.type) and h.at >= since]
        return found[len(found) - min(last, len(found)) :]

    async def follow(self, last: int = KEPT, since: float = 0) -> AsyncIterator[Happening]:
        """Yield what is kept (the last of it, since a time), then what comes, for as long as it is iterated."""
        queue: asyncio.Queue[Happening] = asyncio.Queue(KEPT)
        self._followers.add(queue)
        try:
            for happening in self.kept(last=last, since=since):
                yield happening
            while True:
                yield await queue.get()
        finally:
            self._followers.discard(queue)
