"""What this host needs for its networks whatever their endpoints and peers are, and in which order it comes and goes.

A device is put before what peers have on it, and goes after that: so a change is put, the peers follow, and then
what is no longer needed is dropped.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator

from linkspan.backends import BACKENDS, migration
from linkspan.core import ruleset
from linkspan.core.config import Config
from linkspan.core.desired import Source
from linkspan.core.errors import LinkspanError
from linkspan.core.model import HostView
from linkspan.core.states.host import Key, State
from linkspan.kernel.kinds import kinds
from linkspan.kernel.worker import Worker
from linkspan.runtimes import expose

log = logging.getLogger("linkspan.agent.plans")


class Plans:
    """The sources of states that are not an endpoint's or a peer's."""

    def __init__(self, worker: Worker, view: Callable[[], HostView], config: Config) -> None:
        self._worker = worker
        self._config = config
        self._view = view
        self._plans: dict[Source, list[State]] = {}
        self._too_much: set[Source] = set()
        self._refused: dict[Source, LinkspanError] = {}

    @property
    def problems(self) -> list[str]:
        """Why this host cannot have what networks want; what it had stays."""
        return list(dict.fromkeys(error.told for error in self._refused.values()))

    def _wanted(self) -> Iterator[tuple[Source, list[State]]]:
        view = self._view()
        used = any(network.backend != "host" for network in view.networks)
        yield ("host", "firewall"), [*ruleset.skeleton(view.facts, kinds()), *ruleset.control(view)] if used else []
        for way in BACKENDS.values():
            if way.encrypts:  # one device for all networks: before what they put on it
                yield ("host", way.name), self._possible(("host", way.name), way.host(view))
        for network in view.networks:
            source = ("network", network.name)
            yield source, self._possible(source, migration.network_states(view, network))
            if network.expose:
                yield ("expose", network.name), list(expose.files(network, self._config))

    def _possible(self, source: Source, wanted: Iterable[State]) -> list[State]:
        """Return what a source wants; where this host cannot have it (now), what it had, and what comes before that.

        So what keeps a network closed stands in any case.
        """
        states: list[State] = []
        try:
            states.extend(wanted)  # one that raises leaves what it has yielded
        except LinkspanError as error:
            if source not in self._refused or self._refused[source].told != error.told:
                log.warning("%s", error.told)
            self._refused[source] = error
            had = {state.key: state for state in self._plans.get(source, [])}
            return list((had | {state.key: state for state in states}).values())
        self._refused.pop(source, None)
        return states

    async def put(self) -> dict[Key, LinkspanError]:
        """Put what every network needs, beside what it needed; one that is at odds with another is an error of its own.

        What a network needed that is no more goes first, for another may have its addresses or its VNI now.
        """
        failed: dict[Key, LinkspanError] = {}
        plans = dict(self._wanted())
        for gone in self._plans.keys() - plans.keys():  # a network that another host deleted
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
        """Take away what networks needed and do not need any more."""
        too_much, self._too_much = self._too_much, set()
        for source in too_much & self._plans.keys():
            change = self._worker.machine.reconciler.change
            try:
                failed = await self._worker.run(change, source, self._plans[source])
            except LinkspanError as error:  # ``put`` told so already, and what the network needed stays
                failed = {source: error}
            for why in failed.values():
                log.warning("%s", why.message)
