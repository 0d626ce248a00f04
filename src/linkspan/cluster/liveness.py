"""Liveness: how long hosts have been silent, and the consequences if the cluster has ``reclaim_after``.

A host promises in its own record (``Host.withdraws``) to keep to that time. If it last reached the store so
many seconds ago, it has withdrawn from all networks that cross hosts; after half of that time it gives no new
address. Only a host that has promised can be overdue for others, so a setting that it did not see cannot
surprise it.

Both sides count by CLOCK_BOOTTIME, which nobody sets and which continues in a suspended machine. The silent
host counts from before it sent the last keepalive (``presence``) that the store accepted. The others count
from when its record was gone or, if they could not watch, from when they could again: so their time always
ends later.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from linkspan.core.clock import now
from linkspan.kernel.io.durable_files import boot_id

FILE = "spoke"


class _Spoke(msgspec.Struct):
    boot_id: str
    at: float


class Silence:
    """The clock of this host's own silence, and of each other host's."""

    def __init__(self, state_dir: Path, gap: float, promise: Callable[[str], float]) -> None:
        """``promise`` tells what a host's record promises (seconds, 0: nothing); after ``gap`` we were silent."""
        self._file = state_dir / FILE
        self._gap = gap
        self._promise = promise
        self._since: dict[str, float] = {}
        self._spoke = float("-inf")
        with contextlib.suppress(OSError, msgspec.DecodeError):
            last = msgspec.json.decode(self._file.read_bytes(), type=_Spoke)
            if last.boot_id == boot_id():
                self._spoke = last.at

    def spoke(self, host: str, at: float) -> None:
        """Record that the store took this host's word, which was sent at a time of ``core.clock.now``."""
        if at - self._spoke > self._gap:  # what others said meanwhile we did not hear
            self._since.clear()
        self._spoke = at
        if self._promise(host):
            with contextlib.suppress(OSError):
                self._file.write_bytes(msgspec.json.encode(_Spoke(boot_id(), at)))

    def hindered(self, host: str, at: float) -> None:
        """Record that the store answered a word of this host, sent at a time of ``core.clock.now``: its quota is full.

        Nobody can reclaim anything meanwhile, so this host need not withdraw (one that has, stays so until its word is
        taken). Nor can others say that they live: their silence counts from when the store takes words again.
        """
        if not self.withdrawn(host):
            self.spoke(host, at)
        self._since.clear()

    def heard(self, hosts: set[str], alive: set[str], at: float) -> None:
        """Record who lives, of all hosts, as the watch has told; ``at`` is when it last told anything.

        It tells of this host's own words, if of nobody else's: where it does not, it is stuck, and nobody is silent.
        """
        if now() - at > self._gap:
            self._since.clear()
            return
        self._since = {host: self._since.get(host, now()) for host in hosts - alive}

    def overdue(self, host: str) -> bool:
        """Return whether another host has been silent for as long as it promised."""
        promised = self._promise(host)
        return promised > 0 and host in self._since and now() - self._since[host] >= promised

    def stalled(self, host: str) -> str:
        """Return why this host gives no address now, '' if it may."""
        promised, silent = self._promise(host), now() - self._spoke
        if not promised or silent < promised / 2:
            return ""
        length = "not since its start" if silent == float("inf") else f"not for {silent:.0f} s"
        return f"it has reached the store {length}, and others may reclaim its addresses after {promised:g} s"

    def withdrawn(self, host: str) -> bool:
        """Return whether this host has been silent for so long that others may have its addresses."""
        promised = self._promise(host)
        return promised > 0 and now() - self._spoke >= promised
