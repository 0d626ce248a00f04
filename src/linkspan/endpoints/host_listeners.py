"""Listeners on host ports, looked up in a thread, because a lookup walks over all processes' descriptors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from linkspan.core.model import Port
from linkspan.kernel.probe import port_owners
from linkspan.kernel.probe.port_owners import Asked

T = TypeVar("T")


class HostListeners:
    """Answers `core.ports.Listeners` from the kernel; listeners at one of ``own`` do not block a port (`holders`).

    It has its own thread, so that an attach does not wait for traces or probes, which use the loop's threads
    for seconds.
    """

    def __init__(self, own: Callable[[], Collection[tuple[bytes, int]]]) -> None:
        self._own = own
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="listeners")

    async def holders(self, ports: Sequence[Port]) -> Mapping[Port, str]:
        """Return a description of who listens at each of the ports; free ports are left out."""
        asked = {_asked(port): port for port in ports}
        found = await self._look(port_owners.holders, asked)
        return {asked[one]: who for one, who in found.items()}

    async def first_free(self, ports: Sequence[Port]) -> Port | None:
        """Return the first of the ports at which nobody listens, None if there is none."""
        asked = {_asked(port): port for port in ports}
        found = await self._look(port_owners.first_free, asked)
        return None if found is None else asked[found]

    async def _look(
        self, look: Callable[[list[Asked], Collection[tuple[bytes, int]]], T], asked: Iterable[Asked]
    ) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, look, list(asked), self._own())

    def close(self) -> None:
        """End the thread after its current task."""
        self._thread.shutdown(wait=False)


def _asked(port: Port) -> Asked:
    return port.protocol, port.host_ip, port.host_port
