"""Rename endpoints that are known only by their pair's name, once their container's id is known."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from linkspan.core.model import Endpoint
from linkspan.core.states.host import State
from linkspan.endpoints import reconstruction
from linkspan.endpoints.registry import Identity, Registry
from linkspan.kernel.machine import Machine


async def recognise(registry: Registry, container: str, ifname: str = "") -> None:
    """Give a container's id to those of its endpoints that are known only by their pair's name.

    After the journal was lost, a runtime's call may be the first to provide the id.
    """
    for endpoint in [e for e in registry.endpoints.values() if reconstruction.is_unnamed(e)]:
        if container != endpoint.id and reconstruction.may_be(endpoint, container, ifname):
            await rename(registry, endpoint.identity, msgspec.structs.replace(endpoint, id=container))


async def rename(registry: Registry, identity: Identity, named: Endpoint) -> None:
    """Give an endpoint its new identity; nothing changes for its container."""
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
    registry.event_log.add("recover", f"{who} is the endpoint that was known as {old.id}", endpoint=named.id)


def _desire(machine: Machine, sources: Mapping[tuple[str, ...], list[State]]) -> None:
    """Desire an endpoint's states under its new name (worker thread); a resync repairs the rest."""
    for one, states in sources.items():
        machine.reconciler.desired.replace(one, states)
