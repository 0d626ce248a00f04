"""Check: compare what an endpoint needs in the kernel with what is there, for a runtime that asks."""

from __future__ import annotations

import itertools

import msgspec

from linkspan.core.addresses import mac
from linkspan.core.model import Endpoint, Network
from linkspan.core.reconcile import describe
from linkspan.core.states.host import Interface, State
from linkspan.endpoints.registry import Registry


async def check(registry: Registry, endpoint: Endpoint, namespace_fd: int, hardware: str, mtu: int) -> list[str]:
    """Return what of an endpoint is not as it should be, in words; empty where all is well.

    Its interface is compared with what the caller knows of it, a MAC and an MTU; "" and 0 are not known.
    """
    network = registry.networks.get(endpoint.network)
    missing = await registry.worker.run(_missing, registry, network, endpoint, namespace_fd, hardware, mtu)
    return [f"{type(state).__name__} {describe(state)} is not as it should be" for state in missing]


def _missing(
    registry: Registry, network: Network, endpoint: Endpoint, fd: int, hardware: str, mtu: int
) -> list[State]:
    """Compare (worker thread), by the caller's descriptor: the path may lead nowhere in our mount namespace."""
    machine = registry.worker.machine
    with machine.namespaces.holding(fd) as number:
        states = []
        for state in itertools.chain.from_iterable(registry.states(network, endpoint).values()):
            if isinstance(state, Interface):
                found = machine.links.interface(number, state.name)
                known = mac(hardware) if hardware else state.mac
                state = msgspec.structs.replace(state, mac=known, mtu=mtu or (found or state).mtu)
            states.append(state)
        return machine.reconciler.missing(states, number)
