"""On-link peers: which peers answer ARP or neighbour solicitation on the underlay's own link.

Plain routes use a peer as a router on the link (``direct=true``, host-gw). A background task asks each peer when its
path appears, and again every minute; nothing waits for the first answer. A single silence changes nothing: the agent
leaves a plain route, or uses it again, after TWICE the same result in a row. After a change of link or address, or if
the path was away, the peer counts as a new neighbour, and is asked again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping

import msgspec

from linkspan.backends import migration
from linkspan.core.addresses import Prefix
from linkspan.core.host_view import HostView, Peer, Standing
from linkspan.core.model import Network
from linkspan.core.supervise import ended, lasting, woken
from linkspan.kernel.io.sockets import Sockets
from linkspan.kernel.probe import arp, underlay

log = logging.getLogger("linkspan.cluster.onlink_peers")

EVERY = 60.0
"""Seconds between two questions to a neighbour that answers; for others the pause doubles up to this."""
SOON = 2.0
"""Seconds until the next question after a changed result."""
TWICE = 2

WORST: tuple[Standing, ...] = ("silent", "lost", "awaited")

Pair = tuple[str, str]
"""A network's name, and the id of another host in it."""
Neighbour = tuple[str, bytes]
"""A link's name, and an address on it."""
Ways = dict[bytes, tuple[str, bool]]
"""By underlay address, the device by which the kernel reaches it, and whether without a router."""


class Heard(msgspec.Struct):
    """Standing of one neighbour; ``against`` counts the last results in a row that contradict it.

    ``due`` is the time of the next question (monotonic clock), ``wait`` the pause before it, both in seconds.
    """

    standing: Standing = "awaited"
    against: int = 0
    due: float = 0.0
    wait: float = SOON

    def take(self, answered: bool, now: float) -> bool:
        """Record the result of one question (all its tries); return whether the standing changed."""
        before = self.standing
        agrees = answered == (before == "answers")
        self.against = 0 if agrees else self.against + 1
        if before == "awaited":
            self.standing = "answers" if answered else "silent"
        elif before == "silent" and answered:
            self.standing = "answers"  # no route uses it yet, so none can flap
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
    """A peer with the kernel's path to it, and its neighbours on the link (none if it is behind a router).

    ``wanted`` has the address from which each neighbour is asked, ``standings`` the standing of each.
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
    """Return a peer with the kernel's path to it, and with the ``known`` standings of its neighbours (worker thread).

    ``ways`` caches the kernel's answers for all peers of one call.
    """
    here, way = view.host.underlay if view.host is not None else None, path(sockets, peer, ways)
    if way is None or here is None:
        return Located(peer)
    device, on_link = way
    peer = msgspec.structs.replace(peer, device=device, on_link=on_link)
    if not on_link:
        return Located(peer)
    needs, _ = migration.needs(view, network, peer)
    neighbours = dict.fromkeys(need.neighbour for need in needs if need.neighbour)
    wanted = {(device, a): here.bound(4 if len(a) == 4 else 6) for a in neighbours}
    standings = {one: known[one] if one in known else _fresh(sockets, one) for one in wanted}
    return Located(msgspec.structs.replace(peer, standing=_worst(standings.values())), wanted, standings)


def path(sockets: Sockets, peer: Peer, ways: Ways) -> tuple[str, bool] | None:
    """Return the kernel's path to a peer as in ``Ways``, None if its record has no address (worker thread).

    ``ways`` caches the kernel's answers for all peers of one call.
    """
    there = peer.host.underlay
    address = there.address(there.outer) if there else None
    if address is None:
        return None
    if address.packed not in ways:
        ways[address.packed] = underlay.way(sockets, address.packed)
    return ways[address.packed]


def _fresh(sockets: Sockets, neighbour: Neighbour) -> Standing:
    """Return the first standing of a neighbour: "answers" if the kernel knows its MAC, so a restart changes no path."""
    return "answers" if underlay.resolved(sockets, *neighbour) else "awaited"


def _worst(standings: Iterable[Standing]) -> Standing:
    """Return the worst standing: a peer counts as a router on the link only if all of its addresses answer."""
    found = set(standings)
    return next((one for one in WORST if one in found), "answers" if found else "awaited")


class Segment:
    """Asks the peers' neighbours on the link, and calls ``changed`` with the pairs whose standing changed."""

    def __init__(self, changed: Callable[[set[Pair]], Awaitable[None]]) -> None:
        self._changed = changed
        self._wanted: dict[Pair, Mapping[Neighbour, bytes]] = {}
        """The neighbours of each pair, with the address from which they are asked."""
        self._heard: dict[Neighbour, Heard] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def standings(self) -> dict[Neighbour, Standing]:
        """Return the present standing of each neighbour, for ``located``."""
        return {neighbour: heard.standing for neighbour, heard in self._heard.items()}

    def note(self, pair: Pair, found: Located | None) -> bool:
        """Ask from now on the neighbours that were ``found`` for a pair (None: the pair is gone).

        Returns whether the standing of one of them changed meanwhile: then the pair must be followed again.
        """
        self._wanted.pop(pair, None)
        if found is None or not found.wanted:
            return False
        self._wanted[pair] = found.wanted
        heard = {one: self._heard.setdefault(one, Heard(was)) for one, was in found.standings.items()}
        return any(heard[one].standing != was for one, was in found.standings.items())

    def start(self) -> None:
        """Start to ask the neighbours."""
        self._task = lasting("asking neighbours", self._ask)

    async def stop(self) -> None:
        """Stop asking."""
        await ended(self._task)

    def look(self) -> None:
        """Ask new neighbours at once: they may have changed."""
        self._wake.set()

    async def _ask(self) -> None:
        while True:
            self._wake.clear()
            await self._round()
            due = min((heard.due for heard in self._heard.values()), default=None)
            wait = None if due is None else max(due - time.monotonic(), 0)
            await woken(self._wake, wait)

    async def _round(self) -> None:
        """Ask all neighbours that are due, on all links at once."""
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
