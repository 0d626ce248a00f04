"""Move of containers between an engine's bridge network and linkspan's of the same name, and what is remembered of it.

Containers leave side by side, and come to the other network in the same order. A killed move is repeated: what is still
to do is asked of the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Awaitable, Iterable
from typing import Any, Generic, TypeVar

import msgspec

from linkspan.core.addresses import mac, prefix
from linkspan.core.errors import LinkspanError, NotFound, Unavailable, of_errno
from linkspan.kernel.io.durable_files import Memory
from linkspan.kernel.io.namespaces import Namespaces, open_namespace
from linkspan.kernel.probe import gratuitous_arp
from linkspan.runtimes.adoption.bridge_engine import OURS, Attached, B, BridgeEngine, C, Move
from linkspan.runtimes.adoption.outcome import Done, Left, Outcome

SIDE_BY_SIDE = 4
"""Requests to the engine at one time. With more of them all containers would be without the network at once."""
ROUNDS = 5
"""How often containers are looked for that came to the network while others were disconnected."""

AGAIN = "correct that, and give the same command again"
T = TypeVar("T")


class Adopted(msgspec.Struct, Generic[B], frozen=True):
    """An adoption as it is remembered: the bridge network, and the containers that are to be on its successor.

    ``moves`` are by container id. ``made`` says that linkspan's network of this name is this adoption's, which may
    delete it. ``finished`` says that no step is left.
    """

    origin: B
    moves: dict[str, Move] = {}
    made: bool = False
    finished: bool = False


class BridgeMove(Generic[B, C]):
    """Moves the containers of one network: off it, and onto its successor of the same name."""

    def __init__(self, engine: BridgeEngine[B, C], record: Memory[Adopted[B]], network: str) -> None:
        self._engine = engine
        self._record = record
        self._network = network
        self._turns = asyncio.Semaphore(SIDE_BY_SIDE)
        self._since: dict[str, float] = {}
        """When each running container's disconnection began (monotonic seconds)."""
        self._before: dict[str, Attached] = {}
        """The containers as they were then, by id."""

    async def drain(self, *, ours: bool) -> None:
        """Disconnect all containers and remove the network, unless it is linkspan's (``ours``) or a bridge already.

        Containers that come meanwhile are taken, too.
        """
        for number in range(ROUNDS):
            found = await self._engine.network(self._network)
            if found is None or (found.driver == OURS) is ours:
                return
            containers = await self._engine.on(self._network)
            attached = [at for one in containers if (at := self._engine.attached(one, self._network)) is not None]
            self.remember(moves=self.known.moves | {one.id: one.move for one in attached})
            await _all(self._part(found, one) for one in attached)
            try:
                await self._engine.remove(found)
            except Unavailable:  # a container has come to it meanwhile
                if number == ROUNDS - 1:
                    raise
                await self._engine.forget_removed(found)
            else:
                return

    async def fill(self) -> Outcome:
        """Connect the containers that are not on the network; return those that were, and those that cannot be."""
        found = await self._engine.network(self._network)
        if found is None:
            what = f"{self._engine.called}'s network {self._network} was removed meanwhile"
            raise NotFound(what, "give the same command again")
        results = await _all(self._join(found, id_, move) for id_, move in self.known.moves.items())
        done = tuple(one for one in results if isinstance(one, Done))
        return Outcome(done, tuple(one for one in results if isinstance(one, Left)))

    def forget(self) -> None:
        """Delete the record of this adoption."""
        del self._record.entries[self._network]
        self._record.save()

    @property
    def known(self) -> Adopted[B]:
        """Return what is remembered of this adoption."""
        return self._record.entries[self._network]

    def remember(self, **changed: Any) -> None:
        """Change fields of what is remembered."""
        remember(self._record, self._network, msgspec.structs.replace(self.known, **changed))

    async def _now(self, container: str) -> tuple[bool, Attached | None]:
        """Return whether a container exists, and its part of the network."""
        found = await self._engine.container(container)
        return found is not None, None if found is None else self._engine.attached(found, self._network)

    async def _part(self, network: B, container: Attached) -> None:
        async with self._turns:
            self._since[container.id] = time.monotonic()
            self._before[container.id] = container
            try:
                await self._engine.disconnect(network, container.id)
            except Unavailable:
                if (await self._now(container.id))[1] is not None:
                    raise

    async def _join(self, network: B, container: str, move: Move) -> Done | Left | None:
        """Connect one container; return None if it is gone, or is on the network already."""
        async with self._turns:
            try:
                await self._engine.connect(network, container, move)
            except Unavailable as error:
                exists, attached = await self._now(container)
                if not exists or attached is not None:
                    return None
                return Left(f"container {move.name}", f"it is without the network: {error.message}", AGAIN)
            began = self._since.get(container) if move.running else None
            if move.running:
                await self._announce(container, move)
            gap = 0.0 if began is None else round(time.monotonic() - began, 3)
            return Done(f"container {move.name}", moved(move), gap)

    async def _announce(self, container: str, move: Move) -> None:
        """Let a container announce its addresses: who asked for them meanwhile would ask again only after a second.

        That second is the kernel's (net.ipv4.neigh.default.retrans_time_ms), and neither engine nor agent announces.
        """
        now = self._before.get(container)
        if now is None or not move.mac:  # with its MAC it is as it was, and nobody need be asked
            _, now = await self._now(container)
        if now is not None and now.pid:
            with contextlib.suppress(LinkspanError):  # the container has just ended, for example
                _announce(f"/proc/{now.pid}/ns/net", now)


def _announce(path: str, at: Attached) -> None:
    """Announce addresses on the interface that has their MAC, in the namespace at this path. Raises LinkspanError."""
    hardware = mac(at.mac)
    namespaces, fd = Namespaces(), open_namespace(path)
    try:
        with namespaces.holding(fd) as number, namespaces.entered(number):
            for _, name in socket.if_nameindex():
                with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as raw:
                    raw.bind((name, 0))
                    found = raw.getsockname()[4]
                if found == hardware:
                    gratuitous_arp.announce(name, hardware, [prefix(ip) for ip in at.move.ips])
    except OSError as error:
        raise of_errno(error.errno or 0, f"announce addresses in {path}") from error
    finally:
        os.close(fd)
        namespaces.close()


async def _all(work: Iterable[Awaitable[T]]) -> list[T]:
    """Await all, and only then raise the first error: none goes on behind it."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for one in results:
        if isinstance(one, BaseException):
            raise one
    return [one for one in results if not isinstance(one, BaseException)]


def moved(move: Move) -> str:
    """Return what people read of a container that was moved."""
    return ", ".join(move.ips) if move.running else "not running"


def remember(record: Memory[Adopted[B]], network: str, known: Adopted[B]) -> None:
    """Write an adoption into the record. Raises Unavailable."""
    record.entries[network] = known
    record.save()
