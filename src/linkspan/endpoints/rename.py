"""Endpoints that are known by their pair's name only, until somebody says which container they are of."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from linkspan.core.model import Endpoint
from linkspan.core.states.host import State
from linkspan.endpoints import reconstruction
from linkspan.endpoints.registry import Identity, Registry
from linkspan.kernel.worker import Machine


async def recognise(registry: Registry, container: str, ifname: str = "") -> None:
    """Go on by the container's id with those of its endpoints that are known by their pair's name only.

    After the journal was lost, a runtime's call may be the first that says the id.
    """
    for endpoint in [e for e in registry.endpoints.values() if reconstruction.is_unnamed(e)]:
        if container != endpoint.id and reconstruction.may_be(endpoint, container, ifname):
            await rename(registry, endpoint.identity, msgspec.structs.replace(endpoint, id=container))


async def rename(registry: Registry, identity: Identity, named: Endpoint) -> None:
    """Go on with an endpoint that stands as what it is known to be by now; nothing changes for its container."""
    async with registry.one_at_a_time(identity), registry.one_in(named.netns):
        old = registry.endpoints.get(identity)
        if old is None or named.identity in registry.endpoints:
            return
        registry.journal.adopt(named, instead=identity)
        before = registry.without(old)
        registry.ports.release(old)
        registry.ports.restore(named)
        registry.drop(identity)
        registry.admit(named, 0)
        after = registry.states(registry.networks.get(named.network), named)
        await registry.worker.run(_desire, registry.worker.machine, before | after)
        registry.changed(identity)
    who = f"{named.called} of network {named.network}"
    registry.happenings.add("recover", f"{who} is what was known as {old.id}", endpoint=named.id)


def _desire(machine: Machine, sources: Mapping[tuple[str, ...], list[State]]) -> None:
    """Desire an endpoint's states under its new name (worker thread); a resync mends what is not so yet."""
    for one, states in sources.items():
        machine.reconciler.desired.replace(one, states)
