"""Fast endpoints: which containers of this host are on the fast path of their network, and why others are not.

An attach does not wait for it: a container is on the path some milliseconds later. A detach removes what the path has
of an endpoint together with the endpoint (`endpoints/registry.py`). When policies have come into force here, the
endpoints that they are about leave the path: sooner, connection tracking could take an answer for the first packet of
a flow, and policies would judge that flow the wrong way round. It forgets what it knew of their flows before the path.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

import msgspec

from linkspan.agent.policy_elements import PolicyElements
from linkspan.agent.policy_records import PolicyRecords
from linkspan.backends import backend
from linkspan.cluster.networks import Networks
from linkspan.core import fast_path
from linkspan.core.addresses import Prefix, prefix
from linkspan.core.desired import Change, Source
from linkspan.core.errors import LinkspanError
from linkspan.core.host_view import HostView
from linkspan.core.model import Endpoint, Network
from linkspan.core.ruleset import TABLE
from linkspan.core.states.host import Key, NftLinkChain, NftTable, State
from linkspan.core.supervise import ended, lasting
from linkspan.endpoints.registry import Identity, fast_source, source
from linkspan.kernel.machine import Machine
from linkspan.kernel.probe import conntrack
from linkspan.kernel.worker import Worker
from linkspan.policy.regime import Regime

log = logging.getLogger("linkspan.agent.fast_endpoints")

Namespace = tuple[int, int]
"""A container's namespace: its inode and its cookie."""
_NAMED = 5
"""Containers that a sentence names: a policy may be about a thousand."""


class Standing(msgspec.Struct, frozen=True):
    """A fast network on this host: the number of endpoints on its fast path, and why others are not.

    ``obstacle`` is why none is, '' if nothing stops the host. ``left`` has the reason by the container's name.
    """

    endpoints: int
    obstacle: str = ""
    left: Mapping[str, str] = {}

    def words(self) -> str:
        """Return the standing in a sentence."""
        if self.obstacle:
            return f"not fast on this host: {self.obstacle}"
        named = [f"{name}: {why}" for name, why in sorted(self.left.items())]
        more = [f"and {len(named) - _NAMED} more"] if len(named) > _NAMED else []
        left = "; ".join([*named[:_NAMED], *more])
        if not self.endpoints and not left:
            return "fast on this host, which has none of its containers"
        return f"fast for {self.endpoints} of its containers here" + (f", not for {left}" if left else "")


class FastEndpoints:
    """Keeps the states that take endpoints into the fast path as records, policies and the machine want them."""

    def __init__(
        self,
        worker: Worker,
        networks: Networks,
        endpoints: Mapping[Identity, Endpoint],
        records: PolicyRecords,
        elements: PolicyElements,
        view: Callable[[], HostView],
    ) -> None:
        """Take the parts that it follows; ``endpoints`` are those of this host, and ``records`` those of policies."""
        self._worker = worker
        self._networks = networks
        self._endpoints = endpoints
        self._records = records
        self._elements = elements
        self._view = view
        self._in_force = Regime()
        """The policies whose rules are there, as far as that was followed."""
        self._due: set[Identity] = set()
        self._put: set[Identity] = set()
        """The endpoints that have been on the fast path, as far as they are not known to have left it."""
        self._publishing: frozenset[Namespace] = frozenset()
        """The containers that publish ports, as far as that was followed: it counts for all of their interfaces."""
        self._putting = asyncio.Lock()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start to follow endpoints."""
        self._task = lasting("keeping the fast path", self._follow)

    async def take_over(self) -> None:
        """Take in which endpoints the last agent put on the path; before the networks are followed."""
        if self._devices():
            chains = await self._worker.run(self._worker.machine.reconciler.observed, (NftLinkChain,))
            links = {chain.link for chain in chains if isinstance(chain, NftLinkChain)}
            self._put = {identity for identity, one in self._endpoints.items() if one.host_ifname in links}

    async def stop(self) -> None:
        """Stop following; what has been put stays."""
        await ended(self._task)

    async def leave_to_older(self) -> None:
        """Remove all of the path if the program that is installed by now knows none: nobody would keep it true.

        Its packets would pass policies, and get lost once another container has an address. It is the last thing that
        an agent does to the kernel: nothing puts it again.
        """
        if Path(fast_path.__file__).exists():
            return
        reconciler = self._worker.machine.reconciler
        table = NftTable(fast_path.NETDEV, TABLE)
        if table in await self._worker.run(reconciler.observed, (NftTable,)):
            failed = await self._worker.run(reconciler.apply, Change((), (table,)))
            left = "".join(f", but not all: {error.message}" for error in failed.values())
            log.warning("the installed program knows no fast path, so this agent removes it%s", left)

    def note(self, identity: Identity) -> None:
        """Follow an endpoint of this host that was added, changed or removed."""
        if self._put or self._devices():
            self._due.add(identity)
            self._wake.set()

    async def _follow(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            due, self._due = self._due, set()
            before, self._publishing = self._publishing, _publishing(self._endpoints.values())
            turned = before ^ self._publishing
            mates = {identity for identity, one in self._endpoints.items() if one.namespace in turned}
            await self._apply({*due, *mates})

    async def follow(self) -> None:
        """Follow networks; return when the endpoints that they exclude are off the path."""
        if self._put or self._devices():
            await self._apply({*self._endpoints, *self._put})

    async def follow_policies(self, in_force: Regime) -> None:
        """Follow policies, of which those in force have their rules; who is on the path leaves it for no others.

        Raises LinkspanError if the kernel refuses to remove something of the path.
        """
        self._in_force = in_force
        await self.follow()
        if (stuck := self._stuck()) is not None:
            raise stuck.within("take containers off the fast path")

    async def _apply(self, due: Iterable[Identity]) -> None:
        async with self._putting:
            devices = self._devices() if self._view().facts.early else {}
            publishing = _publishing(self._endpoints.values())
            sources = {identity: self._states(identity, devices, publishing) for identity in due}
            before = self._put
            self._put = before | {identity for identity, states in sources.items() if states}
            wanted = {fast_source(identity): states for identity, states in sources.items()}
            own = {fast_source(key): source(self._endpoints[key]) for key, states in sources.items() if states}
            try:
                failed = list((await self._worker.run(_changed, self._worker.machine, wanted, own)).values())
            except LinkspanError as refused:
                failed = [refused]
            for error in failed:  # the healer tries again
                log.warning("the fast path is not as it should be: %s", error.message)
            if self._stuck() is not None:
                return  # nobody knows who has left
            self._put -= {identity for identity, states in sources.items() if not states}
            if left := [one for key in before - self._put if (one := self._endpoints.get(key)) is not None]:
                await self._forget(left, before)

    def _stuck(self) -> LinkspanError | None:
        """Return why the kernel still has something of the path that nobody wants, None if it has nothing."""
        reconciler = self._worker.machine.reconciler
        failing = reconciler.failing
        path = (key for key in failing if key[1:3] == (fast_path.NETDEV, TABLE))
        return next((failing[key] for key in path if reconciler.desired.state(key) is None), None)

    async def _forget(self, left: Collection[Endpoint], before: Collection[Identity]) -> None:
        """Have connection tracking forget the flows inside their networks of endpoints that have left the path.

        It has not seen what passed on the path. It would take the next packets of an older flow for invalid ones. What
        never was on it goes on: flows with this host, and with containers here that were not on the path ``before``.
        """
        view = self._view()
        pools = {
            network.name: network.prefixes
            for network in self._networks.all()
            if backend(network.backend).fast_device(network) and not _obstacle(view, network)
        }
        others = {
            address.address: pools[one.network] for one in left if one.network in pools for address in one.prefixes
        }
        if not others:
            return
        aside = {text for network in self._networks.all() for text in network.gateways}
        aside |= {text for lease in view.leases for text in lease.addresses}
        aside |= {text for identity, one in self._endpoints.items() if identity not in before for text in one.addresses}
        inside = Inside(others, frozenset(prefix(text).address for text in aside))
        try:
            await asyncio.to_thread(conntrack.cut, inside)
        except LinkspanError as error:  # then such flows end
            log.warning("flows of before the fast path: %s", error.message)

    def _devices(self) -> dict[str, str]:
        """Return the tunnel devices of fast networks, by the networks' names."""
        found = {network.name: backend(network.backend).fast_device(network) for network in self._networks.all()}
        return {name: device for name, device in found.items() if device}

    def _states(
        self, identity: Identity, devices: Mapping[str, str], publishing: Collection[Namespace]
    ) -> list[State]:
        endpoint = self._endpoints.get(identity)
        if endpoint is None or endpoint.network not in devices:
            return []
        regime = self._in_force if identity in self._put else self._records.regime()
        if self._left(self._networks.get(endpoint.network), endpoint, regime, publishing):
            return []
        return list(fast_path.endpoint_states(endpoint, devices[endpoint.network]))

    def _left(
        self, network: Network, endpoint: Endpoint, regime: Regime, publishing: Collection[Namespace]
    ) -> str:
        """Return why an endpoint is not on the fast path though its host could take it, '' if it is."""
        if why := fast_path.unfit(network, endpoint):
            return why
        if endpoint.namespace in publishing:
            return "its container publishes ports"
        chosen = regime.chosen(self._elements.subject(endpoint)) if regime else frozenset()
        if whose := next(iter(regime.judge.about(chosen)), ""):
            return f"{whose} is about it"
        return "a staged policy is about it" if any(chosen & one for one in regime.watched.values()) else ""

    def told(self, network: Network) -> dict[str, object] | None:
        """Return the standing of a network as JSON has it; None if it has no option ``fast``."""
        found = self.standing(network)
        return None if found is None else msgspec.to_builtins(found) | {"words": found.words()}

    def standing(self, network: Network) -> Standing | None:
        """Return how a network is doing on this host; None if it has no option ``fast``."""
        if not backend(network.backend).fast_device(network):
            return None
        if obstacle := _obstacle(self._view(), network):
            return Standing(0, obstacle)
        regime, publishing = self._records.regime(), _publishing(self._endpoints.values())
        own = [one for one in self._endpoints.values() if one.network == network.name]
        left = [(one.called, why) for one in own if (why := self._left(network, one, regime, publishing))]
        return Standing(len(own) - len(left), left=dict(left))  # containers may share a name


class Inside:
    """Flows that may have been on the fast path, of containers that were."""

    def __init__(self, others: Mapping[str, Collection[Prefix]], aside: Collection[str]) -> None:
        """Take the pools of its network by a container's address, and the addresses that were not on the path here."""
        self._others = others
        self._aside = aside

    def __call__(self, flow: conntrack.Flow) -> bool:
        """Return whether it is such a flow; one that is translated is none, and its packets never skip the rules."""
        ends = flow.source, flow.target
        if flow.translated is not None or any(end.address in self._aside for end in ends):
            return False
        pairs = ends, ends[::-1]
        return any(pool.holds(other) for one, other in pairs for pool in self._others.get(one.address, ()))


def _changed(
    machine: Machine, wanted: Mapping[Source, Iterable[State]], own: Mapping[Source, Source]
) -> Mapping[Key, LinkspanError]:
    """Apply the states of sources, and return errors (worker thread).

    ``own`` has the source of the endpoint's other states. If these are gone, a detach is under way, and has removed the
    states of the path, too: they would lead to a link that does not exist.
    """
    there = machine.reconciler.desired.sources()
    gone = dict.fromkeys((path for path, endpoint in own.items() if endpoint not in there), ())
    return machine.reconciler.changes({**wanted, **gone})


def _publishing(endpoints: Iterable[Endpoint]) -> frozenset[Namespace]:
    """Return the containers that publish ports, as far as their namespaces are known."""
    return frozenset(one.namespace for one in endpoints if one.ports and one.netns)


def _obstacle(view: HostView, network: Network) -> str:
    """Return why this host forwards no packet of a fast network early, '' if it does."""
    here = view.host.underlay if view.host is not None else None
    overhead = backend(network.backend).overhead[here.outer] if here is not None else 0
    return fast_path.obstacle(view, network, overhead)
