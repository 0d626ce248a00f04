"""Orphans: veth pairs of ours whose container neither the journal, the store nor the kernel's rules name.

The first resync removes what no source wants. An agent that has just lost its journal may not know yet what
is wanted. So while there are orphans, it keeps everything that the first resync would remove, for a grace
time: the pair would be useless without its bridge and its rules. It reserves their addresses, and `status`
shows until when. Once the container is known (from the store's record, or a runtime's call), it becomes an
endpoint again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection, Iterable, Mapping

import msgspec

from linkspan.cluster.address_usage import AddressUsage
from linkspan.cluster.networks import Networks
from linkspan.cluster.readiness import Readiness
from linkspan.core.addresses import Prefix
from linkspan.core.clock import now
from linkspan.core.desired import Source
from linkspan.core.errors import LinkspanError
from linkspan.core.event_log import EventLog
from linkspan.core.states.host import State
from linkspan.core.supervise import ended, lasting, woken
from linkspan.endpoints import reconstruction
from linkspan.endpoints.journal import Journal, Row
from linkspan.endpoints.reconstruction import Link, concerns
from linkspan.kernel.worker import Worker
from linkspan.policy import readings

log = logging.getLogger("linkspan.endpoints.orphans")

SOURCE = ("orphans",)


class Orphans:
    """The orphans of this host, each with the time of its removal."""

    def __init__(
        self,
        worker: Worker,
        journal: Journal,
        networks: Networks,
        blocks: AddressUsage,
        readiness: Readiness,
        event_log: EventLog,
        grace: float,
    ) -> None:
        self._worker = worker
        self._journal = journal
        self._networks = networks
        self._blocks = blocks
        self._readiness = readiness
        self._event_log = event_log
        self._grace = grace
        self._until: dict[str, float] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.links: dict[str, Link] = {}
        self.rows: dict[str, Row] = {}
        """Journal rows of orphans whose network is unknown, by the names of their pairs."""
        self.ended: set[str] = set()
        """Host ends that the last agent was about to remove: they are no orphans."""

    def start(self) -> None:
        """Start to remove each orphan at its time."""
        self._task = lasting("removing orphans", self._remove_in_time)

    async def stop(self) -> None:
        """Stop; the pairs stay, and the next agent gives them the whole grace time again."""
        await ended(self._task)

    def keep_rows(self, rows: Mapping[str, Row]) -> None:
        """Remember the journal's rows of pairs whose network nobody knows, by the pairs' names."""
        self.rows = dict(rows)

    def add(self, link: Link) -> None:
        """Keep a pair for the grace time, which starts once, and reserve its addresses."""
        name = link.veth.name
        for network, address in self._held(link):
            with contextlib.suppress(LinkspanError):  # another pair has it as well
                self._blocks.hold(network, address, f"orphan {name}")
        if name in self.links:
            return
        if not link.addresses:
            self._readiness.doubt(name)
        self.links[name], self._until[name] = link, now() + self._grace
        what = f"{reconstruction.text_of(link)} is an orphan, and is removed in {self._grace:.0f} s"
        log.warning("%s", what)
        self._event_log.add("recover", what, link=name)
        self._wake.set()

    async def spare(self) -> None:
        """Desire what the first resync would remove, while there are orphans; called once, before it."""
        if self.links:
            await self._worker.run(self._spare, frozenset(self.ended))

    def _spare(self, ended: Collection[str]) -> None:
        """Desire what would be removed, except the pairs that ``ended`` (worker thread).

        What belongs to policies is left out: they are known, so rules that they do not want must not stay in force.
        """
        reconciler = self._worker.machine.reconciler
        change, _ = reconciler.difference()
        ending = (state for state in change.delete if not readings.ours(state))
        kept = [state for state in ending if not any(concerns(state, name) for name in ended)]
        reconciler.desired.replace(SOURCE, map(_as_made, kept))

    def unhold(self, name: str) -> None:
        """Release an orphan's reservations for its container, which is known now; do nothing if it is no orphan."""
        if (link := self.links.get(name)) is not None:
            self._give_back(link)

    def forget(self, name: str) -> None:
        """Remove a pair from the orphans, if it is one: an endpoint has it."""
        self._until.pop(name, None)
        self.links.pop(name, None)
        self._readiness.trust(name)

    async def hand_over(self, name: str, wanted: Mapping[Source, Iterable[State]]) -> None:
        """Drop a pair and desire what its endpoint needs.

        In one step: a resync in between would remove what no source wants.
        """
        await self._worker.run(self._handed_over, name, wanted, bool(self.links))

    def _handed_over(self, name: str, wanted: Mapping[Source, Iterable[State]], others: bool) -> None:
        """Hand over (worker thread); ``others`` says whether other orphans are left."""
        desired = self._worker.machine.reconciler.desired
        if SOURCE in desired.sources():
            desired.replace(SOURCE, self._kept_without(name, others))
        for source, states in wanted.items():
            desired.replace(source, states)

    async def remove(self) -> None:
        """Remove all of them now: an operator has decided."""
        for name in list(self.links):
            await self._remove(name)

    def told(self) -> list[dict[str, object]]:
        """Return each orphan, for `status`."""
        return [
            {
                "link": name,
                "what": reconstruction.text_of(link),
                "addresses": [address.address for address in link.addresses],
                "removed_in": max(0.0, self._until[name] - now()),
            }
            for name, link in self.links.items()
        ]

    def _held(self, link: Link) -> list[tuple[str, Prefix]]:
        return [
            (network.name, address)
            for address in link.addresses
            for network in self._networks.all()
            if any(pool.holds(address) for pool in network.prefixes)
        ]

    def _give_back(self, link: Link) -> None:
        for network, address in self._held(link):
            self._blocks.release(network, [address])

    def _kept_without(self, name: str, others: bool) -> list[State]:
        """Return what to keep without a pair; nothing after the last orphan (worker thread)."""
        spared = self._worker.machine.reconciler.desired.sources().get(SOURCE, {}).values()
        return [state for state in spared if not concerns(state, name)] if others else []

    def _taken_away(self, name: str, others: bool) -> list[LinkspanError]:
        """Remove a pair, and what is kept for it (worker thread)."""
        return list(self._worker.machine.reconciler.change(SOURCE, self._kept_without(name, others)).values())

    async def _remove(self, name: str) -> None:
        if (link := self.links.get(name)) is None:  # its container has become known meanwhile
            return
        self.forget(name)
        for error in await self._worker.run(self._taken_away, name, bool(self.links)):
            log.warning("orphan %s: %s", name, error.message)
        self._give_back(link)
        if (row := self.rows.pop(name, None)) is not None:
            try:  # if its row stayed, the container could never be attached again
                self._journal.forget(row.endpoint, now())
            except LinkspanError as error:
                log.warning("orphan %s: %s", name, error.message)
        what = f"{reconstruction.text_of(link)} was an orphan, and is removed"
        self._event_log.add("recover", what, link=name)

    async def _remove_in_time(self) -> None:
        while True:
            left = min(self._until.values(), default=None)
            self._wake.clear()
            await woken(self._wake, None if left is None else max(0.0, left - now()))
            for name in [name for name, until in self._until.items() if until <= now()]:
                await self._remove(name)


def _as_made(state: State) -> State:
    """Return the observed states without attributes that somebody else has set."""
    return msgspec.structs.replace(state, amiss=()) if getattr(state, "amiss", ()) else state
