"""Healing: the machine is kept as it should be, by the kernel's events and by timers.

An event only marks kinds as dirty. SETTLE later those kinds are observed and mended, once for a burst of
events. Settings have no events and are read every POLL; all kinds are read every FULL, for events can be
lost. What could not be mended is tried again, ever more seldom, up to every FULL.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial

from linkspan.agent.metrics import Metrics
from linkspan.core.errors import LinkspanError
from linkspan.core.event_log import Happenings
from linkspan.core.fights import Contested, Fights
from linkspan.core.kinds import Event, Kinds
from linkspan.core.reconcile import Report
from linkspan.core.states.host import HOST, Key, State
from linkspan.core.supervise import lasting, pause, woken
from linkspan.endpoints import detach, multihoming
from linkspan.endpoints.registry import Identity, Registry, source
from linkspan.kernel.events import NftEvents, RouteEvents
from linkspan.kernel.worker import Worker

log = logging.getLogger("linkspan.agent.healer")

SETTLE = 0.05
"""Seconds from a first event to the look: one `ip` command makes several events within 2 ms (measured)."""

REST = 0.25
"""Seconds after a look before the next one by events: a burst of attaches is not slowed by looks without end."""

FOUGHT = 1.0
"""The same while another program keeps changing something."""

POLL = 1.0
"""Seconds between looks at what has no events: settings, a dead speaker's routes, peers of encrypted networks. A change
is to be mended within 2."""

FULL = 60.0
"""Seconds between looks at everything."""


Look = Callable[[], Awaitable[None]]
"""One of the things that are done at a look; raises LinkspanError where it cannot be."""


class Healer:
    """Watches, and sends the worker to mend.

    ``replan`` is called where facts of the machine may have changed, ``look_around`` where its addresses have, and
    ``look_at_programs`` again and again.
    """

    def __init__(
        self,
        worker: Worker,
        registry: Registry,
        happenings: Happenings,
        metrics: Metrics,
        replan: Look,
        look_around: Look,
        look_at_programs: Look,
        reap_after: float,
    ) -> None:
        self._worker = worker
        self._registry = registry
        self._happenings = happenings
        self._metrics = metrics
        self._replan = replan
        self._look_around = look_around
        self._look_at_programs = look_at_programs
        self._reap_after = reap_after
        self._dirty: set[type[State]] = set()
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._reading: list[asyncio.TimerHandle] = []
        self._dead_since: dict[Identity, float] = {}
        self._fighting: set[Key] = set()
        """What is known to be fought for: one event tells of each."""
        self._told: set[str] = set()
        """Why what fails still could not be mended: each is logged once, however often it is tried."""

    async def start(self) -> None:
        """Subscribe to events, and begin."""
        loop = asyncio.get_running_loop()
        machine = self._worker.machine
        own_ports = await self._worker.run_brief(machine.ports)
        self._route_events = RouteEvents(self._kinds, own_ports, machine.neighbours.own)
        self._nft_events = NftEvents(self._kinds)
        for events in (self._route_events, self._nft_events):
            loop.add_reader(events.socket.fileno(), self._come, events)
        loop.add_reader(machine.processes.fileno(), self._helper_died)
        settings = (self._see_settings, self._look_at_programs)
        everything = (self._checkpoint, self._replan, partial(self._resync, None))
        self._tasks = [
            lasting("healing", self._mend),
            lasting("looking at settings", partial(self._every, POLL, settings)),
            lasting("looking at everything", partial(self._every, FULL, everything)),
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
        """Leave what comes unread for SETTLE: an attach makes a dozen events, and no attach waits for their reading."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(events.socket.fileno())
        self._reading.append(loop.call_later(SETTLE, self._read, events))

    def _read(self, events: RouteEvents | NftEvents) -> None:
        self._reading = [handle for handle in self._reading if handle.when() > asyncio.get_running_loop().time()]
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
                self._dirty |= {type(s) for s in await self._worker.run(self._failing_states)} | self._fights.kinds()
            await self._settle()
            self._wake.clear()
            kinds, self._dirty = self._dirty, set()
            first = []
            if kinds & self._kinds.after(Event.NFT):
                first = [self._replan]
            elif kinds & self._kinds.after(Event.ADDRESS):  # somebody's: the underlay's perhaps
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
        """Tell of fights that are over, and bring ports up again whose guards hold."""
        ended, opened = await self._worker.run(self._fights.settle)
        for fight in ended:
            self._fighting.discard(fight.key)
            self._happenings.add("fight", f"nobody changes {fight.what} any more", key=fight.what)
        if opened:
            self._happenings.add("fight", "the rules that guard containers hold again: their ports come up")
            self._dirty |= self._kinds.after(Event.LINK, Event.ADDRESS_GONE)

    def dead(self) -> dict[Identity, float]:
        """Return the endpoints whose namespace is gone, with the seconds until they are detached if no runtime does."""
        now = time.monotonic()
        return {i: max(0.0, since + self._reap_after - now) for i, since in self._dead_since.items()}

    def orphaned(self, key: Key) -> bool:
        """Tell whether nobody wants the object but containers that are gone."""
        endpoints = self._registry.endpoints
        dead = [endpoints[identity] for identity in self._dead_since if identity in endpoints]
        gone = {source(endpoint) for endpoint in dead} | {multihoming.source(endpoint) for endpoint in dead}
        owners = set(self._worker.machine.reconciler.desired.owners(key)) if gone else set()
        return bool(owners) and owners <= gone

    def _again(self, kinds: set[type[State]]) -> None:
        """Look at the kinds once more, a little later."""
        self._dirty |= kinds
        asyncio.get_running_loop().call_later(POLL, self._wake.set)

    def _failing(self) -> set[Key]:
        return set(self._worker.machine.reconciler.failing)

    def _failing_states(self) -> Iterable[State]:
        desired = self._worker.machine.reconciler.desired.states()
        return [desired[key] for key in self._worker.machine.reconciler.failing if key in desired]

    async def _resync(self, kinds: Iterable[type[State]] | None) -> None:
        self.record(await self._worker.run(self._worker.machine.reconciler.resync, kinds))

    def record(self, report: Report) -> None:
        """Tell of each repair, and of what could not be repaired."""
        for heal in report.heals:
            log.info("healed %s %s: %s", heal.kind, heal.key, heal.what)
            self._metrics.heals.labels(heal.kind).inc()
            what = f"{heal.kind} {heal.key}: {_undone(heal.what)} by somebody else, mended"
            self._happenings.add("heal", what, kind=heal.kind, key=heal.key, change=heal.what)
        for kind in report.fought:
            self._metrics.heals.labels(kind).inc()
        for fight in self._fights.open():
            if fight.key not in self._fighting:
                self._fighting.add(fight.key)
                log.warning("%s", fight.message)
                self._happenings.add("fight", fight.message, key=fight.what, by=fight.by)
        why = {error.message for error in report.failed.values() if not isinstance(error, Contested)}
        for message in sorted(why - self._told):
            log.warning("cannot heal: %s", message)
        failing = list(self._worker.machine.reconciler.failing.values())
        self._told = why | (self._told & {error.message for error in failing})

    async def _see_settings(self) -> None:
        self._registry.retry_forgetting()
        await self._resync(self._kinds.polled)

    async def _checkpoint(self) -> None:
        await asyncio.to_thread(self._registry.checkpoint)

    async def _every(self, seconds: float, looks: Sequence[Look]) -> None:
        while True:
            await pause(seconds)
            await self._each(*looks, self._reap)

    async def _each(self, *looks: Look) -> bool:
        """Do one after the other, and tell whether all went well: what fails keeps the others from nothing."""
        well = True
        for look in looks:
            try:
                await look()
            except LinkspanError as error:
                log.warning("healing: %s", error.message)
                well = False
            except Exception:  # a fault of ours must not end all healing; the next look may do
                log.exception("healing failed by a fault of linkspan")
                well = False
        return well

    def _helper_died(self) -> None:
        if self._worker.machine.processes.died():
            # A helper ends when its device goes, and cannot begin without one; what it had loaded went with it.
            self._dirty |= self._kinds.after(Event.HELPER)
            self._wake.set()

    async def _reap(self) -> None:
        """Detach endpoints whose namespace has been gone for a while: their runtime has forgotten them."""
        desired, kinds = self._worker.machine.reconciler.desired, self._kinds
        states = (state for key in self._failing() if (state := desired.state(key)) is not None)
        failing = {name for state in states for netns, name in kinds.makes(state) if netns == HOST}
        suspects = [e for e in self._registry.endpoints.values() if e.host_ifname in failing]
        dead = set()
        for endpoint in suspects:
            if not await self._worker.run(self._worker.machine.alive, endpoint):
                dead.add(endpoint.identity)
        self._dead_since = {i: self._dead_since.get(i, time.monotonic()) for i in dead}
        for identity, since in list(self._dead_since.items()):
            if time.monotonic() - since >= self._reap_after:
                await detach.detach(self._registry, *identity)
                self._happenings.add(
                    "reap", f"{identity[0]} is gone, its address is free again", endpoint=identity[0]
                )


def _undone(what: str) -> str:
    return {"added": "removed", "removed": "added"}.get(what, what)
