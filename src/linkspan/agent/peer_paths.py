"""Paths between hosts, as their pings measure them: round trip and loss, of this host or of all."""

from __future__ import annotations

import asyncio
import time

import msgspec

from linkspan.cluster.hosts import Hosts
from linkspan.cluster.path_quality import MeasuredPath, worst
from linkspan.cluster.peer_ping import PeerPings
from linkspan.cluster.questions import PATHS, Ask, PathsQuestion, PathsReply
from linkspan.core.errors import LinkspanError

HOSTS = 40
"""Hosts that are asked for one answer: each costs the store a question and an answer."""
KEEP = 5.0
"""Seconds for which the answer about all hosts counts: anybody may ask for it."""


class HostPaths(msgspec.Struct, frozen=True):
    """The paths from a host (its id) to its peers; if it did not answer, ``problem`` says why."""

    host: str
    paths: tuple[MeasuredPath, ...] = ()
    problem: str = ""


class PeerPaths:
    """Tells what this host's pings have measured, and asks other hosts for theirs."""

    def __init__(self, hosts: Hosts, peer_pings: PeerPings, ask: Ask) -> None:
        self._hosts = hosts
        self._peer_pings = peer_pings
        self._ask = ask
        self._asking = asyncio.Lock()
        self._all: list[HostPaths] = []
        self._all_at = float("-inf")

    def own(self) -> HostPaths:
        """Return the paths from this host, one for each address of a peer in a network."""
        measured = (
            MeasuredPath(peer, network, address, one.round_trip or None, one.loss, one.asked)
            for (network, peer), address, one in self._peer_pings.paths()
        )
        return HostPaths(self._hosts.here.id, tuple(measured))

    def answer(self) -> PathsReply:
        """Return the answer to another host's question."""
        return PathsReply(tuple(worst(self.own().paths)[:PATHS]))

    async def all(self) -> list[HostPaths]:
        """Return the worst path from each host to each peer: of this host, and of the first HOSTS by name."""
        async with self._asking:
            if time.monotonic() - self._all_at > KEEP:
                here = self._hosts.here.id
                others = sorted(self._hosts.all().keys() - {here}, key=self._hosts.name)[: HOSTS - 1]
                own = HostPaths(here, self.answer().paths)
                self._all = [own, *await asyncio.gather(*map(self._told, others))]
                self._all_at = time.monotonic()
            return self._all

    async def _told(self, host: str) -> HostPaths:
        if host not in self._hosts.alive():
            return HostPaths(host, problem="its agent has been silent for a while")
        try:
            reply = await self._ask.ask(host, PathsQuestion(), PathsReply)
        except LinkspanError as error:
            return HostPaths(host, problem=error.message)
        return HostPaths(host, reply.paths)
