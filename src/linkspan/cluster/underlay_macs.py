"""Underlay MACs with which each host's plain packets are accepted: those of its record, and former ones for GRACE.

A host may change its MAC (a bond fails over, a card is replaced). Packets that it has already sent carry the old one,
so that stays accepted for a while. No MAC is learnt from the segment: an attacker who forges packets there can answer
ARP, too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from linkspan.core.addresses import mac, mac_text
from linkspan.core.model import Host

GRACE = 10.0
"""Seconds for which a former MAC is still accepted."""


class Stations:
    """The accepted MACs of each host; ``ended`` is called with a host's id when a former MAC ends."""

    def __init__(self, ended: Callable[[str], Awaitable[None]]) -> None:
        self._ended = ended
        self._until: dict[str, dict[str, float]] = {}
        """By host id: its MACs, and until when each is accepted (monotonic clock); infinity while its record has it."""
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def of(self, host: Host) -> tuple[str, ...]:
        """Return the MACs with which a host's packets are accepted now, sorted; none if its record has none."""
        told = {mac_text(mac(text)) for text in host.underlay.macs} if host.underlay is not None else set()
        if not told:
            self._until.pop(host.id, None)
            return ()
        now, before = time.monotonic(), self._until.get(host.id, {})
        old = {one: min(until, now + GRACE) for one, until in before.items() if one not in told}
        old = {one: until for one, until in old.items() if until > now}
        self._until[host.id] = dict.fromkeys(told, float("inf")) | old
        if old:
            self._wake(host.id, min(old.values()) - now)
        return tuple(sorted(self._until[host.id]))

    def _wake(self, host: str, seconds: float) -> None:
        if host in self._timers:
            self._timers[host].cancel()
        self._timers[host] = asyncio.get_running_loop().call_later(seconds, self._end, host)

    def _end(self, host: str) -> None:
        del self._timers[host]
        task = asyncio.ensure_future(self._ended(host))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stop(self) -> None:
        """Cancel all timers and tasks."""
        for timer in self._timers.values():
            timer.cancel()
        for task in self._tasks:
            task.cancel()
