"""Peer ping: pings each peer's own address in each network every few seconds, on the path of containers' packets.

Liveness in the store shows that a peer's agent runs. It does not show that packets reach the peer: a broken cable, a
firewall in between, or a partition of the underlay alone does not change the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping

from linkspan.core.errors import KernelError
from linkspan.core.model import Peer
from linkspan.core.supervise import ended, lasting, pause
from linkspan.kernel.probe.ping import Echo

log = logging.getLogger("linkspan.cluster.peer_ping")

EVERY = 2.0
"""Seconds between two rounds."""
SILENT = 5.0
"""Seconds without an answer after which a peer counts as silent: with EVERY, `status` names it within 10 s."""
CONFIRMED = 0.3
"""Seconds that silent peers get to answer one more ping before a trace names them."""
RATE = 200
"""Most pings a second: with more peers a round takes longer. A ping costs 15 microseconds."""

Pair = tuple[str, str]


class Probes:
    """Pings the peers of all networks; ``silent`` has those that do not answer."""

    def __init__(self, peers: Mapping[Pair, Peer]) -> None:
        self._peers = peers
        self._echoes: dict[int, Echo] = {}
        self._since: dict[tuple[Pair, str], float] = {}
        """When a peer's address was first asked since its last answer (monotonic clock)."""
        self._failed: dict[tuple[Pair, str], str] = {}
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

    def _targets(self) -> list[tuple[Pair, int, str]]:
        return [
            (pair, family, address.address)
            for pair, peer in self._peers.items()
            for family in self._echoes
            if (address := peer.lease.address(family)) is not None
        ]

    async def _ask(self) -> None:
        while True:
            targets = self._targets()
            known = {(pair, address) for pair, _, address in targets}
            for table in (self._since, self._failed):
                for gone in [key for key in table if key not in known]:
                    del table[gone]
            for number, target in enumerate(targets, 1):
                self._ping(*target)
                if number % RATE == 0:
                    await asyncio.sleep(1)
            await pause(EVERY)

    def _ping(self, pair: Pair, family: int, address: str) -> None:
        self._since.setdefault((pair, address), time.monotonic())
        try:
            self._echoes[family].ask(address)
            self._failed.pop((pair, address), None)
        except KernelError as error:
            self._failed[pair, address] = error.message

    def _heard(self, echo: Echo) -> None:
        answered = echo.answers()
        for key in [key for key in self._since if key[1] in answered]:
            del self._since[key]
        self._answers.set()

    def silent(self) -> dict[Pair, str]:
        """Return the (network, host) pairs that do not answer, with the reason."""
        return {pair: why for (pair, _), why in self._silent().items()}

    def _silent(self) -> dict[tuple[Pair, str], str]:
        now, found = time.monotonic(), {}
        for (pair, address), since in self._since.items():
            if now - since >= SILENT:
                why = self._failed.get(
                    (pair, address), f"no answer to pings of {address}, its own address there"
                )
                found[pair, address] = f"{why}, for {now - since:.0f} s"
        return found

    async def confirmed(self) -> dict[tuple[str, str, int], str]:
        """Ping the silent peers once more; return the reasons of those still silent, by (network, host, family)."""
        silent = self._silent()
        asked = [target for target in self._targets() if (target[0], target[2]) in silent][:RATE]
        for target in asked:
            self._ping(*target)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CONFIRMED):
                while any((pair, address) in self._since for pair, _, address in asked):
                    self._answers.clear()
                    await self._answers.wait()
        left = self._silent()
        return {(*pair, family): left[pair, address] for pair, family, address in asked if (pair, address) in left}
