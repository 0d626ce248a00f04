"""A battery of faults by four backends: a trace never says "reachable" for what does not arrive, and names the hop."""

from __future__ import annotations

import contextlib
import subprocess
import warnings
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import trace_faults
from clusters import ClusterRun
from lab_runs import until
from trace_faults import Fault

pytestmark = pytest.mark.timeout(900)  # seventy faults, each with pings, traces and a packet that gets no answer

RIGHT = 0.9
"""The part of the faults of which the hop must be the right one."""
COUNTED = {"bridge": 55, "vxlan": 70, "bgp": 65, "wireguard": 70}
"""Faults that must really stop the ping: a battery that stops nothing shows nothing."""
_TRIES = 2
"""A fault at an object of linkspan's may be healed before it is looked at; tests/netns has these without an agent."""


class Found(msgspec.Struct, frozen=True):
    """What a trace said while a ping was not answered; None of ``told`` where the fault stopped nothing.

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

    def silent(self) -> bool:
        """Tell whether neither of two pings is answered."""
        argv = ["ip", "netns", "exec", self.place("c1"), "ping", "-c2", "-i0.1", "-W0.25", self._names["c2"]]
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
        """Let everybody forget the neighbours that the kernel learnt."""
        for at in ("c1", "c2", "h1", "h2"):
            self.sh(at, "ip neigh flush all")

    def traced(self, method: str = "GET") -> dict[str, Any]:
        """Trace from c1 to c2; by POST a packet is sent."""
        found: dict[str, Any] = self.cluster.call("h1", method, "/v1/trace?source=c1&target=c2")
        return found

    def tried(self, fault: Fault) -> Found:
        """Make a fault, see that the ping stops before and after a trace, undo it, and see that all is well again."""
        found = Found(fault, None)
        for _ in range(_TRIES):
            with self.made(fault):
                if self.silent() or self.silent():  # what lets the first ones pass stops the next ones
                    told, live = self.traced(), self.traced("POST")
                    if self.silent():
                        found = self._judged(fault, told, live["verdict"])
            until(lambda: not self.silent(), f"the ping is answered again after {fault.name} at {fault.at}", 15)
            if found.told is not None:
                break
        return found

    def _judged(self, fault: Fault, told: dict[str, Any], live: str) -> Found:
        at = told["broken_at"] or next((one["at"] for one in told["unknown"]), "")
        return Found(fault, told, live, at, any(at.startswith(self.named(place)) for place in fault.places))


@pytest.fixture(scope="module", params=["bridge", "vxlan", "bgp", "wireguard"])
def battery(request: pytest.FixtureRequest) -> Iterator[Battery]:
    """Give a lab of each backend, used for all its faults."""
    backend = request.param
    cluster = ClusterRun()
    try:
        size = "--hosts 1 --containers-per-host 2" if backend == "bridge" else "--hosts 2"
        cluster.run("up", f"--backend {backend} {size}")
        until(lambda: cluster.pings("c1", cluster.address("c2")), "the lab works")
        yield Battery(cluster, backend)
    finally:
        cluster.run("down")


def test_what_does_not_arrive_is_never_called_reachable(battery: Battery) -> None:
    """Each fault stops the ping, and the trace finds it, nine of ten times at its hop; with a packet, always.

    Afterwards all is well again.
    """
    assert {battery.traced(method)["verdict"] for method in ("GET", "POST")} == {"reachable"}, battery.traced()
    found = [battery.tried(fault) for fault in trace_faults.of(battery.backend)]
    counted = {str(one): one for one in found if one.told is not None}
    if left := [str(one) for one in found if one.told is None]:
        warnings.warn(f"{battery.backend}: these stop no ping, and are not counted: {left}", stacklevel=1)
    assert [name for name, one in counted.items() if one.told and one.told["reachable"]] == []
    assert {name: one.live for name, one in counted.items() if one.live != "broken"} == {}
    assert len(counted) >= COUNTED[battery.backend], left
    wrong = {name: (one.at, one.told and one.told["reason"]) for name, one in counted.items() if not one.right}
    assert len(wrong) <= (1 - RIGHT) * len(counted), wrong
    until(lambda: battery.traced()["verdict"] == "reachable", "all is well again", 15)
