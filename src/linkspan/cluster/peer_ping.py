"""Peer ping: pings each peer's own address in each network every few seconds, on the path of containers' packets.

A host sends at most RATE pings a second, so that what they cost does not grow with the cluster. With more than a
hundred addresses a round takes longer, and so does the time after which a peer counts as silent.

The pings measure the path, too: round trip and loss (`path_quality`).

Liveness in the store shows that a peer's agent runs. It does not show that packets reach the peer: a broken cable, a
firewall in between, or a partition of the underlay alone does not change the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import time
from collections.abc import Collection

import msgspec

from linkspan.cluster import peer_silence
from linkspan.cluster.path_quality import PathQuality
from linkspan.core.clock import loop_time
from linkspan.core.errors import KernelError
from linkspan.core.event_log import EventLog
from linkspan.core.host_view import Peer
from linkspan.core.supervise import ended, lasting, pause
from linkspan.kernel.probe.ping import Echo

log = logging.getLogger("linkspan.cluster.peer_ping")

EVERY = 2.0
"""Seconds between two rounds, if RATE allows it."""
RATE = 50
"""Most pings a second: one costs 16 microseconds, and so does its answer."""
SILENT = 5.0
"""Seconds without an answer after which a peer counts as silent, if it did not answer TWICE: with EVERY and RATE,
`status` names it within 10 s if there are up to 150 addresses, and within 2 rounds if there are more."""
TWICE = 2
"""One lost ping proves nothing, however long a round takes."""
CONFIRMED = 0.3
"""Seconds that a peer gets to answer a ping before the ping counts as unanswered."""
MOST = 200
"""Most peers that a trace has pinged once more."""
NUMBERS = 1 << 16
"""Numbers of pings: after these they begin again."""

Pair = tuple[str, str]


class _Awaited(msgspec.Struct):
    """Pings of a pair's address since its last answer: the time of the first (monotonic clock), and how many.

    ``last`` is the time of the last one, and ``failed`` says why the last one could not be sent, '' if it was.
    """

    pair: Pair
    family: int
    since: float
    asked: int = 0
    failed: str = ""
    last: float = -math.inf

    def is_silent(self, now: float) -> bool:
        """Return whether it should have answered by now."""
        unanswered = self.asked - (now - self.last < CONFIRMED)
        return now - self.since >= SILENT and unanswered >= TWICE

    def why(self, address: str, now: float) -> str:
        """Return in words that its address does not answer."""
        why = self.failed or f"no answer to pings of {address}, its own address there"
        return f"{why}, for {now - self.since:.0f} s"


class PeerPings:
    """Pings the peers of all networks; ``silent`` has those that do not answer, and ``paths`` what was measured."""

    def __init__(self, peers: dict[Pair, Peer], event_log: EventLog) -> None:
        """``peers`` are those of now: they change, and a new one is the last of them."""
        self._peers = peers
        self._event_log = event_log
        self._logged: frozenset[Pair] = frozenset()
        """The silent peers of the last round."""
        self._echoes: dict[int, Echo] = {}
        self._awaited: dict[str, _Awaited] = {}
        """By address; without those that answered the last ping."""
        self._qualities: dict[str, PathQuality] = {}
        """By address."""
        self._number = 0
        self._answers = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open the sockets and start; if the machine refuses one, no peer is pinged in that family."""
        loop = asyncio.get_running_loop()
        for family in (4, 6):
            try:
                echo = Echo(family)
            except KernelError as error:
                log.info("peers are not probed: %s", error.message)
                continue
            self._echoes[family] = echo
            loop.add_reader(echo.fileno(), self._heard, echo)
        self._task = lasting("probing peers", self._ask)

    async def stop(self) -> None:
        """Stop pinging, and close the sockets."""
        await ended(self._task)
        for echo in self._echoes.values():
            asyncio.get_running_loop().remove_reader(echo.fileno())
            echo.close()
        self._echoes.clear()

    def _targets(self, but: Collection[Pair] = ()) -> list[tuple[Pair, int, str]]:
        return [
            (pair, family, address.address)
            for pair, peer in self._peers.items()
            if pair not in but
            for family in self._echoes
            if (address := peer.lease.address(family)) is not None
        ]

    async def _ask(self) -> None:
        while True:
            begun, targets, met = loop_time(), self._targets(), set(self._peers)
            known = {address for _, _, address in targets}
            for gone in self._awaited.keys() - known:
                del self._awaited[gone]
            for gone in self._qualities.keys() - known:
                del self._qualities[gone]
            while targets:
                for pair, family, address in targets[:RATE]:
                    if pair in self._peers:
                        self._ping(pair, family, address)
                if targets := targets[RATE:]:
                    await pause(1)
                    # A round may take minutes, so new peers come next.
                    if self._peers and next(reversed(self._peers)) not in met:
                        targets = self._targets(but=met) + targets
                        met |= self._peers.keys()
            self._log_changes()
            await pause(max(begun + EVERY - loop_time(), 1.0))

    def _log_changes(self) -> None:
        """Record which peers have become silent in this round, and which answer again."""
        silent = self.silent()
        names = {host: peer.host.name for (_, host), peer in self._peers.items()} if silent or self._logged else {}
        for one in peer_silence.changes(self._logged, silent, self._peers, names.__getitem__):
            self._event_log.add("peer", one.what, **one.about)
        self._logged = frozenset(silent)

    def _ping(self, pair: Pair, family: int, address: str) -> None:
        number, at, failed = (self._number + 1) % NUMBERS, time.time(), ""
        try:
            if not self._echoes[family].ask(address, number):
                return  # nothing was asked, so nothing can be lost: the next round asks again
        except KernelError as error:
            failed = error.message
        self._number, now = number, time.monotonic()
        if (quality := self._qualities.get(address)) is None:
            quality = self._qualities[address] = PathQuality()
        quality.ask(number, at)
        if (awaited := self._awaited.get(address)) is None:
            awaited = self._awaited[address] = _Awaited(pair, family, now)
        awaited.pair, awaited.asked, awaited.failed, awaited.last = pair, awaited.asked + 1, failed, now

    def _heard(self, echo: Echo) -> None:
        for address, reply in echo.answers().items():
            self._awaited.pop(address, None)
            if (quality := self._qualities.get(address)) is not None:
                quality.heard(reply.number, reply.at)
        self._answers.set()

    def paths(self) -> list[tuple[Pair, str, PathQuality]]:
        """Return what was measured of each (network, host) pair's address that was pinged."""
        return [
            (pair, address, quality)
            for pair, _, address in self._targets()
            if (quality := self._qualities.get(address)) is not None and quality.asked
        ]

    def silent(self) -> dict[Pair, str]:
        """Return the (network, host) pairs that do not answer, with the reason."""
        now = time.monotonic()
        return {one.pair: one.why(address, now) for address, one in self._silent(now).items()}

    def _silent(self, now: float) -> dict[str, _Awaited]:
        """Return what is awaited in vain, by address."""
        awaited = self._awaited.items()
        return {address: one for address, one in awaited if one.is_silent(now) and self._has(one, address)}

    def _has(self, one: _Awaited, address: str) -> bool:
        """Return whether the peer still has this address, and its family is pinged."""
        peer = self._peers.get(one.pair)
        if peer is None or one.family not in self._echoes:
            return False
        now = peer.lease.address(one.family)
        return now is not None and now.address == address

    async def confirmed(self) -> dict[tuple[str, str, int], str]:
        """Ping the silent peers once more; return the reasons of those still silent, by (network, host, family)."""
        asked = dict(itertools.islice(self._silent(time.monotonic()).items(), MOST))
        for address, one in asked.items():
            self._ping(one.pair, one.family, address)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CONFIRMED):
                while not self._awaited.keys().isdisjoint(asked):
                    self._answers.clear()
                    await self._answers.wait()
        now = time.monotonic()
        left = {address: one for address, one in self._silent(now).items() if address in asked}
        return {(*one.pair, one.family): one.why(address, now) for address, one in left.items()}
