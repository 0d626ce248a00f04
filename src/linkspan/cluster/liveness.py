"""Liveness: how long hosts have been silent, and the consequences if the cluster has ``reclaim_after``.

Each host promises in its own record (``Host.withdraws``) to observe that time. After half of it without contact to the
store the host gives out no new address. After all of it the host withdraws from all networks that cross hosts. Only a
host that has promised can be overdue, so a setting that it has not seen cannot cost it its addresses.

Both sides count by CLOCK_BOOTTIME, which nobody can set and which continues while the machine is suspended. The silent
host counts from before it sent the last keepalive (``presence``) that the store accepted. The others count from when
its record was gone or, if they could not watch, from when they could again. So their time always ends later.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Set
from pathlib import Path

import msgspec

from linkspan.core.clock import now
from linkspan.kernel.io.durable_files import boot_id

FILE = "spoke"


class _Spoke(msgspec.Struct):
    boot_id: str
    at: float


class Liveness:
    """The clock of this host's own silence, and of each other host's."""

    def __init__(self, state_dir: Path, gap: float, promise: Callable[[str], float]) -> None:
        """``promise`` returns the seconds that a host's record promises (0: none).

        If this host had no contact for more than ``gap`` seconds, its knowledge of the others' silence is void.
        """
        self._file = state_dir / FILE
        self._gap = gap
        self._promise = promise
        self._since: dict[str, float] = {}
        self._spoke = float("-inf")
        self._stalled_until = float("-inf")
        """When the last silence ended in which this host might give out no address."""
        with contextlib.suppress(OSError, msgspec.DecodeError):
            last = msgspec.json.decode(self._file.read_bytes(), type=_Spoke)
            if last.boot_id == boot_id():
                self._spoke = last.at

    def spoke(self, host: str, at: float) -> None:
        """Record that the store took this host's keepalive, sent at ``at`` (``core.clock.now``)."""
        if at - self._spoke > self._gap:  # the other hosts' keepalives were not seen meanwhile
            self._since.clear()
        promised = self._promise(host)
        if promised and at - self._spoke >= promised / 2:
            self._stalled_until = now()
        self._spoke = at
        if promised:
            with contextlib.suppress(OSError):
                self._file.write_bytes(msgspec.json.encode(_Spoke(boot_id(), at)))

    def hindered(self, host: str, at: float) -> None:
        """Record that the store answered this host's message, sent at ``at`` (``core.clock.now``), but is full.

        Meanwhile no host can reclaim anything, so this host need not withdraw; if it has, it stays withdrawn until the
        store takes its keepalive. Other hosts cannot put their records either, so their silence counts from the end of
        this.
        """
        if not self.withdrawn(host):
            self.spoke(host, at)
        self._since.clear()

    def heard(self, hosts: Set[str], alive: Set[str], at: float) -> None:
        """Record which of all ``hosts`` are ``alive`` by the watch; ``at`` is when it last reported.

        ``at`` is a time of ``core.clock.now``. A watch that has not reported for the gap is stuck: then no host
        counts as silent.
        """
        if now() - at > self._gap:
            self._since.clear()
            return
        self._since = {host: self._since.get(host, now()) for host in hosts - alive}

    def overdue(self, host: str) -> bool:
        """Return whether another host has been silent for as long as it promised."""
        promised = self._promise(host)
        return promised > 0 and host in self._since and now() - self._since[host] >= promised

    def stalled(self, host: str, since: float = float("inf")) -> str:
        """Return why this host may give out no address now, or might not at a moment after ``since``.

        Return '' if it may, and might.
        """
        promised, silent = self._promise(host), now() - self._spoke
        if not promised:
            return ""
        if silent < promised / 2:
            past = "it did not reach the store for some time, and others may have reclaimed its addresses"
            return past if self._stalled_until > since else ""
        length = "since its start" if silent == float("inf") else f"for {silent:.0f} s"
        return f"it has not reached the store {length}, and others may reclaim its addresses after {promised:g} s"

    def withdrawn(self, host: str) -> bool:
        """Return whether this host has been silent for so long that others may have reclaimed its addresses."""
        promised = self._promise(host)
        return promised > 0 and now() - self._spoke >= promised
