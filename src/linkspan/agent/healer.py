"""Healing: keeps the machine in its desired state, by kernel events and by timers.

An event only marks kinds as dirty. SETTLE later the healer observes and repairs these kinds, once for a burst
of events. Settings have no events: the healer reads them every POLL. It reads all kinds every FULL, because
events can be lost. It retries failed repairs with growing backoff, up to every FULL.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial

from linkspan.agent.metrics import Metrics
from linkspan.core import garbage
from linkspan.core.clock import loop_time
from linkspan.core.errors import LinkspanError
from linkspan.core.fights import Contested, Fights
from linkspan.core.kinds import Event, Kinds, netns_of
from linkspan.core.reconcile import Report
from linkspan.core.states.host import HOST, Key, State
from linkspan.core.supervise import lasting, pause, woken
from linkspan.endpoints.registry import Registry
from linkspan.kernel.events import NftEvents, RouteEvents

log = logging.getLogger("linkspan.agent.healer")

SETTLE = 0.05
"""Seconds from a first event to the observation: one `ip` command causes several events within 2 ms (measured)."""

REST = 0.25
"""Seconds from one observation to the next one by events, so that endless observations do not slow a burst of
attaches."""

FOUGHT = 1.0
"""The same while another program keeps changing something."""

POLL = 1.0
"""Seconds between observations of what has no events: settings, a dead speaker's routes, peers of encrypted
networks. A change must be repaired within 2 s."""

FEW = 30
"""Containers up to which the loop itself finds out whether settings are as they were, in a millisecond: the way to the
worker and back costs an idle agent a third of that."""

FULL = 60.0
"""Seconds between observations of everything."""


Look = Callable[[], Awaitable[None]]
"""One step of an observation; raises LinkspanError if it fails."""


class Healer:
    """Watches the machine, and has the worker repair it.

    It calls ``replan`` if facts of the machine may have changed, ``look_around`` if its addresses may have,
    ``look_at_programs`` every POLL, and ``reap`` after each look.
    """

    def __init__(
        self,
        registry: Registry,
        metrics: Metrics,
        replan: Look,
        look_around: Look,
        look_at_programs: Look,
        reap: Look,
    ) -> None:
        self._registry = registry
        self._worker = registry.worker
        self._event_log = registry.event_log
        self._metrics = metrics
        self._replan = replan
        self._look_around = look_around
        self._look_at_programs = look_at_programs
        self._reap = reap
        self._dirty: set[type[State]] = set()
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._reading: list[asyncio.TimerHandle] = []
        self._fighting: set[Key] = set()
        """Fights that are known: each causes one event."""
        self._told: set[str] = set()
        """Why each failed repair failed: each reason is logged once, however often the repair is retried."""

    async def start(self) -> None:
        """Subscribe to events, and start the timers."""
        loop = asyncio.get_running_loop()
        machine = self._worker.machine
        own_ports = await self._worker.run_brief(machine.ports)
        self._route_events = RouteEvents(
            self._kinds, own_ports, machine.neighbours.own, machine.links.leaving
        )
        self._nft_events = NftEvents(self._kinds)
        for events in (self._route_events, self._nft_events):
            loop.add_reader(events.socket.fileno(), self._come, events)
        loop.add_reader(machine.processes.fileno(), self._helper_died)
        settings = (self._see_settings, self._look_at_programs)
        everything = (
            self._checkpoint, self._replan, partial(self._resync, None), self._see_imposed, self._give_back,
        )  # fmt: skip
        self._tasks = [
            lasting("healing", self._mend),
            lasting("polling settings", partial(self._every, POLL, settings)),
            lasting("checking everything", partial(self._every, FULL, everything)),
        ]

    async def stop(self) -> None:
        """End the tasks and unsubscribe."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for handle in self._reading:
            handle.cancel()
        loop = asyncio.get_running_loop()
        for events in (self._route_events, self._nft_events):
            loop.remove_reader(events.socket.fileno())
            events.socket.close()
        loop.remove_reader(self._worker.machine.processes.fileno())

    def _come(self, events: RouteEvents | NftEvents) -> None:
        """Leave events unread for SETTLE: an attach makes a dozen events, and must not wait until they are read."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(events.socket.fileno())
        self._reading.append(loop.call_later(SETTLE, self._read, events))

    def _read(self, events: RouteEvents | NftEvents) -> None:
        self._reading = [handle for handle in self._reading if handle.when() > loop_time()]
        asyncio.get_running_loop().add_reader(events.socket.fileno(), self._come, events)
        kinds = events.dirty()
        self._fights.changed_by(kinds - self._kinds.after(Event.SETTING), events.actor)
        if kinds:
            self._dirty |= kinds
            self._wake.set()

    async def _mend(self) -> None:
        wait, known = 1.0, set[Key]()
        while True:
            soon = self._fights.soon()
            waits = [*([wait] if self._failing() else []), *([] if soon is None else [soon])]
            if not await woken(self._wake, min(waits, default=None)):
                if soon is None or soon >= wait:
                    wait = min(wait * 2, FULL)
                self._dirty |= await self._worker.run(self._failing_kinds) | self._fights.kinds()
            await self._settle()
            self._wake.clear()
            kinds, self._dirty = self._dirty, set()
            first = []
            if kinds & self._kinds.after(Event.NFT):
                first = [self._replan]
            elif kinds & self._kinds.after(Event.ADDRESS):  # another program's address: the underlay's, perhaps
                first = [self._look_around]
            if not await self._each(*first, partial(self._resync, kinds), self._reap):
                self._again(kinds)
            if self._failing() - known:
                wait = 1.0
            known = self._failing()
            await asyncio.sleep(FOUGHT if self._fights.open() else REST)

    @property
    def _fights(self) -> Fights:
        return self._worker.machine.reconciler.fights

    @property
    def _kinds(self) -> Kinds:
        return self._worker.machine.reconciler.kinds

    async def _settle(self) -> None:
        """Report fights that are over, and set ports up again whose guards are in force."""
        ended, opened = await self._worker.run(self._fights.settle)
        for fight in ended:
            self._fighting.discard(fight.key)
            self._event_log.add("fight", f"the fight is over: nobody changes {fight.what} any more", key=fight.what)
        if opened:
            self._event_log.add("fight", "the rules that guard containers are in force again: their ports come up")
            self._dirty |= self._kinds.after(Event.LINK, Event.LINK_GONE, Event.ADDRESS_GONE)

    def _again(self, kinds: set[type[State]]) -> None:
        """Observe the kinds again, a little later."""
        self._dirty |= kinds
        asyncio.get_running_loop().call_later(POLL, self._wake.set)

    def _failing(self) -> set[Key]:
        return set(self._worker.machine.reconciler.failing)

    def _failing_kinds(self) -> set[type[State]]:
        """Return the kinds of what could not be put or deleted; what is fought about has a time of its own."""
        reconciler = self._worker.machine.reconciler
        names = {
            key[0]
            for key, error in reconciler.failing.items()
            if reconciler.desired.state(key) is not None or not isinstance(error, Contested)
        }
        return {kind.state for kind in self._kinds if kind.name in names}

    async def _resync(self, kinds: Iterable[type[State]] | None) -> None:
        self.record(await self._worker.run(self._worker.machine.reconciler.resync, kinds))

    def record(self, report: Report) -> None:
        """Record each repair, and each failed repair."""
        for heal in report.heals:
            inside = self._registry.inside(heal.netns)
            where = f"{heal.kind} {heal.key}" + (f" in {inside}" if inside else "")
            log.info("healed %s: %s", where, heal.what)
            self._metrics.heals.count(heal.kind)
            what = f"{where}: {_undone(heal.what)} by another program, repaired"
            self._event_log.add("heal", what, kind=heal.kind, key=heal.key, change=heal.what, inside=inside)
        for kind in report.fought:
            self._metrics.heals.count(kind)
        for fight in self._fights.open():
            if fight.key not in self._fighting:
                self._fighting.add(fight.key)
                log.warning("%s", fight.message)
                self._event_log.add("fight", fight.message, key=fight.what, by=fight.by)
        failed = {key: error for key, error in report.failed.items() if not isinstance(error, Contested)}
        why = self._words(failed)
        for message in sorted(why - self._told):
            log.warning("cannot heal: %s", message)
        self._told = why | (self._told & self._words(self._worker.machine.reconciler.failing))

    def _words(self, failed: Mapping[Key, LinkspanError]) -> set[str]:
        """Return why repairs failed; of what is imposed on a container, with the container's name."""
        reconciler = self._worker.machine.reconciler
        inside = {key: self._registry.inside(reconciler.imposed_on(key)) for key in failed}
        return {f"in {inside[key]}: {error.message}" if inside[key] else error.message for key, error in failed.items()}

    async def _see_settings(self) -> None:
        self._registry.retry_forgetting()
        reconciler, polled = self._worker.machine.reconciler, self._kinds.polled
        few = len(self._registry.endpoints) <= FEW
        if not (few and await self._worker.run_brief(reconciler.is_settled, polled)):
            await self._resync(polled)

    async def _see_imposed(self) -> None:
        """Put back inside containers what they may not choose, a limit for example: no event is seen there."""
        reconciler, imposed = self._worker.machine.reconciler, self._kinds.imposed
        desired = await self._worker.run_brief(reconciler.desired.states, imposed)
        if inside := {netns_of(state) for state in desired.values()} - {HOST}:
            self.record(await self._worker.run(reconciler.resync, imposed, inside))

    async def _checkpoint(self) -> None:
        await asyncio.to_thread(self._registry.checkpoint)

    async def _give_back(self) -> None:
        await asyncio.to_thread(garbage.give_back)

    async def _every(self, seconds: float, looks: Sequence[Look]) -> None:
        while True:
            await pause(seconds)
            await self._each(*looks, self._reap)

    async def _each(self, *looks: Look) -> bool:
        """Do one step after the other, past errors, and return whether all succeeded."""
        well = True
        for look in looks:
            try:
                await look()
            except LinkspanError as error:
                log.warning("healing: %s", error.message)
                well = False
            except Exception:  # a defect in one step must not end all healing; the next run may succeed
                log.exception("healing failed because of a defect in linkspan")
                well = False
        return well

    def _helper_died(self) -> None:
        if self._worker.machine.processes.died():
            # A helper ends when its device is removed, and cannot start without one. What it had loaded is
            # lost with it.
            self._dirty |= self._kinds.after(Event.HELPER)
            self._wake.set()


def _undone(what: str) -> str:
    return {"added": "removed", "removed": "added"}.get(what, what)
