"""Paths between hosts, as their pings measure them: round trip and loss, of this host or of all."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Literal

import msgspec

from linkspan.cluster.hosts import Hosts
from linkspan.cluster.leases import Leases
from linkspan.cluster.path_quality import MeasuredPath, PackedPath, worst
from linkspan.cluster.peer_ping import PeerPings
from linkspan.cluster.questions import PATHS, Ask, PathsQuestion, PathsReply
from linkspan.core.clock import loop_time
from linkspan.core.errors import LinkspanError

PAUSE = 5.0
"""Seconds for which the answer about all hosts counts at least, and PAUSE_PER_HOST more for each of the cluster."""
PAUSE_PER_HOST = 0.1
"""Every host gets all questions and answers, 61 kB if PATHS hosts take part. So the store sends at most 0.6 MB/s for a
host that asks, however many hosts there are."""


class HostPaths(msgspec.Struct, frozen=True):
    """The paths from a host (its id) to its peers; if it did not answer, ``problem`` says why."""

    host: str
    paths: tuple[MeasuredPath, ...] = ()
    problem: str = ""


class PeerPaths:
    """Tells what this host's pings have measured, and asks other hosts for theirs."""

    def __init__(self, hosts: Hosts, leases: Leases, peer_pings: PeerPings, ask: Ask) -> None:
        self._hosts = hosts
        self._leases = leases
        self._peer_pings = peer_pings
        self._ask = ask
        self._asking = asyncio.Lock()
        self._all: list[HostPaths] = []
        self._all_until = float("-inf")

    def own(self) -> HostPaths:
        """Return the paths from this host, one for each address of a peer in a network."""
        measured = (
            MeasuredPath(peer, network, address, one.round_trip or None, one.missed, one.asked)
            for (network, peer), address, one in self._peer_pings.paths()
        )
        return HostPaths(self._hosts.here.id, tuple(measured))

    def answer(self, question: PathsQuestion) -> PathsReply:
        """Return the answer to another host's question."""
        found = self._worst(question.peers)
        ways: dict[tuple[str, Literal[4, 6]], int] = {}
        packed: list[PackedPath | None] = []
        for path in map(found.get, question.peers):
            if path is None:
                packed.append(None)
                continue
            family: Literal[4, 6] = 6 if ":" in path.address else 4
            packed.append(PackedPath.of(path, ways.setdefault((path.network, family), len(ways))))
        return PathsReply(tuple(packed), tuple(ways))

    async def all(self) -> list[HostPaths]:
        """Return the worst path from each host to each other: of this host, and the first others by name, PATHS in all.

        It asks them at most once in a while, which is longer in a large cluster.
        """
        async with self._asking:
            if loop_time() >= self._all_until:
                here, every = self._hosts.here.id, self._hosts.all().keys()
                others = sorted(every - {here}, key=self._hosts.name)[: PATHS - 1]
                shown = (here, *others)
                own = HostPaths(here, tuple(self._worst(shown).values()))
                self._all = [own, *await asyncio.gather(*(self._told(host, shown) for host in others))]
                self._all_until = loop_time() + PAUSE + PAUSE_PER_HOST * len(every)
            return self._all

    def _worst(self, peers: Collection[str]) -> dict[str, MeasuredPath]:
        wanted = frozenset(peers)
        return {path.peer: path for path in worst(path for path in self.own().paths if path.peer in wanted)}

    async def _told(self, host: str, shown: tuple[str, ...]) -> HostPaths:
        if host not in self._hosts.alive():
            return HostPaths(host, problem="its agent has been silent for a while")
        peers = tuple(one for one in shown if one != host)
        try:
            reply = await self._ask.ask(host, PathsQuestion(peers), PathsReply)
        except LinkspanError as error:
            return HostPaths(host, problem=error.message)
        if len(reply.paths) != len(peers):
            return HostPaths(host, problem="its answer does not fit the question")
        pairs = zip(peers, reply.paths, strict=True)
        return HostPaths(host, tuple(self._unpacked(peer, path, reply) for peer, path in pairs if path is not None))

    def _unpacked(self, peer: str, path: PackedPath, reply: PathsReply) -> MeasuredPath:
        """Return a path with its address, which is '' if this host does not know it."""
        network, family = reply.ways[path.way]
        lease = self._leases.of(network, peer)
        address = lease.address(family) if lease is not None else None
        return path.unpacked(peer, network, address.address if address is not None else "")
