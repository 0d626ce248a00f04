"""Detach: write the intent to the journal, remove the endpoint's states, drop the row, release its addresses.

If the agent is killed at any point, the next agent finds the row. An endpoint that was being detached is not
desired, so the first resync removes what exists of it. The detach waits for no store, and starts no process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from linkspan.core.addresses import Prefix
from linkspan.core.errors import LinkspanError
from linkspan.core.model import Endpoint
from linkspan.endpoints.registry import Registry, logged
from linkspan.endpoints.rename import recognise
from linkspan.kernel.probe import conntrack

log = logging.getLogger("linkspan.endpoints.detach")


async def detach(registry: Registry, container: str, ifname: str = "", network: str = "") -> int:
    """Detach a container's interfaces (all, or one, or those of one network); return how many there were.

    Continue past errors, and log them: what is left in the kernel is no longer desired, so the next resync
    removes it.
    """
    with registry.counted("detach"):
        return await _detach_all(registry, container, ifname, network)


async def _detach_all(registry: Registry, container: str, ifname: str, network: str) -> int:
    await recognise(registry, container, ifname)
    await registry.settled(container, ifname)  # its ADD may be under way
    found = [
        endpoint
        for (id_, name), endpoint in registry.endpoints.items()
        if id_ == container and ifname in ("", name) and network in ("", endpoint.network)
    ]
    for endpoint in found:
        async with registry.one_at_a_time(endpoint.identity):
            if registry.endpoints.get(endpoint.identity) is endpoint:
                async with registry.one_in(endpoint.netns):
                    await _detach(registry, endpoint)
    return len(found)


async def _detach(registry: Registry, endpoint: Endpoint) -> None:
    with logged("journal"):  # a full disk must not keep a container's network up
        registry.journal.detaching(endpoint.identity)
    if endpoint.host_ifname:
        for error in await unplumb(registry, endpoint):
            log.warning("detach %s: %s", endpoint.id, error.message)
        if endpoint.ports or any(mate.ports for mate in registry.beside(endpoint)):
            registry.keep(asyncio.create_task(forget_connections(registry, endpoint, endpoint.prefixes)))
    elif endpoint.ports:
        for error in await unplumb(registry, endpoint):
            log.warning("detach %s: %s", endpoint.id, error.message)
    registry.forget(endpoint)
    await registry.allocator.release(endpoint.network, endpoint.prefixes)
    registry.ports.release(endpoint)
    registry.drop(endpoint.identity)
    registry.changed(endpoint.identity)
    what = f"{endpoint.called} left network {endpoint.network}"
    about = {"endpoint": endpoint.id, "ifname": endpoint.ifname, "network": endpoint.network}
    registry.event_log.add("detach", what, **about)


async def unplumb(registry: Registry, endpoint: Endpoint) -> list[LinkspanError]:
    """Remove the endpoint's states; continue past all errors and return them.

    Never on the event loop: the kernel may take seconds to remove a link, and this host must renew its
    liveness meanwhile.
    """
    machine = registry.worker.machine
    sources, mates = registry.without(endpoint), registry.within(endpoint.netns)

    def removed() -> list[LinkspanError]:
        try:
            return list(machine.reconciler.changes(sources).values())
        except LinkspanError as error:
            return [error]
        finally:
            machine.leave(endpoint, mates)

    return await registry.worker.run(removed)


async def forget_connections(registry: Registry, endpoint: Endpoint, addresses: Sequence[Prefix]) -> None:
    """Flush conntrack after a mapping was added or removed: a stale UDP entry would send datagrams past it.

    In a thread of its own: a dump walks the whole table, 9 ms and more (measured). Only an attach that
    publishes such a port waits for it.
    """
    every = [port for one in (endpoint, *registry.beside(endpoint)) for port in one.ports]
    ports = [(p.protocol, p.host_port) for p in every if p.protocol != "tcp"]
    if not ports and not addresses:
        return
    try:
        await asyncio.to_thread(conntrack.flush, ports, addresses)
    except LinkspanError as error:
        log.warning("flush connections of %s: %s", endpoint.id, error.message)
