"""The devices that a controller programs: each has a driver, a reconciler, a thread and a pace of its own.

So one that hangs, or is away, keeps no other waiting.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, Generic, TypeVar

from linkspan.core.contracts import Driver
from linkspan.core.desired import Change
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
"""Seconds until a device that did not answer is tried again: each time twice as many, up to these. A switch that
starts anew has no flows, and carries nothing until it is found to answer."""
HEALS = 20
_SOURCE = ("controller",)
D = TypeVar("D", bound=Driver)
T = TypeVar("T")


class Device(Generic[D]):
    """A device by its name: what it should have is ``wanted``; ``problem`` says why it is not known to have it."""

    kinds: ClassVar[tuple[Kind[Any], ...]]
    """What can be put on such a device."""

    def __init__(self, name: str, address: str, driver: D) -> None:
        self.name = name
        self.address = address
        self.driver = driver
        self.problem = "it has not answered yet"
        self.heals: deque[Heal] = deque(maxlen=HEALS)
        self.healed = 0
        self.since = 0.0
        """When it was last found to answer, in seconds since the epoch."""
        self.away = False
        """Whether it did not answer when it was asked last."""
        self.wake = asyncio.Event()
        self.reconciler = Reconciler((kind, driver) for kind in self.kinds)
        self._hand = ThreadPoolExecutor(1, f"device {name}")
        self.ready = False
        """Whether it has anything of ours, and all of it."""
        self._settled = False
        """Whether all that it should have was put once: what is put after that, unasked, was undone by somebody."""

    async def serve(self, turn: Callable[[], Awaitable[float]]) -> None:
        """Take turns with it for as long as the controller runs: each returns the seconds until the next one.

        A turn that failed is taken again ever later; ``wake`` cuts the time short only where it did not.
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
        """Do what waits for the device in a thread of its own: one that hangs takes none from the others."""
        return await asyncio.get_running_loop().run_in_executor(self._hand, work)

    def close(self) -> None:
        """Let go of its thread; what it does now is not waited for."""
        self._hand.shutdown(wait=False, cancel_futures=True)

    def say(self, problem: str) -> None:
        """Take note of what is wrong, '' where nothing is."""
        if problem and problem != self.problem:
            log.warning("%s", problem)
        elif self.problem and not problem:
            log.info("%s is as it should be", self.name)
        self.problem = problem

    def want(self, states: Sequence[State]) -> Change:
        """Take note of what it should have, whether it is ours to put or not; returns what is new of that."""
        return self.reconciler.desired.replace(_SOURCE, states)

    def stand_by(self, states: Sequence[State]) -> None:
        """Another controller puts this; here it is known what should be (its thread)."""
        self.want(states)
        self._settled = False
        self.say("")

    def put(self, states: Sequence[State]) -> None:
        """Make it have these states, and no others (its thread)."""
        change = self.want(states)
        # Once it had all, what differs beyond the change was undone by somebody. Before that nothing is put that is
        # there already: its counters would begin anew.
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
        """Return what it would have to be given and rid of (its thread)."""
        change, _ = self.reconciler.difference()
        return change


class Switch(Device[OpenFlowDriver]):
    """An OpenFlow switch."""

    kinds = openflow.KINDS

    @property
    def flows(self) -> list[Flow]:
        """Which flows it should have, as far as it was told."""
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
    """Return the devices of a controller's settings."""
    return (
        [Switch(name, address, OpenFlowDriver(name, address, tls)) for name, address in switches],
        [Router(name, address, FrrDriver(name, address, ssh)) for name, address in routers],
    )
