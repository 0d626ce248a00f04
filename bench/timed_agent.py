"""Agent that notes how long each step of an attach and a detach takes; bench/attach.py --profile starts it.

The steps are functions of linkspan that are not coroutines. Each is put into a stopwatch before the agent starts, so
the agent itself knows nothing of it. The time of a step is its own, without the steps that it calls. The table is
written when the agent ends.
"""

from __future__ import annotations

import functools
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from linkspan.runtimes.cni import cni_conf, cni_result
from linkspan.runtimes.cni.cni_verbs import Cni

FILE = "LINKSPAN_BENCH_STEPS"
"""Environment variable with the path of the table: {verb: [{step: [times, wall in ns, CPU in ns]} of each call]}."""
CALL = "the call in the agent, altogether"
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


class Stopwatch:
    """Times of the steps of each call, by verb; what the agent does between two calls is not counted."""

    def __init__(self) -> None:
        self.calls: dict[str, list[dict[str, list[int]]]] = {}
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
        """Put each step into the stopwatch, and the whole call."""
        for step, owner, name in STEPS:
            setattr(owner, name, self.around(step, getattr(owner, name)))
        handle = Cni.handle

        async def handled(cni: Cni, body: bytes, pid: int, uid: int = 0) -> tuple[int, bytes]:
            verb = body.partition(b"CNI_COMMAND=")[2].partition(b"\0")[0].decode()
            self._call, wall, cpu = {}, time.perf_counter_ns(), time.thread_time_ns()
            try:
                return await handle(cni, body, pid, uid)
            finally:
                self.add(CALL, time.perf_counter_ns() - wall, time.thread_time_ns() - cpu)
                self.calls.setdefault(verb, []).append(self._call)
                self._call = {}

        setattr(Cni, "handle", handled)  # noqa: B010 - the stopwatch is no part of linkspan


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
