"""IPsec connections of this host: starts what is down, and ends duplicate associations.

The daemon renews keys and notices silent peers by itself. linkspan asks each second which associations exist (at
once where peers have come), and starts those that are missing: RATE exchanges a second, BURST at once, first those
that have not been tried.
Each host has an order of its own, so that not all begin with the same peer. One of the two hosts starts at once,
the other a little later: if both started at once there would be two associations, and either host might end the
other's. A peer whose turn has not come is counted (`status`), and is no fault. The head of ``backends/ipsec`` says
why associations are not started by the first packet.

A peer behind a NAT starts by itself, because nobody knows its address. But linkspan remembers where it was
last seen, and tries that address once when the association is gone. Otherwise a new daemon here would wait
until the peer notices the silence, which takes it 22 s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from linkspan.backends.ipsec.strongswan_config import LOG
from linkspan.core.desired import Desired
from linkspan.core.errors import LinkspanError
from linkspan.core.event_log import EventLog
from linkspan.core.states.ipsec import ANYWHERE, IpsecChild, IpsecConnection
from linkspan.core.supervise import ended, lasting, until_whole, woken
from linkspan.diagnose.doctor.ipsec_reasons import Reason, reasons, said
from linkspan.kernel.drivers.ipsec import begun_at
from linkspan.kernel.io import vici
from linkspan.kernel.io.vici import Association
from linkspan.kernel.worker import Worker

log = logging.getLogger("linkspan.agent.ipsec_sessions")

EVERY, SOON = 1.0, 0.3
"""Seconds between two queries; the second value applies while an association is missing."""
LATER = 0.5
"""Seconds that the second of two hosts waits for the first."""
LONGEST = 15.0
"""Longest pause between two attempts with a peer that refuses, in seconds."""
SETTLED = 3
"""Age in seconds after which a second association with a peer is superfluous."""
RATE, BURST = 50.0, 100
"""Exchanges that are started in a second, and at once: a host that starts has all its peers to start, and so have
they where a whole cluster does. bench/sessions.py measures what that takes."""
HURRY, REST = 9, 40
"""Pauses are at least so many times as long as a query takes of the processor: a tenth of a core while an association
may come soon, else a fortieth. A thousand peers take 0.1 s (measured)."""
EXPECTED = 16.0
"""Seconds that a missing peer is expected to be up soon, five tries: a large cluster always has a dead host."""
GRACE = 2.0
"""Seconds after which a missing association is reported even without a known reason."""
LOG_LIMIT = 1 << 20
"""Largest size of the daemon's log, in bytes; a larger log is truncated."""


class Wanted(msgspec.Struct, frozen=True):
    """A desired connection with its children."""

    connection: IpsecConnection
    children: tuple[IpsecChild, ...]


class IpsecPeer(msgspec.Struct, frozen=True):
    """A peer: its missing children, since when (monotonic), and the reason, as far as known.

    ``waits``: this host has not tried to start it yet, because its turn has not come. ``since`` counts from its turn.
    """

    connection: IpsecConnection
    missing: tuple[str, ...]
    since: float
    reason: Reason | None
    waits: bool = False


class Try(msgspec.Struct):
    """Attempts for a missing connection: their number, and the time of the next one (monotonic)."""

    next: float
    count: int = 0


class Starts(msgspec.Struct):
    """Exchanges that may be started now: RATE more each second, and never more than BURST."""

    left: float = BURST
    at: float = msgspec.field(default_factory=time.monotonic)

    def refill(self, now: float) -> None:
        """Add what the time since the last call allows."""
        self.left, self.at = min(float(BURST), self.left + (now - self.at) * RATE), now


class Memory(msgspec.Struct):
    """Knowledge of connections from earlier queries, by name: attempts, and last addresses of peers behind a NAT.

    ``waiting`` are those whose turn to be started has not come. ``took`` is the processor time of the last query, in
    seconds.
    """

    tries: dict[str, Try] = msgspec.field(default_factory=dict)
    places: dict[str, tuple[str, int]] = msgspec.field(default_factory=dict)
    starts: Starts = msgspec.field(default_factory=Starts)
    waiting: set[str] = msgspec.field(default_factory=set)
    took: float = 0.0


def hurries(peers: Iterable[IpsecPeer], now: float) -> bool:
    """Return whether a peer may be up soon: it waits for its turn, or is not missing for long."""
    return any(one.missing and (one.waits or now - one.since < EXPECTED) for one in peers)


class IpsecSessions:
    """Watches the connections that this host wants."""

    def __init__(self, worker: Worker, event_log: EventLog) -> None:
        self._worker = worker
        self._event_log = event_log
        self._memory = Memory()
        self._reasons: dict[str, Reason] = {}
        self._known: dict[str, IpsecPeer] = {}
        self._read = -1
        self._asked: list[Wanted] = []
        """What was wanted at the last query."""
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to watch."""
        self._task = lasting("watching IPsec connections", self._watch)

    async def stop(self) -> None:
        """Stop watching; associations stay."""
        await ended(self._task)

    async def _watch(self) -> None:
        while True:
            hurry = True
            with contextlib.suppress(LinkspanError):  # the daemon is gone: healing reports that, and starts another
                await self.look()
                hurry = hurries(self._known.values(), time.monotonic())
            took = self._memory.took
            pause = max(SOON, HURRY * took) if hurry else max(EVERY, REST * took)
            await self._rest(pause if self._asked else None)

    def soon(self) -> None:
        """Look at once if other connections are wanted than at the last query: peers may have come."""
        self._wake.set()

    async def _rest(self, seconds: float | None) -> None:
        """Sleep for so long (None: without an end), or until other connections are wanted."""
        loop = asyncio.get_running_loop()
        end = None if seconds is None else loop.time() + until_whole(seconds)
        while await woken(self._wake, None if end is None else end - loop.time()):
            self._wake.clear()
            if await self._wanted() != self._asked:
                return

    async def _wanted(self) -> list[Wanted]:
        return await self._worker.run_brief(wanted_of, self._worker.machine.reconciler.desired)

    async def look(self) -> None:
        """Ask the daemon for its associations, and start or end them as needed. Raises Unavailable."""
        wanted = self._asked = await self._wanted()
        for gone in self._known.keys() - {one.connection.name for one in wanted}:
            for table in (self._known, self._memory.tries, self._memory.places, self._reasons):
                table.pop(gone, None)
        if wanted:
            control = self._worker.machine.ike
            found = await asyncio.to_thread(_stepped, control, wanted, self._memory)
            self._note(wanted, found)

    def _note(self, wanted: Iterable[Wanted], found: Sequence[Association]) -> None:
        """Record which peers are up, and report changes."""
        self._reasons = reasons(said(self._news()), self._reasons)
        there = _by_connection(found)
        for one in wanted:
            connection = one.connection
            absent = missing(one, there.get(connection.name, ()))
            before = self._known.get(connection.name)
            if not absent:
                self._reasons.pop(connection.name, None)
            again = before is not None and before.missing and not before.waits
            since = before.since if before is not None and again else time.monotonic()
            waits = connection.name in self._memory.waiting
            now = IpsecPeer(connection, absent, since, self._reasons.get(connection.name), waits)
            self._known[connection.name] = now
            if bool(absent) != bool(before.missing if before is not None else True):
                what = f"IPsec with host {connection.peer} "
                what += "is up" if not absent else f"is down{_because(now)}"
                self._event_log.add("ipsec", what, peer=connection.peer)

    def _news(self) -> str:
        """Return the daemon's new log text since the last query; the first query skips old text."""
        path = self._worker.machine.ike.with_name(LOG)
        try:
            with path.open("r+b") as file:
                size = file.seek(0, os.SEEK_END)
                begin = self._read if 0 <= self._read <= size else max(0, size - (1 << 14))
                file.seek(begin)
                text = file.read(size - begin)
                if size > LOG_LIMIT:
                    file.truncate(0)  # the daemon opens the log for append, so truncating is safe
                    size = 0
                self._read = size
        except OSError:
            return ""
        return text.decode(errors="replace")

    def all(self) -> list[IpsecPeer]:
        """Return the peers as last observed."""
        return sorted(self._known.values(), key=lambda one: one.connection.peer)

    def told(self) -> list[dict[str, str]]:
        """Return the peers that are down, as `status` shows them.

        Leave out those that have only just started, and those whose turn has not come.
        """
        return [
            {"network": "", "host": one.connection.peer, "why": f"IPsec is down{_because(one)}"}
            for one in self.all()
            if one.missing
            and not one.waits
            and (one.reason is not None or time.monotonic() - one.since > GRACE)
        ]

    def counts(self) -> dict[str, int]:
        """Return the numbers of peers: all, those whose associations are up, and those whose turn has not come."""
        known = self._known.values()
        up, waiting = sum(not one.missing for one in known), sum(one.waits for one in known)
        return {"peers": len(known), "up": up, "waiting": waiting}


def wanted_of(desired: Desired) -> list[Wanted]:
    """Return the connections that this host wants."""
    states = desired.states((IpsecConnection, IpsecChild)).values()
    children: dict[str, list[IpsecChild]] = {}
    for state in states:
        if isinstance(state, IpsecChild):
            children.setdefault(state.connection, []).append(state)
    return [
        Wanted(one, tuple(children.get(one.name, ()))) for one in states if isinstance(one, IpsecConnection)
    ]


def stepped(asked: vici.Session, wanted: Iterable[Wanted], memory: Memory) -> list[Association]:
    """Start and end connections as needed, and return the associations that existed before."""
    found = vici.associations(asked)
    there = _by_connection(found)
    loaded: dict[str, vici.Loaded] | None = None
    now = time.monotonic()
    due: list[tuple[Wanted, list[str]]] = []
    for one in wanted:
        name, mine = one.connection.name, there.get(one.connection.name, [])
        for number in superfluous(one, mine):
            _tell(asked.terminate, {"ike-id": str(number), "timeout": "-1"})
        absent = missing(one, mine)
        seen = [(a.remote, a.port) for a in mine if a.established]
        if seen and one.connection.remote == ANYWHERE:
            memory.places[name] = seen[-1]
        if not absent:
            memory.tries.pop(name, None)
            continue
        # A daemon that has just started gets secrets first and connections afterwards. Requests before that
        # fail, and the last address of a peer behind a NAT is tried only once.
        loaded = vici.connections(asked) if loaded is None else loaded
        ready = [child for child in absent if name in loaded and child in loaded[name].children]
        if not ready:
            continue
        memory.tries.setdefault(name, Try(next=now if one.connection.first else now + LATER))
        if not under_way(mine) and (one.connection.remote != ANYWHERE or name in memory.places):
            due.append((one, ready))
    _start(asked, due, memory, now)
    return found


def _start(asked: vici.Session, due: Iterable[tuple[Wanted, list[str]]], memory: Memory, now: float) -> None:
    """Start as many of the missing children as the rate allows, first those of peers that have not been tried."""
    memory.starts.refill(now)
    memory.waiting.clear()
    for one, ready in sorted(due, key=lambda pair: _turn(pair[0].connection, memory)):
        name = one.connection.name
        state = memory.tries[name]
        if now < state.next or memory.starts.left <= 0:
            if not state.count:
                memory.waiting.add(name)
            continue
        state.count += 1
        state.next = now + min(2.0 ** (state.count - 2), LONGEST)
        memory.starts.left -= len(ready)
        if place := memory.places.pop(name, None):
            _tell(asked.load_conn, {name: begun_at(one.connection, one.children, *place)})
        for child in ready:
            _tell(asked.initiate, {"ike": name, "child": child, "timeout": "-1"})


def _turn(connection: IpsecConnection, memory: Memory) -> tuple[int, int]:
    """Return the place of a peer in this host's own order."""
    own = zlib.crc32(f"{connection.me} {connection.peer}".encode())
    return memory.tries[connection.name].count, own


def _by_connection(found: Iterable[Association]) -> dict[str, list[Association]]:
    there: dict[str, list[Association]] = {}
    for one in found:
        there.setdefault(one.connection, []).append(one)
    return there


def _because(one: IpsecPeer) -> str:
    if one.reason is None:
        return f" (missing associations: {len(one.missing)})" if one.missing else ""
    peer = one.connection.peer
    return f": {one.reason.why.replace('{peer}', peer)}; {one.reason.fix.replace('{peer}', peer)}"


def missing(one: Wanted, mine: Iterable[Association]) -> tuple[str, ...]:
    """Return the names of the missing children."""
    there = {child.name for a in mine if a.established for child in a.children if child.installed}
    return tuple(child.name for child in one.children if child.name not in there)


def under_way(mine: Iterable[Association]) -> bool:
    """Return whether an association is being established now."""
    return any(a.state in ("CREATED", "CONNECTING") or any(not c.installed for c in a.children) for a in mine)


def superfluous(one: Wanted, mine: Sequence[Association]) -> list[int]:
    """Return the superfluous associations: the first of the two hosts ends them once the newest is in use."""
    standing = sorted((a for a in mine if a.established), key=lambda a: a.number)
    if not one.connection.first or len(standing) < 2:
        return []
    newest = standing[-1]
    if missing(one, [newest]) or (newest.age or 0) < SETTLED:
        return []
    return [a.number for a in standing[:-1]]


def _stepped(control: Path, wanted: Sequence[Wanted], memory: Memory) -> list[Association]:
    began = time.thread_time()
    try:
        with vici.session(control) as asked:
            return stepped(asked, wanted, memory)
    finally:
        memory.took = time.thread_time() - began


def _tell(act: Callable[[dict[str, str]], object], message: dict[str, Any]) -> None:
    """Send a command to the daemon, whose state may have changed since the query."""
    try:
        found = act(message)
        for _ in found if hasattr(found, "__iter__") and not isinstance(found, dict) else ():
            pass
    except vici.Refused as error:
        log.debug("%s: %s", message, error)
