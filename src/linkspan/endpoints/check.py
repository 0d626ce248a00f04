"""Check: compare an endpoint's desired states with the kernel, for a runtime that asks."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import msgspec

from linkspan.core.addresses import mac
from linkspan.core.model import Endpoint
from linkspan.core.states.host import Interface, State
from linkspan.endpoints.registry import Registry
from linkspan.kernel.machine import Machine


async def check(registry: Registry, endpoint: Endpoint, namespace_fd: int, hardware: str, mtu: int) -> list[str]:
    """Return the problems of an endpoint in words; empty if there are none.

    Compare its interface with the MAC and MTU that the caller knows; "" and 0 mean unknown.
    """
    network = registry.networks.get(endpoint.network)
    wanted = list(itertools.chain.from_iterable(registry.states(network, endpoint).values()))
    missing = await registry.worker.run(_missing, registry.worker.machine, wanted, namespace_fd, hardware, mtu)
    return [f"{type(state).__name__} {state.label} differs from its desired state" for state in missing]


def _missing(machine: Machine, wanted: Iterable[State], fd: int, hardware: str, mtu: int) -> list[State]:
    """Compare (worker thread), by the caller's descriptor: the path may lead nowhere in our mount namespace."""
    with machine.namespaces.holding(fd) as number:
        states = []
        for state in wanted:
            if isinstance(state, Interface):
                found = machine.links.interface(number, state.name)
                known = mac(hardware) if hardware else state.mac
                state = msgspec.structs.replace(state, mac=known, mtu=mtu or (found or state).mtu)
            states.append(state)
        return machine.reconciler.missing(states, number)
