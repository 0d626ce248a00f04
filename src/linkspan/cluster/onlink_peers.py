"""On-link peers: which peers answer on the underlay's own link to ARP or neighbour solicitation, in the background.

Plain routes lead to a peer as a router on the link (``direct=true``, host-gw). The agent asks whether it is
there once when the path to it comes up, and again every minute; nothing waits for the first answer. A single
silence means nothing: a path in use is left, and a lost one used again, after TWICE the same answer in a row.
After a change of link or address, or if the path was away, the peer counts as a new neighbour, and is asked
again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping

import msgspec

from linkspan.backends import migration
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
    """The result of asking one neighbour; ``against`` counts the last answers that contradicted it."""

    standing: Standing = "awaited"
    against: int = 0
    due: float = 0.0
    wait: float = SOON

    def take(self, answered: bool, now: float) -> bool:
        """Record the outcome of a request (all its tries); return whether the standing changed."""
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


class Located(msgspec.Struct, frozen=True):
    """A peer with the kernel's answer of how it is reached, and its neighbours on the link (none behind a router).

    ``wanted`` has the address from which each neighbour is asked, ``standings`` what the peer's standing follows from.
    """

    peer: Peer
    wanted: Mapping[Neighbour, bytes] = {}
    standings: Mapping[Neighbour, Standing] = {}


def located(
    sockets: Sockets,
    view: HostView,
    network: Network,
    peer: Peer,
    ways: Ways,
    known: Mapping[Neighbour, Standing],
) -> Located:
    """Return a peer as the kernel reaches it (worker thread), with what is ``known`` of it on the link.

    ``ways`` keeps the kernel's answers of one moment.
    """
    there, here = peer.host.underlay, view.host.underlay if view.host is not None else None
    address = there.address(there.outer) if there else None
    if address is None or here is None:
        return Located(peer)
    if address.packed not in ways:
        ways[address.packed] = underlay.way(sockets, address.packed)
    device, on_link = ways[address.packed]
    peer = msgspec.structs.replace(peer, device=device, on_link=on_link)
    if not on_link:
        return Located(peer)
    needs, _ = migration.needs(view, network, peer)
    neighbours = dict.fromkeys(need.neighbour for need in needs if need.neighbour)
    wanted = {(device, a): here.bound(4 if len(a) == 4 else 6) for a in neighbours}
    standings = {one: known[one] if one in known else _fresh(sockets, one) for one in wanted}
    return Located(msgspec.structs.replace(peer, standing=_worst(standings.values())), wanted, standings)


def _fresh(sockets: Sockets, neighbour: Neighbour) -> Standing:
    """Return how a neighbour begins: an agent that starts again leaves a path as it is that the kernel heard of."""
    return "answers" if underlay.resolved(sockets, *neighbour) else "awaited"


def _worst(standings: Iterable[Standing]) -> Standing:
    """Return the worst: a peer is a router on the link by all of its addresses, or not at all."""
    found = set(standings)
    return next((one for one in WORST if one in found), "answers" if found else "awaited")


class Segment:
    """Asks the peers' neighbours on the link, and tells ``changed`` for which pairs the answer is another now."""

    def __init__(self, changed: Callable[[set[Pair]], Awaitable[None]]) -> None:
        self._changed = changed
        self._wanted: dict[Pair, Mapping[Neighbour, bytes]] = {}
        """The neighbours of each pair, with the address from which they are asked."""
        self._heard: dict[Neighbour, Heard] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def standings(self) -> dict[Neighbour, Standing]:
        """Return what is known of each neighbour now, for ``located``."""
        return {neighbour: heard.standing for neighbour, heard in self._heard.items()}

    def note(self, pair: Pair, found: Located | None) -> bool:
        """Ask the neighbours that were found for a pair, and no others; none where it is no pair any more.

        Returns whether one of them answered, or was lost, meanwhile: then the pair is to be followed again.
        """
        self._wanted.pop(pair, None)
        if found is None or not found.wanted:
            return False
        self._wanted[pair] = found.wanted
        heard = {one: self._heard.setdefault(one, Heard(was)) for one, was in found.standings.items()}
        return any(heard[one].standing != was for one, was in found.standings.items())

    def start(self) -> None:
        """Begin."""
        self._task = lasting("asking neighbours", self._ask)

    async def stop(self) -> None:
        """End it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def look(self) -> None:
        """Look again soon: the neighbours may have changed."""
        self._wake.set()

    async def _ask(self) -> None:
        while True:
            self._wake.clear()
            await self._round()
            due = min((heard.due for heard in self._heard.values()), default=None)
            wait = None if due is None else max(due - time.monotonic(), 0)
            await woken(self._wake, wait)

    async def _round(self) -> None:
        """Ask all that are due, link by link."""
        wanted = {
            neighbour: source for pair in self._wanted.values() for neighbour, source in pair.items()
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
                {pair for pair, wanted in self._wanted.items() if changed & wanted.keys()}
            )
