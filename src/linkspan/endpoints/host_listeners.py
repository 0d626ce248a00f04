"""Listeners on host ports, looked up in a thread, because a lookup walks over all processes' descriptors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from linkspan.core.model import Port
from linkspan.kernel.probe import port_owners


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
        look = asyncio.get_running_loop().run_in_executor
        found = await look(self._thread, port_owners.holders, list(asked), self._own())
        return {asked[one]: who for one, who in found.items()}

    async def first_free(self, ports: Sequence[Port]) -> Port | None:
        """Return the first of the ports at which nobody listens, None if there is none."""
        asked = {_asked(port): port for port in ports}
        look = asyncio.get_running_loop().run_in_executor
        found = await look(self._thread, port_owners.first_free, list(asked), self._own())
        return None if found is None else asked[found]

    def close(self) -> None:
        """End the thread after its current task."""
        self._thread.shutdown(wait=False)


def _asked(port: Port) -> port_owners.Asked:
    return port.protocol, port.host_ip, port.host_port
