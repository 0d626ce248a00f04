"""Learnt routes: our BGP speaker puts and changes them in the main table, and this driver sweeps them.

They have protocol ``bird`` and our metric. While the speaker lives, the driver leaves them alone. If the
speaker is gone they stay for a while, because a restarted one takes them over. After that time, or if no
speaker is wanted any more, the driver removes them.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from linkspan.core.desired import Desired
from linkspan.core.driver_contract import Support
from linkspan.core.errors import LinkspanError
from linkspan.core.kinds import Kind, Sort
from linkspan.core.shell import Shell
from linkspan.core.states.host import HOST, LEARNT_METRIC, Key, State
from linkspan.core.states.programs import BGP_PORT, BIRD, Bird, LearntRoutes
from linkspan.kernel.drivers import processes
from linkspan.kernel.drivers.routes import learnt_routes, sweep
from linkspan.kernel.io.sockets import Sockets
from linkspan.kernel.local_host import LocalHost
from linkspan.kernel.probe.port_owners import listeners

FOLDER = "bgp"
"""The folder of the speaker's files in the state folder."""


SELDOM = 30.0
"""Seconds until a host without a speaker looks again whether there are such routes: who should add one?"""
ENDING = 10.0
"""Seconds after a sweep in which a speaker that is ending may still add a route."""


class LearntDriver:
    """LearntRoutes; ``down`` returns the seconds since a helper died, None if it lives."""

    def __init__(self, sockets: Sockets, down: Callable[[str], float | None]) -> None:
        self._sockets = sockets
        self._down = down
        self._wanted: LearntRoutes | None = None
        self._absent = float("-inf")
        """When there were none although no speaker is wanted (monotonic clock)."""
        self._dropped = float("-inf")
        """When the speaker was wanted no more (monotonic clock)."""

    def probe(self) -> Support:
        """Return support: every kernel has routes."""
        return Support("kernel")

    def observe(self, netns: int) -> Iterable[State]:
        """Yield them if there may be any: their speaker lives or is wanted, or they are seen."""
        if netns != HOST:
            return
        wanted = self._wanted
        if wanted is None:
            if self._rests():
                return
            if learnt_routes(self._sockets, LEARNT_METRIC):
                yield LearntRoutes(LEARNT_METRIC, "", 0)
            elif time.monotonic() - self._dropped > ENDING:
                self._absent = time.monotonic()
        else:
            yield msgspec.structs.replace(
                wanted, stale=self._due(wanted) and bool(learnt_routes(self._sockets, LEARNT_METRIC))
            )

    def stamp(self) -> object:
        """Return None while nobody wants a speaker, and nobody looks for its routes."""
        return None if self._wanted is None and self._rests() else object()

    def _rests(self) -> bool:
        return time.monotonic() - self._absent < SELDOM

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Sweep those that are stale, and those that no source wants."""
        errors: dict[Key, LinkspanError] = {}
        for state in put:
            assert isinstance(state, LearntRoutes)
            self._wanted = state
            if self._due(state):
                self._sweep(state, errors)
        for state in delete:
            self._wanted, self._absent, self._dropped = None, float("-inf"), time.monotonic()
            self._sweep(state, errors)
        return errors

    def _due(self, state: LearntRoutes) -> bool:
        down = self._down(state.process)
        return down is not None and down > state.keep

    def _sweep(self, state: State, errors: dict[Key, LinkspanError]) -> None:
        try:
            sweep(self._sockets, learnt_routes(self._sockets, LEARNT_METRIC))
        except LinkspanError as error:
            errors[state.key] = error


def driver(host: LocalHost) -> LearntDriver:
    """Return the driver of the BGP speaker's routes."""
    return LearntDriver(host.sockets, host.driver(processes.driver).down)


def _speaker(host: LocalHost, _desired: Desired) -> Bird | None:
    """Return the BGP speaker's programs, and who listens at its port while it does not run itself."""
    speaker, client = shutil.which("bird"), shutil.which("birdc")
    if speaker is None or client is None:
        return None
    others = () if host.driver(processes.driver).pid(BIRD) else tuple(listeners("tcp", BGP_PORT))
    return Bird(speaker, client, str(host.state_dir / FOLDER), others)


_PURPOSE = "routes that the BGP speaker puts into the kernel"


def _note(_state: LearntRoutes, _shell: Shell) -> tuple[str, ...]:
    return (f": # {_PURPOSE}: only the speaker changes them",)


KINDS = (
    Kind(
        state=LearntRoutes,
        rank=69,
        driver=driver,
        known_by="protocol `bird` and metric 1976",
        purpose=_PURPOSE,
        sort=Sort.PLACE,
        finds={Bird: _speaker},
        commands=_note,
        poll=True,
        counted=False,
    ),
)
