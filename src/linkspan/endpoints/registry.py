"""Registry of this host's endpoints: serialises changes to each, and knows what each needs in the kernel.

The verbs of this package (attach, detach, update, check) are functions that get the registry.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Protocol

import msgspec

from linkspan.backends import backend
from linkspan.cluster.allocator import Allocator
from linkspan.cluster.networks import Networks
from linkspan.core.clock import now
from linkspan.core.errors import Unavailable
from linkspan.core.event_log import EventLog
from linkspan.core.model import Endpoint, Network
from linkspan.core.ports import PortTable
from linkspan.core.states.host import State
from linkspan.endpoints import multihoming
from linkspan.endpoints.journal import Journal
from linkspan.kernel.worker import Worker

log = logging.getLogger("linkspan.endpoints.registry")

Identity = tuple[str, str]


class Mates(msgspec.Struct, frozen=True):
    """The other endpoints of a container at one moment, as a value for the worker, which does not get the registry.

    ``homes`` are those whose networks exist. ``counts`` says whether the endpoint's own network exists. ``policy`` are
    the elements by which policies know the endpoint.
    """

    endpoints: tuple[Endpoint, ...]
    homes: tuple[multihoming.Home, ...]
    counts: bool
    policy: tuple[State, ...] = ()

    def states(self, network: Network, endpoint: Endpoint) -> dict[tuple[str, ...], list[State]]:
        """Return the desired states with an endpoint as it is here, by source: its own, and its container's."""
        own = [(network, endpoint)] if self.counts else []
        return {
            source(endpoint): list(backend(network.backend).endpoint(network, endpoint)),
            multihoming.source(endpoint): list(multihoming.container_states([*self.homes, *own])),
            policy_source(endpoint.identity): list(self.policy),
        }

    def without(self, endpoint: Endpoint) -> dict[tuple[str, ...], list[State]]:
        """Return the desired states without an endpoint, by source."""
        rest = list(multihoming.container_states(self.homes))
        gone: dict[tuple[str, ...], list[State]] = {
            one: [] for one in (source(endpoint), policy_source(endpoint.identity), fast_source(endpoint.identity))
        }
        return {multihoming.source(endpoint): rest, **gone}

    def ranked(self, network: Network, endpoint: Endpoint, others: Iterable[int] = ()) -> Endpoint:
        """Return the endpoint with a metric after those of its container's other interfaces, and after ``others``."""
        first = multihoming.first_metric(network, endpoint)
        taken = [m for m in others if m < multihoming.LAST] + [mate.metric for mate in self.endpoints]
        within = [m for m in taken if (m >= multihoming.INTERNAL) == network.internal]
        return msgspec.structs.replace(endpoint, metric=max(within, default=first - 1) + 1)


def source(endpoint: Endpoint) -> tuple[str, ...]:
    """Return the name under which an endpoint's states are desired."""
    return ("attachment", *endpoint.identity)


def policy_source(identity: Identity) -> tuple[str, ...]:
    """Return the name under which the elements are desired by which policies know an endpoint."""
    return ("policy", "endpoint", *identity)


def fast_source(identity: Identity) -> tuple[str, ...]:
    """Return the name under which the states are desired that take an endpoint into its network's fast path."""
    return ("fast", *identity)


def holds_mac(endpoint: Endpoint, network: Network, mac: str) -> bool:
    """Return whether nobody else in a network may have a MAC because of an endpoint: of it, or on a bridge with IPv6.

    There policies know a container by its link-local addresses, too, which follow from its MAC, and from its first one.
    """
    if mac not in (endpoint.mac, endpoint.born_mac):
        return False
    bridged = not network.routed and endpoint.host_ifname.startswith("lsp")
    return endpoint.network == network.name or (
        bridged and all(any(at.family == 6 for at in of) for of in (network.prefixes, endpoint.prefixes))
    )


@contextlib.contextmanager
def logged(what: str) -> Iterator[None]:
    """Log that something is unavailable, and continue."""
    try:
        yield
    except Unavailable as error:
        log.warning("%s", error.within(what).message)


class Policing(Protocol):
    """Policies, as far as an endpoint that comes must wait for them (`agent/policy_enforcement.py`)."""

    def elements(self, endpoint: Endpoint) -> Iterable[State]:
        """Return the elements by which policies know an endpoint."""

    async def cover(self, network: Network) -> None:
        """Return when the rules of policies see the packets of a network. Raises LinkspanError."""


class Unpoliced:
    """No policies."""

    def elements(self, endpoint: Endpoint) -> Iterable[State]:  # noqa: ARG002 - no endpoint has any
        """Return none."""
        return ()

    async def cover(self, network: Network) -> None:
        """Wait for nothing."""


class Registry:
    """The endpoints of this host, and what the verbs need to change them.

    Only the registry changes ``endpoints``; others may read it.
    """

    def __init__(
        self,
        worker: Worker,
        journal: Journal,
        networks: Networks,
        allocator: Allocator,
        ports: PortTable,
        event_log: EventLog,
        host: str,
        endpoints: dict[Identity, Endpoint],
        count: Callable[[str, str, float], None] = lambda _verb, _result, _seconds: None,
        policing: Policing | None = None,
    ) -> None:
        """``count`` takes in each attach and detach: the verb, ok or error, and the seconds that it took."""
        self.worker = worker
        self.journal = journal
        self.networks = networks
        self.allocator = allocator
        self.ports = ports
        self.event_log = event_log
        self.host = host
        self._count = count
        self._policing = policing or Unpoliced()
        self._locks: dict[Identity, tuple[asyncio.Lock, int]] = {}
        self._unforgotten: list[Endpoint] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.endpoints = endpoints
        self._within: dict[int, dict[Identity, Endpoint]] = {}
        """By namespace (its inode): the endpoints in it. An attach must not look at every other container's."""
        for endpoint in endpoints.values():
            self._enter(endpoint)
        self.attached_ns: dict[Identity, int] = {}
        self._pools: dict[str, tuple[str, ...]] = {}
        """The networks' pools that the endpoints' routes lead to."""
        self._followers: list[Callable[[Identity], None]] = []

    def subscribe(self, follower: Callable[[Identity], None]) -> None:
        """Call ``follower`` with each endpoint that is added, changed or removed from now on."""
        self._followers.append(follower)

    def changed(self, identity: Identity) -> None:
        """Call the followers: an endpoint was added, changed or removed."""
        for follower in self._followers:
            follower(identity)

    # one at a time

    @contextlib.asynccontextmanager
    async def one_at_a_time(self, identity: Identity) -> AsyncIterator[None]:
        """Serialise operations on one endpoint: a DEL may arrive while its ADD is under way."""
        lock, users = self._locks.get(identity, (asyncio.Lock(), 0))
        self._locks[identity] = lock, users + 1  # waiters count: a lock just released still has waiters
        try:
            async with lock:
                yield
        finally:
            _, users = self._locks.pop(identity)
            if users > 1:
                self._locks[identity] = lock, users - 1

    def one_in(self, number: int) -> contextlib.AbstractAsyncContextManager[None]:
        """Serialise operations on the endpoints of one namespace: some of their states follow from all of them."""
        # No container has such an id. A task that holds an identity may wait for a namespace, but never the
        # other way round.
        return self.one_at_a_time(("/netns", str(number))) if number else contextlib.nullcontext()

    async def settled(self, container: str, ifname: str = "") -> None:
        """Wait until running operations on a container's interfaces (all, or one) have ended."""
        for identity in [i for i in self._locks if i[0] == container and ifname in ("", i[1])]:
            async with self.one_at_a_time(identity):
                pass

    def inside(self, netns: int) -> str:
        """Return what the container in a namespace (its inode) is called, "" for the host's own or an unknown one."""
        return next((endpoint.called for endpoint in self.within(netns)), "")

    def within(self, netns: int) -> list[Endpoint]:
        """Return the endpoints in a container's namespace (its inode); none for the host's own."""
        return list(self._within.get(netns, {}).values())

    def count(self, network: str) -> int:
        """Return how many endpoints of a network this host has."""
        return sum(endpoint.network == network for endpoint in self.endpoints.values())

    def names(self, container: str) -> set[str]:
        """Return the names of a container's interfaces, also of those that are being attached."""
        return {ifname for id_, ifname in (*self.endpoints, *self._locks) if id_ == container}

    def busy(self, identity: Identity) -> bool:
        """Return whether an attach or detach of an identity is under way."""
        return identity in self._locks

    async def prepare(self, network: Network) -> None:
        """Make a network ready for a container. Raises LinkspanError.

        The caller must have no lock, because what follows from the network's first lease may need it.
        """
        await self.allocator.take_part(network)
        await self._policing.cover(network)

    @contextlib.contextmanager
    def counted(self, verb: str) -> Iterator[None]:
        """Count a verb, whoever asked for it."""
        begun, result = time.perf_counter(), "error"
        try:
            yield
            result = "ok"
        finally:
            self._count(verb, result, time.perf_counter() - begun)

    # which there are

    def admit(self, endpoint: Endpoint, at: int) -> None:
        """Add an endpoint to those in place; ``at`` is when it was attached (CLOCK_BOOTTIME, ns)."""
        self.worker.machine.enter(endpoint)  # again: a detach from the same namespace may have come in between
        self._leave(endpoint.identity)
        self.endpoints[endpoint.identity] = endpoint
        self._enter(endpoint)
        self.attached_ns[endpoint.identity] = at
        self.changed(endpoint.identity)

    def drop(self, identity: Identity) -> None:
        """Remove an endpoint from those in place."""
        self._leave(identity)
        self.endpoints.pop(identity, None)
        self.attached_ns.pop(identity, None)

    def _enter(self, endpoint: Endpoint) -> None:
        if endpoint.netns:
            self._within.setdefault(endpoint.netns, {})[endpoint.identity] = endpoint

    def _leave(self, identity: Identity) -> None:
        """Take an endpoint out of the namespace in which it is known."""
        if (known := self.endpoints.get(identity)) is not None and (mates := self._within.get(known.netns)):
            mates.pop(identity, None)
            if not mates:
                del self._within[known.netns]

    def beside(self, endpoint: Endpoint) -> list[Endpoint]:
        """Return the other endpoints of an endpoint's container."""
        return multihoming.mates(endpoint, self.within(endpoint.netns))

    def mates(self, endpoint: Endpoint) -> Mates:
        """Return the other endpoints of an endpoint's container, as they are now."""
        found = self.beside(endpoint)
        # Endpoints of a network that is gone are about to be detached, too.
        homes = tuple((self.networks.get(mate.network), mate) for mate in found if self.networks.has(mate))
        return Mates(tuple(found), homes, self.networks.has(endpoint), tuple(self._policing.elements(endpoint)))

    def changed_pools(self) -> set[str]:
        """Take in which pools networks have now; return the networks whose pools have changed since the last time."""
        before, self._pools = self._pools, {network.name: network.pools for network in self.networks.all()}
        return {name for name, pools in before.items() if self._pools.get(name, pools) != pools}

    # what they need in the kernel

    def states(self, network: Network, endpoint: Endpoint) -> dict[tuple[str, ...], list[State]]:
        """Return the desired states with an endpoint as it is here, by source: its own, and its container's."""
        return self.mates(endpoint).states(network, endpoint)

    def without(self, endpoint: Endpoint) -> dict[tuple[str, ...], list[State]]:
        """Return the desired states without an endpoint, by source."""
        return self.mates(endpoint).without(endpoint)

    def ranked(self, network: Network, endpoint: Endpoint) -> Endpoint:
        """Return the endpoint with a metric after those of its container's other interfaces."""
        return self.mates(endpoint).ranked(network, endpoint)

    # what outlasts a verb

    def forget(self, endpoint: Endpoint) -> None:
        """Drop the row; if the disk refuses that now, ``retry_forgetting`` does it later."""
        try:
            self.journal.forget(endpoint, now())
        except Unavailable as error:
            log.warning("forget %s: %s", endpoint.id, error.message)
            self._unforgotten.append(endpoint)

    def retry_forgetting(self) -> None:
        """Drop the rows that a full disk kept."""
        waiting, self._unforgotten = self._unforgotten, []
        for endpoint in waiting:
            if endpoint.identity not in self.endpoints:
                self.forget(endpoint)

    def checkpoint(self) -> None:
        """Keep the journal's log short; waits for the disk, so never on the event loop."""
        with logged("journal"):
            self.journal.checkpoint()

    def keep(self, task: asyncio.Task[None]) -> None:
        """Hold a reference to a task that nobody awaits, until it has ended."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
