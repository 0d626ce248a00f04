"""A battery of faults by four backends: a trace never says "reachable" for what does not arrive, and names the hop."""

from __future__ import annotations

import contextlib
import subprocess
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec
import pytest

from support.lab import trace_faults
from support.lab.cluster_runs import ClusterRun
from support.lab.trace_faults import Fault
from support.polling import SHARED, until

T = TypeVar("T")

pytestmark = pytest.mark.timeout(900)  # dozens of faults, each with pings, traces and a packet that gets no answer

RIGHT = 0.9
"""The part of the faults of which the hop must be the right one."""
COUNTED = 0.8
"""The part of the faults that must really stop a packet: a battery that stops nothing shows nothing."""
LABS = 3
"""Of each backend."""
_TRIES = 2
"""The agent may heal a fault before it is looked at; tests/netns has such faults without an agent."""
_SERVER = """
import contextlib, socket
listener = socket.create_server(("", 8000))
print(flush=True)
while True:
    one, _ = listener.accept()
    with one, contextlib.suppress(OSError):  # who has gone
        one.sendall(b"hello")
"""
_CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], 8000), timeout=0.5) as one:
    sys.exit(one.recv(5) != b"hello")
"""


class Found(msgspec.Struct, frozen=True):
    """A trace made while c2 did not answer; ``told`` is None if the fault stopped nothing.

    ``live`` is the verdict of a trace that sends a packet.
    """

    fault: Fault
    told: dict[str, Any] | None
    live: str = ""
    at: str = ""
    right: bool = False

    def __str__(self) -> str:
        return f"{self.fault.at}: {self.fault.name}"


class Battery:
    """A lab in which faults are made one after the other."""

    def __init__(self, cluster: ClusterRun, backend: str) -> None:
        self.cluster = cluster
        self.backend = backend
        self.second = "h1" if backend == "bridge" else "h2"
        self._names = self._places()

    def _places(self) -> dict[str, str]:
        cluster, second = self.cluster, self.second
        found = {"h2": second, "c1": cluster.address("c1"), "c2": cluster.address("c2")}
        for number, host in (("1", "h1"), ("2", second)):
            (endpoint,) = [e for e in cluster.call(host, "GET", "/v1/endpoints") if e["name"] == f"c{number}"]
            underlay = cluster.host(host)["underlay"] or {"addresses": ["/"]}  # none where a host is alone
            found |= {f"p{number}": endpoint["host_ifname"], f"m{number}": endpoint["mac"]}
            found[f"u{number}"] = underlay["addresses"][0].partition("/")[0]
            found[f"next{number}"] = endpoint["gateways"][0]
        if self.backend == "bridge":
            found |= {"next1": found["c2"], "next2": found["c1"]}
        return found

    def named(self, text: str) -> str:
        """Fill the lab's names in."""
        return text.format(**self._names)

    def place(self, at: str) -> str:
        """Return the namespace of h1, h2, c1 or c2."""
        return f"{self.cluster.name}-{self.second if at == 'h2' else at}"

    def sh(self, at: str, script: str) -> None:
        """Run a script in a namespace."""
        argv = ["ip", "netns", "exec", self.place(at), "bash", "-ec", self.named(script)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{script}: {done.stderr}"

    def silent(self, fault: Fault) -> bool:
        """Return True if c2 answers neither of two pings, or its port does not serve, where the fault is for that."""
        command = ["python3", "-c", _CLIENT] if fault.served else ["ping", "-c2", "-i0.1", "-W0.25"]
        argv = ["ip", "netns", "exec", self.place("c1"), *command, self._names["c2"]]
        return subprocess.run(argv, capture_output=True, check=False).returncode != 0

    @contextlib.contextmanager
    def made(self, fault: Fault) -> Iterator[None]:
        """Make a fault for a while."""
        with contextlib.ExitStack() as stack:
            if fault.program:
                program = trace_faults.attached(self.place(fault.at), self.named(fault.program))
                stack.enter_context(program)
            else:
                stack.callback(self.sh, fault.at, f"({fault.undo}) || true")  # the agent may have been quicker
                self.sh(fault.at, fault.do)
            if fault.forget:
                self.forget()
            yield

    def forget(self) -> None:
        """Let everybody forget the neighbours that the kernel learnt.

        One that still knows c1 may ask it for its MAC again (5 s after a use), and c1 learns a MAC from the request,
        although it has just forgotten it. Nobody is left who would ask when the second round begins.
        """
        for at in ("c1", "c2", "h1", "h2") * 2:
            subprocess.run(["ip", "-netns", self.place(at), "neigh", "flush", "all"], check=True)  # quick: agents heal

    def traced(self, method: str = "GET", *, served: bool = False) -> dict[str, Any]:
        """Trace from c1 to c2, or to the port that it serves; by POST a packet is sent."""
        to = "&port=8000/tcp" if served else ""
        found: dict[str, Any] = self.cluster.call("h1", method, f"/v1/trace?source=c1&target=c2{to}")
        return found

    def tried(self, fault: Fault) -> Found:
        """Make a fault, trace while c2 is silent before and after it, undo the fault, and wait for c2's answer."""
        found = Found(fault, None)
        for _ in range(_TRIES):
            with self.made(fault):
                if self.silent(fault) or self.silent(fault):  # what lets the first ones pass stops the next ones
                    told, live = (self.traced(method, served=fault.served) for method in ("GET", "POST"))
                    if self.silent(fault):
                        found = self._judged(fault, told, live["verdict"])
            self.await_answer(fault, "after")
            if found.told is not None:
                break
        return found

    def await_answer(self, fault: Fault, when: str) -> None:
        """Wait until c2 answers ``when`` ("after", "in spite of") a fault."""
        until(lambda: not self.silent(fault), f"c2 answers {when} {fault.name} at {fault.at}", 15 * SHARED)

    def _judged(self, fault: Fault, told: dict[str, Any], live: str) -> Found:
        at = told["broken_at"] or next((one["at"] for one in told["unknown"]), "")
        return Found(fault, told, live, at, any(at.startswith(self.named(place)) for place in fault.places))


class Batteries:
    """Labs of one backend, among which its faults are shared: most of the time of a fault is waiting for no answer."""

    def __init__(self, backend: str, batteries: Sequence[Battery]) -> None:
        self.backend = backend
        self.all = batteries

    def each(self, work: Callable[[Battery, Fault], T], faults: Sequence[Fault]) -> list[T]:
        """Do something with each fault in the next lab that is free; return what comes of it, in the faults' order."""
        left = iter(range(len(faults)))  # ``next`` of it is one step for all threads
        found: dict[int, T] = {}

        def run(battery: Battery) -> None:
            for number in left:
                found[number] = work(battery, faults[number])

        with ThreadPoolExecutor(len(self.all)) as pool:
            for done in [pool.submit(run, battery) for battery in self.all]:
                done.result()
        return [found[number] for number in range(len(faults))]


@contextlib.contextmanager
def made(backend: str) -> Iterator[Battery]:
    """Give a lab of a backend for a while, with a server in c2."""
    cluster = ClusterRun()
    try:
        size = "--hosts 1 --containers-per-host 2" if backend == "bridge" else "--hosts 2"
        cluster.run("up", f"--backend {backend} {size}")
        until(lambda: cluster.pings("c1", cluster.address("c2")), "the lab works")
        server = ["ip", "netns", "exec", f"{cluster.name}-c2", "python3", "-c", _SERVER]
        with subprocess.Popen(server, stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                process.stdout.readline()
                yield Battery(cluster, backend)
            finally:
                process.kill()
    finally:
        cluster.run("down")


@pytest.fixture(scope="module", params=["bridge", "vxlan", "bgp", "wireguard"])
def batteries(request: pytest.FixtureRequest) -> Iterator[Batteries]:
    """Give labs of each backend, used for all its faults."""
    with contextlib.ExitStack() as labs:
        yield Batteries(request.param, [labs.enter_context(made(request.param)) for _ in range(LABS)])


def test_what_does_not_arrive_is_never_called_reachable(batteries: Batteries) -> None:
    """A trace finds each fault that stops a packet, nine of ten at their hops; with a packet of its own it finds all.

    Afterwards everything is ok again.
    """
    for battery in batteries.all:
        assert {battery.traced(method)["verdict"] for method in ("GET", "POST")} == {"reachable"}, battery.traced()
    found = batteries.each(Battery.tried, trace_faults.of(batteries.backend))
    counted = [one for one in found if one.told is not None]
    left = [one for one in found if one.told is None]
    assert [str(one) for one in left if not one.fault.healed] == []
    if left:
        names = ", ".join(map(str, left))
        warnings.warn(f"{batteries.backend}: the agent healed these, which are not counted: {names}", stacklevel=1)
    assert len(counted) >= COUNTED * len(found)
    assert [str(one) for one in counted if one.told and one.told["reachable"]] == []
    assert [(str(one), one.live) for one in counted if one.live != one.fault.live] == []
    wrong = [(str(one), one.at, one.told and one.told["reason"]) for one in counted if not one.right]
    assert len(wrong) <= (1 - RIGHT) * len(counted), wrong
    for battery in batteries.all:
        until(lambda battery=battery: battery.traced()["verdict"] == "reachable", "all is well again", 15 * SHARED)


def test_what_arrives_is_not_called_broken(batteries: Batteries) -> None:
    """If the walk does not know, it says so, and a packet shows that it arrives."""

    def said(battery: Battery, fault: Fault) -> tuple[str, str, str]:
        with battery.made(fault):
            battery.await_answer(fault, "in spite of")
            told, live = (battery.traced(method, served=fault.served) for method in ("GET", "POST"))
        battery.await_answer(fault, "after")
        return told["verdict"], live["verdict"], live["reason"]

    faults = trace_faults.of(batteries.backend, trace_faults.HARMLESS)
    found = dict(zip([fault.name for fault in faults], batteries.each(said, faults), strict=True))
    assert {name: one for name, one in found.items() if one[0] == "broken" or one[1] != "reachable"} == {}
