"""Plans: the host's states for its networks apart from endpoints and peers, and their order.

A device is put before its peers' entries on it, and removed after them. So the agent applies a change, lets
the peers follow, and then drops what is no longer needed.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator

from linkspan.backends import BACKENDS, backend, migration
from linkspan.core import ruleset
from linkspan.core.config import Config
from linkspan.core.desired import Source
from linkspan.core.errors import LinkspanError
from linkspan.core.host_view import HostView
from linkspan.core.model import Network
from linkspan.core.states.host import Key, State
from linkspan.kernel.kinds import kinds
from linkspan.kernel.worker import Worker
from linkspan.runtimes import exposure_files

log = logging.getLogger("linkspan.agent.plans")


class Plans:
    """The sources of states that belong neither to an endpoint nor to a peer."""

    def __init__(self, worker: Worker, view: Callable[[], HostView], config: Config) -> None:
        self._worker = worker
        self._config = config
        self._view = view
        self._plans: dict[Source, list[State]] = {}
        self._too_much: set[Source] = set()
        self._refused: dict[Source, LinkspanError] = {}

    @property
    def problems(self) -> list[str]:
        """Return why this host cannot have the states that networks want; it keeps those it had."""
        return list(dict.fromkeys(error.told for error in self._refused.values()))

    def _wanted(self) -> Iterator[tuple[Source, list[State]]]:
        view = self._view()
        # Also for networks of backend host: policies, and ``from=``, limit who may come in by their containers' ports.
        states = [*ruleset.skeleton(view.facts, kinds()), *ruleset.control(view)] if view.networks else []
        yield ("host", "firewall"), states
        for way in BACKENDS.values():
            if way.host_phase != "before networks":
                continue  # ``cluster/shared_states`` puts it
            source = ("host", way.name)
            states = self._possible(source, way.host(view))
            if states or source in self._plans:  # after its last network it is removed late, as an unused plan
                yield source, states
        for network in view.networks:
            source = ("network", network.name)
            wanted = migration.network_states(view, network)
            yield source, self._possible(source, itertools.chain(_admission(network), wanted))
            if network.expose:
                yield ("expose", network.name), list(exposure_files(network, self._config))

    def _possible(self, source: Source, wanted: Iterable[State]) -> list[State]:
        """Return the states of a source; if they are impossible (now), the old ones and those that come before them.

        So the states that keep a network closed are always there.
        """
        states: list[State] = []
        try:
            states.extend(wanted)  # a source that raises has yielded some states before
        except LinkspanError as error:
            if source not in self._refused or self._refused[source].told != error.told:
                log.warning("%s", error.told)
            self._refused[source] = error
            had = {state.key: state for state in self._plans.get(source, [])}
            return list((had | {state.key: state for state in states}).values())
        self._refused.pop(source, None)
        return states

    async def put(self) -> dict[Key, LinkspanError]:
        """Put what every network needs, beside its earlier states; an error of one network is reported as such.

        The states of a deleted network go first, because another network may have its addresses or its VNI
        now.
        """
        failed: dict[Key, LinkspanError] = {}
        plans = dict(self._wanted())
        for gone in self._plans.keys() - plans.keys():  # another host deleted it
            self._refused.pop(gone, None)
            failed.update(await self._worker.run(self._worker.machine.reconciler.change, gone, ()))
        self._plans = plans
        failed.update((source, error) for source, error in self._refused.items() if source[0] == "network")
        for source, states in plans.items():
            try:
                failed.update(await self._worker.run(self._put, source, states))
            except LinkspanError as error:
                log.warning("%s", error.message)
                failed[source] = error
        return failed

    def _put(self, source: Source, states: list[State]) -> dict[Key, LinkspanError]:
        reconciler = self._worker.machine.reconciler
        new = {state.key: state for state in states}
        before = reconciler.desired.sources().get(source, {})
        if before.keys() - new.keys():
            self._too_much.add(source)
        return reconciler.change(source, (before | new).values())

    async def drop(self) -> None:
        """Drop what networks needed and no longer need."""
        too_much, self._too_much = self._too_much, set()
        for source in too_much & self._plans.keys():
            change = self._worker.machine.reconciler.change
            try:
                failed = await self._worker.run(change, source, self._plans[source])
            except LinkspanError as error:  # ``put`` reported it already, and the network keeps its states
                failed = {source: error}
            for why in failed.values():
                log.warning("%s", why.message)


def _admission(network: Network) -> Iterator[State]:
    """Return the chains for packets of a network that come from other hosts: the kinds say by which devices."""
    if backend(network.backend).crosses_hosts:
        lengths = network.subnet_len
        yield from (ruleset.admission(pool, lengths[str(pool.family)], kinds()) for pool in network.prefixes)
