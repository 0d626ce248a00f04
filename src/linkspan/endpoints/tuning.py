"""Tuning by later plugins of a CNI chain: endpoints adopt their MAC and MTU, so that the guard accepts packets.

A plugin does not learn which plugins come after it, and the runtime does not report the end of its chain. So
after each ADD the agent listens in the container's namespace for changes of the interface, for WINDOW
seconds: the next plugin is executed at once, and takes milliseconds. A CHECK brings the chain's own result,
which counts at any time.

A program in the container that may change its MAC (CAP_NET_ADMIN) can do so within the window, too. So a MAC
that another endpoint holds is not adopted (``holds_mac``): the guard continues to drop packets from it.

The open socket keeps the namespace of a dead container alive for the window, but not the veth pair, which a
DEL deletes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Iterable

from linkspan.backends.bridge import host_mac
from linkspan.core.addresses import derived_mac, mac, mac_text
from linkspan.core.errors import Conflict, LinkspanError, NotFound
from linkspan.core.model import Endpoint, Network
from linkspan.core.states.host import Interface
from linkspan.endpoints import update
from linkspan.endpoints.build import tuned
from linkspan.endpoints.registry import Identity, Registry, holds_mac
from linkspan.kernel.probe.interface_watch import InterfaceWatch, Values

log = logging.getLogger("linkspan.endpoints.tuning")

PAUSE = 0.02
"""Seconds from the answer until it listens: the next ADD does not wait, and earlier changes are seen."""
WINDOW = 10.0
"""Seconds to listen after an ADD: the reference tuning plugin takes 5 ms, and on a busy machine perhaps a second."""
MOST = 64
"""Largest number of namespaces at once, two descriptors each: one more replaces the oldest."""
_CHANGES = 16
"""Changes adopted in a window: a chain makes one or two, and a container could make thousands."""


class _Watch:
    """An interface that is watched for a time, and its namespace."""

    def __init__(self, interface: InterfaceWatch, namespace_fd: int, timer: asyncio.TimerHandle) -> None:
        self.interface = interface
        self.namespace_fd = namespace_fd
        self.timer = timer
        self.left = _CHANGES

    def close(self) -> None:
        """Release the namespace."""
        self.timer.cancel()
        asyncio.get_running_loop().remove_reader(self.interface.fileno())
        self.interface.close()
        os.close(self.namespace_fd)


class Tuning:
    """Adopts what later plugins change of new endpoints."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._worker = registry.worker
        self._event_log = registry.event_log
        self._watches: dict[Identity, _Watch] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def stop(self) -> None:
        """Stop all watches."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for identity in list(self._watches):
            self._end(identity)

    def follow(self, endpoint: Endpoint, namespace_fd: int) -> None:
        """Listen for WINDOW seconds, starting after the answer; the descriptor stays the caller's."""
        if endpoint.host_ifname:
            try:
                self._spawn(self._begin(endpoint, os.dup(namespace_fd)))
            except OSError as error:  # no descriptor left: no reason to refuse a container
                log.warning("changes of %s by later plugins are not adopted: %s", endpoint.called, error.strerror)

    def note(self, identity: Identity) -> None:
        """Stop listening for an endpoint that is gone."""
        if identity in self._watches and identity not in self._registry.endpoints:
            self._end(identity)

    async def told(self, endpoint: Endpoint, namespace_fd: int, hardware: str, mtu: int) -> Endpoint:
        """Adopt a chain's own result, if the interface really has it; "" and 0 mean unknown.

        Raises Conflict if the MAC belongs to another endpoint.
        """
        found = await self._worker.run_brief(self._look, endpoint.ifname, namespace_fd)
        if found is None or not endpoint.host_ifname:
            return endpoint
        wanted = mac_text(found[0]) if hardware and mac(hardware) == found[0] else endpoint.mac
        await self._take_over(endpoint.identity, namespace_fd, wanted, mtu if mtu == found[1] else endpoint.mtu)
        return self._registry.endpoints.get(endpoint.identity, endpoint)

    def _spawn(self, work: Awaitable[None]) -> None:
        async def logged() -> None:
            try:
                await work
            except LinkspanError as error:
                log.warning("%s", error.told)
            except OSError as error:
                log.warning("changes by later plugins are not adopted: %s", error.strerror)

        task = asyncio.create_task(logged())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _end(self, identity: Identity) -> None:
        if watch := self._watches.pop(identity, None):
            watch.close()

    async def _begin(self, endpoint: Endpoint, fd: int) -> None:
        identity = endpoint.identity
        try:
            await asyncio.sleep(PAUSE)
            if identity not in self._registry.endpoints:
                os.close(fd)
                return
            interface = await self._worker.run_brief(self._listen, endpoint.ifname, fd)
        except BaseException:
            os.close(fd)
            raise
        self._end(identity)
        loop = asyncio.get_running_loop()
        self._watches[identity] = _Watch(interface, fd, loop.call_later(WINDOW, self._end, identity))
        loop.add_reader(interface.fileno(), self._come, identity)
        if len(self._watches) > MOST:
            self._end(next(iter(self._watches)))
        if interface.found is not None:
            self._changed(identity, *interface.found)
        self.note(identity)  # it may be gone already

    def _listen(self, ifname: str, fd: int) -> InterfaceWatch:
        """Listen in an open namespace (worker thread)."""
        return InterfaceWatch(self._worker.machine.namespaces, ifname, fd)

    def _look(self, ifname: str, fd: int) -> Values | None:
        """Return the interface's present values (worker thread)."""
        with contextlib.closing(self._listen(ifname, fd)) as interface:
            return interface.found

    def _come(self, identity: Identity) -> None:
        """Read the changes; the last of several counts."""
        if (last := self._watches[identity].interface.changed()) is not None:
            self._changed(identity, *last)

    def _changed(self, identity: Identity, hardware: bytes, mtu: int) -> None:
        endpoint, watch = self._registry.endpoints.get(identity), self._watches[identity]
        if endpoint is None or (mac_text(hardware), mtu) == (endpoint.mac, endpoint.mtu):
            return
        watch.left -= 1
        if watch.left >= 0:
            self._spawn(self._follow(identity, os.dup(watch.namespace_fd), mac_text(hardware), mtu))

    async def _follow(self, identity: Identity, fd: int, hardware: str, mtu: int) -> None:
        """Adopt a change, by a descriptor of its own: the watch may end meanwhile."""
        try:
            await self._take_over(identity, fd, hardware, mtu)
        finally:
            os.close(fd)

    async def _take_over(self, identity: Identity, fd: int, hardware: str, mtu: int) -> None:
        """Alter the endpoint. Raises Conflict if another endpoint has the MAC."""

        def altered(network: Network, endpoint: Endpoint) -> Endpoint:
            if hardware != endpoint.mac:
                refuse_taken(network, endpoint, hardware, self._registry.endpoints.values())
            return tuned(network, endpoint, hardware, mtu)

        with self._worker.machine.namespaces.holding(fd):
            before = self._registry.endpoints.get(identity)
            try:
                # The interface itself is left alone: the plugin may be in the middle of its changes.
                after = await update.alter(self._registry, identity, altered, (Interface,))
            except NotFound:  # it ended meanwhile
                return
            except Conflict as error:
                self._event_log.add("attach", error.told, endpoint=identity[0], ifname=identity[1])
                raise
        if before is not None and before.mac != after.mac:
            what = f"{after.called}: another plugin of its chain changed the MAC from {before.mac} to {after.mac}"
            self._event_log.add("attach", what, endpoint=after.id, ifname=after.ifname, network=after.network)


def refuse_taken(network: Network, endpoint: Endpoint, hardware: str, others: Iterable[Endpoint]) -> None:
    """Raise Conflict for a MAC of another endpoint, as far as both cannot have it, of the host, or of no interface."""
    packed = bytes.fromhex(hardware.replace(":", ""))
    holders = (e.called for e in others if e.identity != endpoint.identity and holds_mac(e, network, hardware))
    own = mac_text(host_mac(network, endpoint.host_ifname)), mac_text(derived_mac("bridge", network.name))
    holder = next(holders, "the host" if hardware in own else "")
    if packed[0] & 1 or not any(packed):
        holder = "no single interface"
    if holder:
        raise Conflict(
            f"{endpoint.ifname} of {endpoint.called} was given MAC {hardware}, which belongs to {holder}: "
            f"network {network.name} drops its packets",
            "choose another MAC in the configuration of the chain's later plugin, and start the container again",
        )
