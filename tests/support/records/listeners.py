"""Processes that listen at ports of a host, as a test says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from linkspan.core.model import Port

T = TypeVar("T")


class NoListener:
    """Nobody listens at any port."""

    async def holders(self, ports: Sequence[Port]) -> Mapping[Port, str]:
        """Return no holder."""
        return {}

    async def first_free(self, ports: Sequence[Port]) -> Port | None:
        """Return the first port."""
        return ports[0]


class SlowListeners:
    """Processes listen at the ports in ``busy``; each look waits until ``let`` is called, and is written down."""

    def __init__(self, *busy: int) -> None:
        self.busy = busy
        self.looks: list[tuple[int, ...]] = []
        self.asked = asyncio.Event()
        self._answer = asyncio.Event()

    def let(self) -> None:
        """Answer what was asked, and what will be."""
        self._answer.set()

    async def holders(self, ports: Sequence[Port]) -> Mapping[Port, str]:
        """Return who listens, when the test lets it."""
        return await self._look(ports, lambda: {p: f"process {p.host_port}" for p in ports if p.host_port in self.busy})

    async def first_free(self, ports: Sequence[Port]) -> Port | None:
        """Return the first port that is not busy, when the test lets it."""
        return await self._look(ports, lambda: next((p for p in ports if p.host_port not in self.busy), None))

    async def _look(self, ports: Sequence[Port], answer: Callable[[], T]) -> T:
        self.looks.append(tuple(port.host_port for port in ports))
        found = answer()  # what was so when it was asked: it may not be so any more
        self.asked.set()
        await self._answer.wait()
        return found
