"""The devices that a controller programs: each has a driver and a reconciler of its own, and may be away by itself."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Generic, TypeVar

from linkspan.contracts import Driver
from linkspan.desired import Change
from linkspan.errors import LinkspanError
from linkspan.fabric import Seen
from linkspan.kernel.frr import FrrDriver
from linkspan.kernel.openflow import OpenFlowDriver
from linkspan.reconcile import Heal, Reconciler
from linkspan.state import State

log = logging.getLogger("linkspan.controller")

AGAIN = 2.0
"""Seconds until a device that did not answer is tried again."""
HEALS = 20
_SOURCE = ("controller",)
D = TypeVar("D", bound=Driver)


class Device(Generic[D]):
    """A device by its name: what it should have is ``wanted``; ``problem`` says why it is not known to have it."""

    def __init__(self, name: str, address: str, driver: D) -> None:
        self.name = name
        self.address = address
        self.driver = driver
        self.problem = "it has not answered yet"
        self.heals: deque[Heal] = deque(maxlen=HEALS)
        self.healed = 0
        self.since = 0.0
        """When it was last found to answer, in seconds since the epoch."""
        self.reconciler = Reconciler([driver])
        self._busy: asyncio.Task[None] | None = None
        self._again = 0.0
        self._settled = False
        """Whether all that it should have was put once: what is put after that, unasked, was undone by somebody."""

    @property
    def due(self) -> bool:
        """Whether it may be asked now: it is not being asked, and has not just failed to answer."""
        return (self._busy is None or self._busy.done()) and time.monotonic() >= self._again

    def begin(self, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Do work with it; an error becomes its problem."""
        self._busy = asyncio.create_task(self._do(work))
        return self._busy

    async def _do(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except LinkspanError as error:
            self.say(f"{error.message}{f'; {error.hint}' if error.hint else ''}")
            self._again = time.monotonic() + AGAIN
        else:
            self.since = time.time()

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
        """Another controller puts this; here it is known what should be (worker thread)."""
        self.want(states)
        self._settled = False
        self.say("")

    def put(self, states: Sequence[State], *, keep: bool) -> None:
        """Make it have these states, and no others; with ``keep`` nothing is taken away yet (worker thread)."""
        change = self.want(states)
        if keep:
            found, _ = self.reconciler.difference()
            failed = self.reconciler.apply(Change(found.put, ()))
        else:
            # Once it had all, what differs beyond the change was undone by somebody. Before that nothing is put that
            # is there already: its counters would begin anew.
            if self._settled and (change.put or change.delete):
                self.reconciler.apply(change)
            report = self.reconciler.resync()
            failed = report.failed
            if self._settled:
                self.heals.extend(report.heals)
                self.healed += len(report.heals)
            self._settled = not failed
        first = next(iter(failed.values()), None)
        self.say("" if first is None else first.message)

    def differs(self) -> Change:
        """Return what it would have to be given and rid of (worker thread)."""
        change, _ = self.reconciler.difference()
        return change


class Switch(Device[OpenFlowDriver]):
    """An OpenFlow switch."""

    def look(self) -> Seen:
        """Return its ports and notes (worker thread)."""
        ports = self.driver.ports()
        self.driver.look()
        return Seen(ports, self.driver.notes)


class Router(Device[FrrDriver]):
    """A router."""


def devices(
    switches: Iterable[tuple[str, str]], routers: Iterable[tuple[str, str]], tls: dict[str, str], ssh: dict[str, str]
) -> tuple[list[Switch], list[Router]]:
    """Return the devices of a controller's settings."""
    return (
        [Switch(name, address, OpenFlowDriver(name, address, tls)) for name, address in switches],
        [Router(name, address, FrrDriver(name, address, ssh)) for name, address in routers],
    )
