"""Shared states: they serve all networks of a backend on this host, and depend on all peers (a BGP speaker)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import msgspec

from linkspan.backends import BACKENDS, backend
from linkspan.cluster.leases import Leases
from linkspan.cluster.peers import Peers
from linkspan.core.errors import LinkspanError
from linkspan.core.host_view import HostView
from linkspan.core.model import Endpoint
from linkspan.core.states.host import Key
from linkspan.kernel.worker import Worker

log = logging.getLogger("linkspan.cluster.shared_states")


def learning(view: HostView, leases: Leases, peers: Peers, endpoints: Iterable[Endpoint]) -> HostView:
    """Return the view with the fields for backends that encrypt or have a speaker, if a network has such a backend.

    The fields are ``peers``, ``exact`` and ``living`` of ``HostView``.
    """
    names = [n.name for n in view.networks if any(_sees_more(way.backend) for way in n.ways)]
    if not names or view.host is None or peers.withdrawn:
        return view
    exact = [
        (network.name, address)
        for network in view.networks
        if network.name in names
        for address in leases.counted(network, {view.host.id}).get(view.host.id, ())
    ]
    here = endpoints if view.host.settings.get("drained") else ()
    living = [(e.network, p.single()) for e in here for p in e.prefixes]
    known = tuple(peers.known.values())
    return msgspec.structs.replace(view, peers=known, exact=tuple(exact), living=tuple(living))


def _sees_more(name: str) -> bool:
    way = backend(name)
    return way.encrypts or way.host_phase == "after peers"


class SharedStates:
    """Re-applies the host-wide states of ``after peers`` when their inputs change; unchanged ones cost nothing."""

    def __init__(self, worker: Worker, view: Callable[[], HostView]) -> None:
        self._worker = worker
        self._view = view
        self.problems: dict[str, str] = {}
        """By backend: why this host cannot have its states."""

    async def put(self) -> dict[Key, LinkspanError]:
        """Apply the states, once the peers are known; return the errors by the key of the state."""
        failed: dict[Key, LinkspanError] = {}
        view = self._view()
        for way in BACKENDS.values():
            if way.host_phase != "after peers":
                continue  # ``agent/plans`` applies these
            source = ("host", way.name)
            try:
                states = list(way.host(view))
                failed |= await self._worker.run(self._worker.machine.reconciler.change, source, states)
                self.problems.pop(way.name, None)
            except LinkspanError as error:
                failed[source] = error
                if self.problems.get(way.name) != error.message:
                    log.warning("%s", error.message)
                self.problems[way.name] = error.message
        return failed
