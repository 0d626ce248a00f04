"""Underlay MACs with which each host's plain packets are accepted: its record's, and for GRACE its former ones.

A host that changes its MAC (a bond fails over, a card is replaced) sends with the new one before the others
have read its record, and packets under way have the old one. Nothing is learnt from the segment: an attacker
who forges packets there answers ARP, too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from linkspan.core.addresses import mac, mac_text
from linkspan.core.model import Host

GRACE = 10.0
"""Seconds for which an old MAC is taken."""


class Stations:
    """``ended`` is called with a host of which fewer MACs are taken from then on."""

    def __init__(self, ended: Callable[[str], Awaitable[None]]) -> None:
        self._ended = ended
        self._until: dict[str, dict[str, float]] = {}
        """By host: its MACs, and until when each is taken; infinity while its record has it."""
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def of(self, host: Host) -> tuple[str, ...]:
        """Return the MACs by which a host's packets are taken now; none where its record says none."""
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
        """Wait for nothing any more."""
        for timer in self._timers.values():
            timer.cancel()
        for task in self._tasks:
            task.cancel()
