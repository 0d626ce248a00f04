"""Address repair: `linkspan address check`, which compares the machine with the records, and its --fix."""

from __future__ import annotations

from collections.abc import Collection

from linkspan.core.desired import Change
from linkspan.core.errors import NotFound
from linkspan.core.model import Endpoint
from linkspan.core.states.host import Address, Veth
from linkspan.endpoints import address_audit
from linkspan.endpoints.address_audit import Check, Seen
from linkspan.endpoints.detach import detach
from linkspan.endpoints.orphans import Orphans
from linkspan.endpoints.registry import Registry
from linkspan.kernel.machine import Machine


async def check(registry: Registry) -> Check:
    """Return the problems of addresses on this host."""
    endpoints = tuple(registry.endpoints.values())
    seen = await registry.worker.run(_seen, registry.worker.machine, endpoints)
    return address_audit.check(registry.endpoints.values(), seen)


async def repair(registry: Registry, orphans: Orphans) -> Check:
    """Free leaked addresses, remove orphans and duplicates; return the problems that remain."""
    leaked = {(one.address, one.network) for one in (await check(registry)).leaked}
    for endpoint in list(registry.endpoints.values()):
        if any((address.address, endpoint.network) in leaked for address in endpoint.prefixes):
            await detach(registry, *endpoint.identity)
    machine = registry.worker.machine
    await registry.worker.run(_remove_others, machine, tuple(registry.endpoints.values()))
    await orphans.remove()
    await registry.worker.run(machine.reconciler.resync)
    return await check(registry)


def _seen(machine: Machine, endpoints: Collection[Endpoint]) -> Seen:
    """Observe our pairs, and the addresses in each running container (worker thread)."""
    veths = {s.name: s for s in machine.reconciler.observed((Veth,)) if isinstance(s, Veth)}
    inside: dict[int, tuple[Address, ...]] = {}
    for netns in {endpoint.netns for endpoint in endpoints if endpoint.netns}:
        try:
            found = machine.reconciler.observed((Address,), netns)
        except NotFound:
            continue
        inside[netns] = tuple(state for state in found if isinstance(state, Address))
    return Seen(veths, inside)


def _remove_others(machine: Machine, endpoints: Collection[Endpoint]) -> None:
    """Remove addresses from containers that belong to others (worker thread)."""
    extra = address_audit.others(endpoints, _seen(machine, endpoints))
    machine.reconciler.apply(Change((), tuple(extra)))
