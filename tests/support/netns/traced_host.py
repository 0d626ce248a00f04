"""A host with containers and an outside, for traces to walk through."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from linkspan.core.model import Port, host_ifname
from linkspan.core.states.host import State
from linkspan.diagnose.trace import live
from linkspan.diagnose.trace.hops import Map
from linkspan.diagnose.trace.live_packet import new_mark
from linkspan.diagnose.trace.parts import Entry, Part
from linkspan.diagnose.trace.result import Local
from linkspan.diagnose.trace.trace import Trace, Unanswered, run, trace
from linkspan.kernel.io.namespaces import Namespaces
from linkspan.kernel.machine import Machine
from support.netns import sample
from support.netns.world import World

OUTSIDE = {4: "192.0.2.2", 6: "2001:db8::2"}
UPLINK = """
ip link add up0 type veth peer name eth0 netns {out}
ip link set up0 up
ip addr add 192.0.2.1/24 dev up0
ip addr add 2001:db8::1/64 dev up0 nodad
ip route add default via 192.0.2.2
ip -6 route add default via 2001:db8::2
ip -n {out} link set lo up
ip -n {out} addr add 192.0.2.2/24 dev eth0
ip -n {out} addr add 2001:db8::2/64 dev eth0 nodad
ip -n {out} link set eth0 up
"""
PORT = {"a": host_ifname(False, "a-id", "eth0"), "b": host_ifname(False, "b-id", "eth0")}


def leads_outside(found: Trace) -> bool:
    """Return whether every hop here lets the packet pass, and only what is outside, which nobody asked, decides."""
    return (found.verdict, found.broken_at) == ("unknown", None) and all(one.beyond for one in found.unknown)


class Host:
    """A host with containers a and b on demo, c on other, d on hidden (internal), and an outside."""

    def __init__(self, world: World, *, routed: bool) -> None:
        self.world = world
        demo = sample.network("demo", 77, routed=routed)
        other = sample.network("other", 78, routed=routed)
        hidden = sample.network("hidden", 79, routed=routed, internal=True)
        web = (Port("", 8080, 80, "tcp"),)
        self.networks = {n.name: n for n in (demo, other, hidden)}
        self.endpoints = [
            sample.endpoint(world, "a", demo, 2),
            sample.endpoint(world, "b", demo, 3, web),
            sample.endpoint(world, "c", other, 2),
            sample.endpoint(world, "d", hidden, 2),
        ]
        self.sh(UPLINK.format(out=world.named("o")))
        self._put(sample.states(self.networks.values(), self.endpoints))

    def _put(self, states: Iterable[State]) -> None:
        """Make the whole network as an agent does; it outlives the drivers that made it."""
        with tempfile.TemporaryDirectory(prefix="lkr-") as folder, self.world.entered("h"):
            machine = Machine(Path(folder))
            try:
                for endpoint in self.endpoints:
                    machine.namespaces.register(endpoint.netns, endpoint.netns_path)
                assert machine.reconciler.change(("all",), states) == {}
            finally:
                machine.close()

    def sh(self, script: str, where: str = "h") -> None:
        """Break something."""
        self.world.sh(where, script)

    def trace(
        self, source: str, target: str, to: str = "", *, alive: bool = False, going: Callable[[], bool] = lambda: False
    ) -> Trace:
        """Trace as the agent would, with ``alive`` also by a real packet while other hosts are ``going`` to listen."""
        with self.world.entered("h"):
            known = Map("h1", self.endpoints, self.networks)
            with contextlib.closing(Namespaces()) as namespaces:
                for endpoint in self.endpoints:
                    namespaces.register(endpoint.netns, endpoint.netns_path)
                local = Local(namespaces, known, Path("/nonexistent"))
                first, last, packet = local.begin(source, target, to)
                found = run(trace(known, first, last, packet), lambda host, entry: _alone(local, host, entry))
                if not alive:
                    return found
                goal = live.goal(known, last)
                wanted = live.listening(found, goal, known.host, new_mark(), packet.protocol)
                own = local.send(first, packet, wanted, live.end(found), going, live.unproven(found))
                return live.marked(found, {known.host: own}, known.host, goal)


def _alone(local: Local, host: str, entry: Entry) -> Part | Unanswered:
    return Unanswered("no other host is asked") if host else local.part(entry)


def made(*, routed: bool) -> Iterator[Host]:
    """Make the host with its world, for a fixture, and unmake it afterwards."""
    world = World("h", "a", "b", "c", "d", "o")
    try:
        yield Host(world, routed=routed)
    finally:
        world.close()
