"""Which peers answer on the underlay's own link: asked by ARP or neighbour solicitation, in the background.

Plain routes lead to a peer as a router on the link (``direct=true``, host-gw). That it is there is asked once when
the way to it comes up, and again every minute; until then nothing waits. A single silence means nothing: a running
path is left, and a lost one taken again, after TWICE the same answer in a row. Another link or address, or a way
that was away meanwhile, is another neighbour, and asked anew.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable

import msgspec

from linkspan.backends import migration
from linkspan.backends.multi_host import bound
from linkspan.core.addresses import Prefix
from linkspan.core.model import HostView, Network, Peer, Standing
from linkspan.core.supervise import lasting, woken
from linkspan.kernel.io.netlink import Sockets
from linkspan.kernel.probe import arp, underlay

log = logging.getLogger("linkspan.cluster.onlink_peers")

EVERY = 60.0
"""Seconds between two questions to one that answers; those that do not are asked ever more seldom, up to these."""
SOON = 2.0
"""Seconds until a surprise is looked at again."""
TWICE = 2

WORST: tuple[Standing, ...] = ("silent", "lost", "awaited")

Pair = tuple[str, str]
"""A network, and another host in it."""
Neighbour = tuple[str, bytes]
"""A link's name, and an address on it."""
Ways = dict[bytes, tuple[str, bool]]
"""By underlay address, the device by which the kernel reaches it, and whether without a router."""


class Heard(msgspec.Struct):
    """What came of asking one neighbour; ``against`` counts the last answers that said otherwise."""

    standing: Standing = "awaited"
    against: int = 0
    due: float = 0.0
    wait: float = SOON

    def take(self, answered: bool, now: float) -> bool:
        """Take in the outcome of a question (all its tries); returns whether the standing changed."""
        before = self.standing
        agrees = answered == (before == "answers")
        self.against = 0 if agrees else self.against + 1
        if before == "awaited":
            self.standing = "answers" if answered else "silent"
        elif before == "silent" and answered:
            self.standing = "answers"  # nothing runs by it yet that could flap
        elif self.against >= TWICE:
            self.standing = "answers" if answered else "lost"
        if self.standing != before:
            self.against = 0
        if answered and self.standing == "answers":
            self.wait = EVERY
        elif self.against or self.standing != before:
            self.wait = SOON
        else:
            self.wait = min(2 * self.wait, EVERY)
        self.due = now + self.wait
        return self.standing != before


class Segment:
    """Tells how peers are reached on the underlay, and ``changed`` for which pairs the answer is another now."""

    def __init__(
        self, sockets: Callable[[], Sockets], changed: Callable[[set[Pair]], Awaitable[None]]
    ) -> None:
        self._sockets = sockets
        self._changed = changed
        self._wanted: dict[Pair, dict[Neighbour, bytes]] = {}
        """The neighbours of each pair, with the address from which they are asked."""
        self._heard: dict[Neighbour, Heard] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def located(self, view: HostView, network: Network, peer: Peer, ways: Ways) -> Peer:
        """Return the peer with the kernel's own answer of how it is reached, and what is known of it on the link.

        For the worker thread; ``ways`` keeps the kernel's answers of one moment.
        """
        there, here = peer.host.underlay, view.host.underlay if view.host is not None else None
        pair = network.name, peer.host.id
        address = there.address(there.outer) if there else None
        if address is None or here is None:
            self.forget(pair)
            return peer
        if address.packed not in ways:
            ways[address.packed] = underlay.way(self._sockets(), address.packed)
        device, on_link = ways[address.packed]
        peer = msgspec.structs.replace(peer, device=device, on_link=on_link)
        if not on_link:
            self.forget(pair)
            return peer
        needs, _ = migration.needs(view, network, peer)
        neighbours = dict.fromkeys(need.neighbour for need in needs if need.neighbour)
        wanted = {(device, a): bound(here, 4 if len(a) == 4 else 6) for a in neighbours}
        for neighbour in wanted.keys() - self._heard.keys():
            # It answered the kernel some time ago: an agent that starts again leaves a running path as it is.
            standing: Standing = "answers" if underlay.resolved(self._sockets(), *neighbour) else "awaited"
            self._heard.setdefault(neighbour, Heard(standing))
        self._wanted[pair] = wanted
        return msgspec.structs.replace(peer, standing=self._standing(wanted))

    def forget(self, pair: Pair) -> None:
        """Ask no more for a pair's sake."""
        self._wanted.pop(pair, None)

    def _standing(self, wanted: Iterable[Neighbour]) -> Standing:
        """Return the worst: a peer is a router on the link by all of its addresses, or not at all."""
        known = (self._heard.get(neighbour) for neighbour in wanted)
        found = {heard.standing if heard is not None else "awaited" for heard in known}
        return next((one for one in WORST if one in found), "answers" if found else "awaited")

    def start(self) -> None:
        """Begin."""
        self._task = lasting("asking neighbours", self._ask)

    async def stop(self) -> None:
        """End it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def look(self) -> None:
        """The neighbours may be others now."""
        self._wake.set()

    async def _ask(self) -> None:
        while True:
            self._wake.clear()
            await self._round()
            due = min((heard.due for heard in list(self._heard.values())), default=None)
            wait = None if due is None else max(due - time.monotonic(), 0)
            await woken(self._wake, wait)

    async def _round(self) -> None:
        """Ask all that are due, link by link."""
        wanted = {
            neighbour: source for pair in list(self._wanted.values()) for neighbour, source in pair.items()
        }
        for gone in self._heard.keys() - wanted.keys():
            del self._heard[gone]
        links: dict[str, dict[bytes, bytes]] = {}
        now = time.monotonic()
        for neighbour, source in wanted.items():
            if self._heard.setdefault(neighbour, Heard()).due <= now:
                links.setdefault(neighbour[0], {})[neighbour[1]] = source
        asking_all = (asyncio.to_thread(arp.answering, link, asked) for link, asked in links.items())
        found = await asyncio.gather(*asking_all)
        now = time.monotonic()
        changed = set()
        for (link, asked), answered in zip(links.items(), found, strict=True):
            for address in asked:
                if self._heard[link, address].take(address in answered, now):
                    changed.add((link, address))
        for link, address in changed:
            log.info(
                "neighbour %s on %s: %s",
                Prefix(address, 0).address,
                link,
                self._heard[link, address].standing,
            )
        if changed:
            await self._changed(
                {pair for pair, wanted in list(self._wanted.items()) if changed & wanted.keys()}
            )
