"""Times of a container's network calls, seen from outside of the agent: for bench/runtimes.py --profile, no program.

A plugin that an engine executes is timed from its exec to its end, by fanotify(7). Nothing is put between the engine
and the plugin, because a plugin looks at the process that started it. An engine that calls a socket gets a relay
there. All times are in nanoseconds, of the clock that `time.perf_counter_ns` has (CLOCK_MONOTONIC).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import socket
import statistics
import struct
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

FAN_CLOEXEC, FAN_NONBLOCK, FAN_MARK_ADD, FAN_OPEN_EXEC = 1, 2, 1, 0x1000  # linux/fanotify.h
EVENT = struct.Struct("=IBBHQii")
"""struct fanotify_event_metadata: length, version, reserved, length of this, mask, descriptor, process."""
WHOLE, CALLS = "the whole command", "all calls of the network plugin"
ENGINE = "left: the engine's own"
BEFORE, BETWEEN, AFTER = "before the first call", "between the calls", "after the last call"
UNKNOWN = "a call that does not reach the agent"

_libc = ctypes.CDLL(None, use_errno=True)


class Span(NamedTuple):
    """Something with a begin and an end, in nanoseconds."""

    what: str
    begun: int
    ended: int


class Part(NamedTuple):
    """A part of one command: how often it happened, how long it took together, and the agent's share of that, in ns."""

    times: int
    spent: int
    agent: int


# ------------------------------------------------------------------ dividing


def covered(spans: Iterable[Span], begun: int, ended: int) -> int:
    """Return for how long at least one of the spans is under way, between two times."""
    total, last = 0, begun
    for span in sorted(spans, key=lambda span: span.begun):
        total += max(min(span.ended, ended) - max(span.begun, last), 0)
        last = max(last, span.ended)
    return total


def named(calls: Iterable[Span], agent: Sequence[Span]) -> list[Span]:
    """Return the calls with the name of what the agent was asked meanwhile, where they have none."""

    def name(call: Span) -> str:
        asked = (span.what for span in agent if call.begun <= span.begun < call.ended)
        return call.what or next(asked, UNKNOWN)

    return [call._replace(what=name(call)) for call in calls]


def divided(run: Span, calls: Sequence[Span], agent: Sequence[Span]) -> dict[str, Part]:
    """Divide the time of one command among the calls that were made meanwhile, and the engine.

    Calls that overlap count once in the sum of all calls, and so in what is left for the engine.
    """
    inner = sorted((c for c in calls if run.begun <= c.begun < run.ended), key=lambda call: call.begun)

    def part(some: Sequence[Span]) -> Part:
        own = [a for a in agent if any(call.begun <= a.begun < call.ended for call in some)]
        return Part(
            len(some), covered(some, run.begun, run.ended), covered(own, run.begun, run.ended)
        )

    whole, called = run.ended - run.begun, part(inner)
    found = {WHOLE: Part(1, whole, called.agent)}
    for what in dict.fromkeys(call.what for call in inner):
        found[what] = part([call for call in inner if call.what == what])
    found |= {CALLS: called, ENGINE: Part(1, whole - called.spent, 0)}
    if inner:
        first, last = inner[0].begun, min(max(call.ended for call in inner), run.ended)
        found[f"{ENGINE}, {BEFORE}"] = Part(1, first - run.begun, 0)
        found[f"{ENGINE}, {BETWEEN}"] = Part(1, last - first - covered(inner, first, last), 0)
        found[f"{ENGINE}, {AFTER}"] = Part(1, run.ended - last, 0)
    return found


def medians(divisions: Sequence[dict[str, Part]]) -> dict[str, tuple[float, float, float]]:
    """Return the median of each part of all commands: times, milliseconds, and the agent's milliseconds."""
    rows = dict.fromkeys(what for division in divisions for what in division)
    nothing = Part(0, 0, 0)

    def median(what: str, column: int) -> float:
        return statistics.median(division.get(what, nothing)[column] for division in divisions)

    return {what: (median(what, 0), median(what, 1) / 1e6, median(what, 2) / 1e6) for what in rows}


# ------------------------------------------------------------------ watching


class Executions:
    """Spans from the exec of a program's file to the end of its process, whoever starts it."""

    def __init__(self, file: Path) -> None:
        self._spans: list[Span] = []
        self.running: dict[int, int] = {}
        """When each process that runs now began, by its pidfd."""
        self._fd = _libc.fanotify_init(FAN_CLOEXEC | FAN_NONBLOCK, os.O_RDONLY | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "fanotify_init")
        mask, path = ctypes.c_uint64(FAN_OPEN_EXEC), str(file).encode()
        if _libc.fanotify_mark(self._fd, FAN_MARK_ADD, mask, -1, path):
            raise OSError(ctypes.get_errno(), f"fanotify_mark: {file}")
        self._stop = os.eventfd(0)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def watched(self) -> Iterator[list[Span]]:
        """Give the list of spans, which is complete after the block."""
        try:
            yield self._spans
        finally:
            os.eventfd_write(self._stop, 1)
            self._thread.join()
            for fd in (self._fd, self._stop, *self.running):
                os.close(fd)

    def _watch(self) -> None:
        waiting = select.poll()
        for fd in (self._fd, self._stop):
            waiting.register(fd, select.POLLIN)
        stopped = False
        while True:
            ready, now = [fd for fd, _ in waiting.poll()], time.perf_counter_ns()
            for fd in ready:
                if fd == self._stop:
                    stopped = True
                    waiting.unregister(fd)
                elif fd == self._fd:
                    for pidfd in self._started(now):
                        waiting.register(pidfd, select.POLLIN)
                else:
                    self._spans.append(Span("", self.running.pop(fd), now))
                    waiting.unregister(fd)
                    os.close(fd)
            if stopped and not self.running:
                return

    def _started(self, now: int) -> Iterator[int]:
        """Yield a pidfd of each process that has just begun to execute the file."""
        data = os.read(self._fd, 4096)
        for *_, fd, pid in EVENT.iter_unpack(data):
            os.close(fd)
            with contextlib.suppress(ProcessLookupError):
                pidfd = os.pidfd_open(pid)
                self.running[pidfd] = now
                yield pidfd


class Relay:
    """Unix socket of an engine's plugin, which passes everything on to the agent's and times each request."""

    def __init__(self, front: Path, behind: Path) -> None:
        """Listen at ``front``; the agent listens at ``behind``."""
        self._behind = behind
        self._spans: list[Span] = []
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(front))
        self._listening.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    @contextlib.contextmanager
    def watched(self) -> Iterator[list[Span]]:
        """Give the list of spans; after the block the relay takes no more connections."""
        try:
            yield self._spans
        finally:
            self._listening.shutdown(socket.SHUT_RDWR)
            self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # it was closed
            while True:
                engine, _ = self._listening.accept()
                threading.Thread(target=self._pass, args=(engine,), daemon=True).start()

    def _pass(self, engine: socket.socket) -> None:
        """Pass on what comes from either side of a connection, on which one request follows the other's answer."""
        request = Span("", 0, 0)
        with engine, socket.socket(socket.AF_UNIX) as agent, contextlib.suppress(OSError):
            agent.connect(str(self._behind))
            while True:
                for one in select.select([engine, agent], [], [])[0]:
                    now, data = time.perf_counter_ns(), one.recv(1 << 16)
                    if not data:
                        return
                    if one is engine:
                        if data.startswith(b"POST /"):
                            request = Span(data.split()[1].decode().removeprefix("/"), now, 0)
                        agent.sendall(data)
                        continue
                    engine.sendall(data)
                    if request.ended:  # a further part of the same answer
                        self._spans.remove(request)
                    request = request._replace(ended=time.perf_counter_ns())
                    self._spans.append(request)
