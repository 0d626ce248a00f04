"""Agent that notes how long each call of a runtime takes, and each step of it, for --profile of two benchmarks.

bench/attach.py divides a call by its steps, and bench/runtimes.py divides an engine's whole command by its calls. The
steps are functions of linkspan that are not coroutines. They and the calls are put into a stopwatch before the agent
starts, so the agent itself knows nothing of it. The time of a step is its own, without the steps that it calls. The
file is written when the agent ends.
"""

from __future__ import annotations

import functools
import json
import os
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypedDict

from linkspan import daemon
from linkspan.backends.bridge import BridgeBackend
from linkspan.core.desired import Desired
from linkspan.core.event_log import EventLog
from linkspan.core.reconcile import Reconciler
from linkspan.dns.service import NameService
from linkspan.endpoints import attach
from linkspan.endpoints.journal import Journal
from linkspan.endpoints.registry import Mates, Registry
from linkspan.kernel.drivers import routes
from linkspan.kernel.drivers.addresses import AddressDriver
from linkspan.kernel.drivers.links import LinkDriver
from linkspan.kernel.drivers.nftables_objects import FirewallDriver
from linkspan.kernel.drivers.routes import RouteDriver
from linkspan.kernel.drivers.sysctl import SysctlDriver
from linkspan.kernel.io.namespaces import Namespaces
from linkspan.kernel.io.sockets import Sockets
from linkspan.runtimes.base import Service
from linkspan.runtimes.cni import cni_conf, cni_result
from linkspan.runtimes.cni.cni_service import CniService
from linkspan.runtimes.docker.docker_driver import Docker
from linkspan.runtimes.podman.podman_service import Podman

FILE = "LINKSPAN_BENCH_STEPS"
"""Environment variable with the path of the file, which has a list of calls (`Call`)."""
CALL = "the call in the agent, altogether"
SERVICES: tuple[type[Service], ...] = (CniService, Podman, Docker)
STEPS: tuple[tuple[str, Any, str], ...] = (
    ("read variables", cni_conf, "environment"),
    ("read the configuration", cni_conf, "configuration"),
    ("make the request", cni_conf, "request"),
    ("namespace's cookie", Namespaces, "cookie"),
    ("check the request", attach, "checked"),
    ("describe the endpoint", attach, "described"),
    ("journal: begin", Journal, "begin"),
    ("journal: attached", Journal, "attached"),
    ("journal: detaching", Journal, "detaching"),
    ("journal: forget", Journal, "forget"),
    ("find the container's other interfaces", Registry, "mates"),
    ("the rest of plumbing", attach, "_plumb"),
    ("routes that the container has", routes, "default_metrics"),
    ("states of the endpoint", Mates, "states"),
    ("backend's states", BridgeBackend, "endpoint"),
    ("desired states", Desired, "replace"),
    ("order the states", Reconciler, "changes"),
    ("hand the states to drivers", Reconciler, "apply"),
    ("nftables", FirewallDriver, "apply"),
    ("links", LinkDriver, "apply"),
    ("addresses", AddressDriver, "apply"),
    ("routes", RouteDriver, "apply"),
    ("settings", SysctlDriver, "apply"),
    ("close the container's sockets", Sockets, "release"),
    ("followers, events", Registry, "changed"),
    ("event log", EventLog, "add"),
    ("name servers", NameService, "nameservers"),
    ("make the result", cni_result, "result"),
)


class Call(TypedDict):
    """One call: its begin and end as `time.perf_counter_ns` has them, and [times, wall in ns, CPU in ns] of steps."""

    verb: str
    begun: int
    ended: int
    steps: dict[str, list[int]]


class Stopwatch:
    """Times of all calls and of their steps; what the agent does between two calls is not counted."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._call: dict[str, list[int]] = {}
        self._running = threading.local()

    def add(self, step: str, wall: int, cpu: int) -> None:
        """Add to a step of the call under way, in nanoseconds."""
        of = self._call.setdefault(step, [0, 0, 0])
        for place, value in enumerate((1, wall, cpu)):
            of[place] += value

    def around(self, step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that also adds its own time, without that of the steps that it calls."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            inner: list[tuple[int, int]] = []
            outer, self._running.steps = getattr(self._running, "steps", None), inner
            wall, cpu = time.perf_counter_ns(), time.thread_time_ns()
            try:
                found = function(*args, **kwargs)
                return list(found) if hasattr(found, "__next__") else found  # a generator works when it is read
            finally:
                cpu, wall = time.thread_time_ns() - cpu, time.perf_counter_ns() - wall
                self._running.steps = outer
                if outer is not None:
                    outer.append((wall, cpu))
                self.add(step, wall - sum(w for w, _ in inner), cpu - sum(c for _, c in inner))

        return timed

    def wind(self) -> None:
        """Put each step into the stopwatch, and the whole calls."""
        for step, owner, name in STEPS:
            setattr(owner, name, self.around(step, getattr(owner, name)))
        for service in SERVICES:
            setattr(service, "answer", self.answering(service.answer))  # noqa: B010 - it is no part of linkspan

    def answering(self, answer: Callable[..., Awaitable[tuple[int, bytes]]]) -> Callable[..., Any]:
        """Return a runtime's method that also notes its call."""

        async def answered(service: Service, path: str, body: bytes, pid: int, uid: int) -> tuple[int, bytes]:
            self._call, begun, cpu = {}, time.perf_counter_ns(), time.thread_time_ns()
            try:
                return await answer(service, path, body, pid, uid)
            finally:
                ended = time.perf_counter_ns()
                self.add(CALL, ended - begun, time.thread_time_ns() - cpu)
                self.calls.append(Call(verb=asked(path, body), begun=begun, ended=ended, steps=self._call))
                self._call = {}

        return answered


def asked(path: str, body: bytes) -> str:
    """Return what a call asks: a plugin's command, which begins its variables, or the path of an engine's call."""
    variables = b"" if body.startswith(b"{") else body.partition(b"\0\0")[0]
    command = variables.partition(b"COMMAND=")[2].partition(b"\0")[0]
    return command.decode() or path.removeprefix("/")


def calls(file: Path) -> list[Call]:
    """Return what an agent has noted, after its end."""
    found: list[Call] = json.loads(file.read_text())
    return found


def main() -> None:
    """Run the agent with the settings in the environment."""
    stopwatch, file = Stopwatch(), Path(os.environ.pop(FILE))
    stopwatch.wind()
    try:
        daemon.main()
    finally:
        file.write_text(json.dumps(stopwatch.calls))


if __name__ == "__main__":
    main()
