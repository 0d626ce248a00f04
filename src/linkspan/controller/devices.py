"""Devices that a controller programs: each has a driver, a reconciler, a thread and its own schedule.

So a device that hangs, or is away, delays no other.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, Generic, TypeVar

from linkspan.core.desired import Change
from linkspan.core.driver_contract import Driver
from linkspan.core.errors import LinkspanError
from linkspan.core.kinds import Kind
from linkspan.core.reconcile import Heal, Reconciler
from linkspan.core.states.host import State
from linkspan.core.states.openflow import Flow, Seen
from linkspan.core.supervise import woken
from linkspan.kernel.drivers import frr, openflow
from linkspan.kernel.drivers.frr import FrrDriver
from linkspan.kernel.drivers.openflow import OpenFlowDriver

log = logging.getLogger("linkspan.controller")

AGAIN, LATEST = 0.5, 4.0
"""Seconds until a device that did not answer is retried: each time twice as many, up to the second value. A
restarted switch has no flows, and carries nothing until the controller finds that it answers."""
HEALS = 20
_SOURCE = ("controller",)
D = TypeVar("D", bound=Driver)
T = TypeVar("T")


class Device(Generic[D]):
    """A device by its name: ``wanted`` is its desired state; ``problem`` says why it may not have it."""

    kinds: ClassVar[tuple[Kind[Any], ...]]
    """Kinds of state of such a device."""

    def __init__(self, name: str, address: str, driver: D) -> None:
        self.name = name
        self.address = address
        self.driver = driver
        self.problem = "it has not answered yet"
        self.heals: deque[Heal] = deque(maxlen=HEALS)
        self.healed = 0
        self.since = 0.0
        """When it last answered, in seconds since the epoch."""
        self.away = False
        """Whether it did not answer the last request."""
        self.wake = asyncio.Event()
        self.reconciler = Reconciler((kind, driver) for kind in self.kinds)
        self._hand = ThreadPoolExecutor(1, f"device {name}")
        self.ready = False
        """Whether it has all desired states, and at least one."""
        self._settled = False
        """Whether all desired states were put once: later repairs undo somebody's change."""

    async def serve(self, turn: Callable[[], Awaitable[float]]) -> None:
        """Take turns with it while the controller runs: each returns the seconds until the next one.

        A failed turn is retried with growing backoff; ``wake`` shortens the wait only after a successful one.
        """
        failed = 0
        while True:
            self.wake.clear()
            try:
                pause = await turn()
            except LinkspanError as error:
                self.away, self.ready = True, False
                self.say(error.told)
                await asyncio.sleep(min(AGAIN * 2**failed, LATEST))
                failed += 1
            else:
                self.away, failed = False, 0
                self.since = time.time()
                await woken(self.wake, pause)

    async def call(self, work: Callable[[], T]) -> T:
        """Run a blocking call to the device in a thread of its own, so that a hanging device does not block others."""
        return await asyncio.get_running_loop().run_in_executor(self._hand, work)

    def close(self) -> None:
        """Release its thread; do not wait for what it does now."""
        self._hand.shutdown(wait=False, cancel_futures=True)

    def say(self, problem: str) -> None:
        """Record its problem, '' if there is none."""
        if problem and problem != self.problem:
            log.warning("%s", problem)
        elif self.problem and not problem:
            log.info("%s has its desired state", self.name)
        self.problem = problem

    def want(self, states: Sequence[State]) -> Change:
        """Record its desired state, whether this controller applies it or not; return the changes."""
        return self.reconciler.desired.replace(_SOURCE, states)

    def stand_by(self, states: Sequence[State]) -> None:
        """Adopt the desired state while another controller applies it (its thread)."""
        self.want(states)
        self._settled = False
        self.say("")

    def put(self, states: Sequence[State]) -> None:
        """Make it have exactly these states (its thread)."""
        change = self.want(states)
        # After it had all states once, a difference beyond the change was made by somebody else. Before that,
        # existing states are not put again, because their counters would restart.
        if self._settled and (change.put or change.delete):
            self.reconciler.apply(change)
        report = self.reconciler.resync()
        if self._settled:
            self.heals.extend(report.heals)
            self.healed += len(report.heals)
        self._settled = not report.failed
        self.ready = self._settled and bool(states)
        first = next(iter(report.failed.values()), None)
        self.say("" if first is None else first.message)

    def differs(self) -> Change:
        """Return the states to add and to remove (its thread)."""
        change, _ = self.reconciler.difference()
        return change


class Switch(Device[OpenFlowDriver]):
    """An OpenFlow switch."""

    kinds = openflow.KINDS

    @property
    def flows(self) -> list[Flow]:
        """Return its desired flows, as last set."""
        return [state for state in self.reconciler.desired.states().values() if isinstance(state, Flow)]

    def look(self) -> Seen:
        """Return its ports and notes (its thread)."""
        ports = self.driver.ports()
        self.driver.look()
        return Seen(ports, self.driver.notes)


class Router(Device[FrrDriver]):
    """A router."""

    kinds = frr.KINDS


def devices(
    switches: Iterable[tuple[str, str]], routers: Iterable[tuple[str, str]], tls: dict[str, str], ssh: dict[str, str]
) -> tuple[list[Switch], list[Router]]:
    """Return the devices in a controller's settings."""
    return (
        [Switch(name, address, OpenFlowDriver(name, address, tls)) for name, address in switches],
        [Router(name, address, FrrDriver(name, address, ssh)) for name, address in routers],
    )
