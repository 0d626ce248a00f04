"""Watches by inotify(7): a folder, for files that were moved in or closed after writing; and files, for writes.

A process has one instance for all of its watches, because a user has 128 instances, and a lab has an agent
for each of its hosts. Any thread that reads it distributes the events to the watches.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from linkspan.core.errors import LinkspanError, of_errno

_IN_CLOSE_WRITE, _IN_MOVED_TO, _IN_MASK_ADD = 0x8, 0x80, 0x20000000  # linux/inotify.h
_OVERFLOW = -1
"""Watch number of the event that reports lost events (IN_Q_OVERFLOW)."""
_EVENT = struct.Struct("=iIII")
_libc = ctypes.CDLL(None, use_errno=True)

Told = Callable[[], None]


class _Instance:
    """An inotify instance, and its watchers: several watchers of one file share its number."""

    def __init__(self) -> None:
        self._fd = int(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        if self._fd < 0:
            raise of_errno(ctypes.get_errno(), "make an inotify instance")
        self._watches: dict[int, list[_Watch]] = {}
        self._readers: Counter[asyncio.AbstractEventLoop] = Counter()
        self.lock = threading.Lock()

    def add(self, watch: _Watch, path: Path, mask: int) -> int:
        """Start to watch a path, and return its number. Raises KernelError."""
        with self.lock:
            number = int(_libc.inotify_add_watch(self._fd, os.fsencode(path), mask | _IN_MASK_ADD))
            if number < 0:
                raise of_errno(ctypes.get_errno(), f"watch {path}")
            self._watches.setdefault(number, []).append(watch)
            return number

    def remove(self, watch: _Watch, numbers: Iterable[int]) -> None:
        """Stop watching."""
        with self.lock:
            for number in numbers:
                rest = [one for one in self._watches.pop(number, []) if one is not watch]
                if rest:
                    self._watches[number] = rest
                else:
                    # refused if the watched file is gone: the watch went with it
                    _libc.inotify_rm_watch(self._fd, number)

    def read(self) -> None:
        """Read events, and give each watch its own."""
        with self.lock, contextlib.suppress(BlockingIOError):
            while True:
                told, at = os.read(self._fd, 1 << 16), 0
                while at < len(told):
                    number, _, _, length = _EVENT.unpack_from(told, at)
                    at += _EVENT.size + length
                    self.give(number)

    def give(self, number: int) -> None:
        """Notify the watchers of a number; after lost events notify everybody, for all numbers."""
        for each in list(self._watches) if number == _OVERFLOW else [number]:
            for watch in self._watches.get(each, ()):
                watch.tell(each)

    def listen(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let a loop read, for one more watch."""
        self._readers[loop] += 1
        if self._readers[loop] == 1:
            loop.add_reader(self._fd, self.read)

    def ignore(self, loop: asyncio.AbstractEventLoop) -> None:
        """Stop a loop's reading for one watch."""
        self._readers[loop] -= 1
        if not self._readers[loop]:
            del self._readers[loop]
            loop.remove_reader(self._fd)


_shared: list[_Instance] = []
# A copy of the process makes its own: of an instance of both, each event would reach only one of them.
os.register_at_fork(after_in_child=_shared.clear)


def _instance() -> _Instance:
    """Return the process's instance. Raises KernelError if the user has none left."""
    if not _shared:
        _shared.append(_Instance())
    return _shared[0]


class _Watch:
    """One user's watch: numbers of files, those with events, and the callback in its loop."""

    def __init__(self) -> None:
        self._instance = _instance()
        self._numbers: list[int] = []
        self._told: set[int] = set()
        self._call: tuple[asyncio.AbstractEventLoop, Told] | None = None
        self._due = False

    def add(self, path: Path, mask: int) -> int:
        """Also watch a path, and return its number. Raises KernelError."""
        self._numbers.append(self._instance.add(self, path, mask))
        return self._numbers[-1]

    def tell(self, number: int) -> None:
        """Record a file, and have the user called (by the instance, which is locked; in any thread)."""
        self._told.add(number)
        if self._call is not None and not self._due:
            self._due = True
            self._call[0].call_soon_threadsafe(self._called)

    def _called(self) -> None:
        self._due = False
        if self._call is not None:
            self._call[1]()

    def listen(self, told: Told) -> None:
        """Call ``told`` in the running loop after each event, including those that another watch has read already."""
        loop = asyncio.get_running_loop()
        self._call = (loop, told)
        self._instance.listen(loop)
        if self._told:
            loop.call_soon(self._called)

    def ignore(self) -> None:
        """Stop calling."""
        if self._call is not None:
            (loop, _), self._call = self._call, None
            self._instance.ignore(loop)

    def take(self) -> set[int]:
        """Return the numbers with events since the last call."""
        self._instance.read()
        with self._instance.lock:
            found, self._told = self._told, set()
        return found

    def close(self) -> None:
        """Stop watching."""
        self.ignore()
        self._instance.remove(self, self._numbers)
        self._numbers.clear()


class FolderWatch(_Watch):
    """One folder: calls its user in the running loop when a file was moved in, or was written."""

    def __init__(self, folder: Path, told: Told) -> None:
        """Watch the folder. Raises KernelError."""
        super().__init__()
        self.add(folder, _IN_CLOSE_WRITE | _IN_MOVED_TO)
        self.listen(told)


class WriteWatch:
    """Files whose writers' ends are reported, even without a change, as for settings in /proc/sys.

    It does not report the write itself: most writers truncate a file first, which counts as a write, and has
    no effect on a setting.

    A setting's file is a different one in each network namespace: this watches those of the thread that makes
    it. It does not see a write by another mount of /proc (a process namespace of its own). If the user has no
    instance of inotify left (or no watch), ``problem`` says so, and nothing is reported.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        """Watch the files that exist."""
        self.problem = ""
        self._watch: _Watch | None = None
        self._names: dict[int, str] = {}
        self._open: list[int] = []
        try:
            self._watch = _Watch()
            for file in files:
                with contextlib.suppress(OSError):  # no IPv6 in this kernel
                    # Kept open: the kernel may forget which file it was if nobody has it open.
                    self._open.append(os.open(file, os.O_RDONLY | os.O_CLOEXEC))
                    self._names[self._watch.add(file, _IN_CLOSE_WRITE)] = str(file)
        except LinkspanError as error:
            self.close()
            self.problem = error.message.rpartition(": ")[2]

    def listen(self, told: Told) -> None:
        """Call ``told`` in the running loop when a file was written, if events are reported at all."""
        if self._watch is not None:
            self._watch.listen(told)

    def ignore(self) -> None:
        """Stop calling."""
        if self._watch is not None:
            self._watch.ignore()

    def written(self) -> set[str]:
        """Return the files that were written since the last call."""
        return set() if self._watch is None else {self._names[number] for number in self._watch.take()}

    def close(self) -> None:
        """Stop watching; a second call does nothing."""
        if self._watch is not None:
            self._watch.close()
        for fd in self._open:
            os.close(fd)
        self._watch, self._open = None, []
