"""A controller beside switches that are here: what each of them gets while another hangs or does not answer."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import pytest

from linkspan.backends.sdn.backend import BACKEND
from linkspan.cluster.control_plane import SWITCHES, Control
from linkspan.controller import controller as module
from linkspan.controller import devices
from linkspan.controller.api import diff, flows, plan, status
from linkspan.controller.controller import Controller
from linkspan.controller.settings import Settings, services
from linkspan.core.addresses import mac_text
from linkspan.core.driver_contract import Support
from linkspan.core.errors import LinkspanError, Unavailable
from linkspan.core.model import Host, Lease, Offer, Underlay
from linkspan.core.reconcile import Reconciler
from linkspan.core.states.host import Key, State
from linkspan.core.states.openflow import Counted, Flow, Port
from linkspan.core.supervise import lasting
from linkspan.kernel.drivers.openflow import OpenFlowDriver
from linkspan.store.records import BlockRecord, block_key, lease_key
from support.polling import eventually
from support.records.replicas import network, together

MACS = {"h1": "06:00:00:00:00:01", "h2": "06:00:00:00:00:02"}
TRUNK, HOST = 1, 3
OTHER = {"left": "right", "right": "left"}


class HereSwitch(OpenFlowDriver):
    """A switch with one port to the other and one with a host, each noted for as long as ``heard``."""

    def __init__(self, name: str, host: str) -> None:
        super().__init__(name, "unix:/nowhere", {})
        self.flows: dict[Key, Flow] = {}
        self.looks = 0
        self.away = False
        self.heard: list[tuple[int, str]] = [(HOST, MACS[host])]
        self.up = True
        """Whether the host's port is."""
        self.asked: list[bytes] = []
        self.free = threading.Event()
        self.free.set()

    def probe(self) -> Support:
        """Return support: the device answers."""
        return Support("memory")

    def ports(self) -> tuple[Port, ...]:
        """Return both ports, late where it hangs, never where it is away."""
        self.free.wait(30)
        if self.away:
            raise Unavailable(f"switch {self.name} does not answer")
        return Port(TRUNK, "trunk", up=True), Port(HOST, "host", up=self.up)

    def look(self) -> None:
        """Read the flows."""
        self.ports()
        self.looks += 1
        self.notes = tuple(self.heard)
        self.counted = {key: Counted(one, 0, 0, ours=True) for key, one in self.flows.items()}

    def dump(self, match: str = "") -> Iterator[Counted]:
        """Yield what there is."""
        yield from self.counted.values()

    def observe(self, netns: int) -> Iterable[State]:
        """Return the flows."""
        self.look()
        return list(self.flows.values())

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Put and delete."""
        for state in delete:
            self.flows.pop(state.key, None)
        self.flows |= {state.key: state for state in put if isinstance(state, Flow)}
        return {}

    def send(self, frames: Iterable[tuple[bytes, Sequence[int]]]) -> None:
        """Nobody answers: what there is is heard."""
        self.asked += [frame for frame, _ in frames]


@pytest.fixture
def switches() -> dict[str, HereSwitch]:
    """Give two switches with a host each."""
    return {"left": HereSwitch("left", "h1"), "right": HereSwitch("right", "h2")}


@contextlib.asynccontextmanager
async def _running(
    folder: Path, name: str, drivers: Mapping[str, HereSwitch], metrics: str = ""
) -> AsyncIterator[Controller]:
    """Run a controller of these switches, which know of each other as soon as it knows the cluster."""
    store = folder / "store"
    store.mkdir(exist_ok=True)
    settings = Settings(
        store=f"sqlite://{store}",
        state_dir=str(folder / name),
        switches=dict.fromkeys(drivers, "unix:/nowhere"),
        metrics=metrics,
    )
    controller = Controller(settings, name)
    for one in controller.switches:
        one.driver = drivers[one.name]
        one.reconciler = Reconciler((kind, one.driver) for kind in one.kinds)
    await controller.start()
    for driver in drivers.values():
        sender = mac_text(controller._sender(OTHER[driver.name], TRUNK))
        driver.heard = [*driver.heard[:1], (TRUNK, sender)]
    try:
        yield controller
    finally:
        for driver in drivers.values():
            driver.free.set()
        await controller.stop()


async def _filled(controller: Controller) -> None:
    """Write a network that both hosts have a prefix of."""
    records: dict[str, msgspec.Struct] = {"networks/demo": BACKEND.completed(network(backend="sdn"), ())}
    for number, (host, mac) in enumerate(MACS.items(), 1):
        underlay = Underlay("eth0", (f"192.0.2.{number}/24",), mac=mac)
        records[f"hosts/{host}"] = Host(id=host, name=host, underlay=underlay)
        prefixes = (f"10.244.{number}.0/24",)
        records[lease_key("demo", host)] = Lease(
            network="demo", host=host, prefixes=prefixes, endpoints={"sdn": Offer()}
        )
        records[block_key("demo", prefixes[0])] = BlockRecord(host, 1.0)
    await controller.replica.write(dict(records))


def _kinds(one: HereSwitch) -> set[str]:
    return {flow.kind for flow in list(one.flows.values())}  # a thread of the switch changes them


def _whole(one: HereSwitch) -> bool:
    """Return whether it has the flows of both hosts, and of the link."""
    forward = [flow for flow in list(one.flows.values()) if flow.kind == "forward"]
    return len(forward) == 2 and {"source", "transit"} <= _kinds(one)


def test_a_switch_that_hangs_holds_up_no_other(tmp_path: Path, switches: dict[str, HereSwitch]) -> None:
    """It answers nothing, not even with an error; the other one gets its flows, and deleted flows are put back."""
    switches["right"].free.clear()
    left = switches["left"]

    async def work() -> None:
        async with _running(tmp_path, "a", switches) as controller:
            await _filled(controller)
            await eventually(lambda: "source" in _kinds(left), "left has flows")
            looks, begun = left.looks, time.monotonic()
            left.flows.clear()
            await eventually(lambda: "source" in _kinds(left), "left has them again")
            await eventually(lambda: left.looks > looks + 5, "left is looked at again and again")
            assert switches["right"].looks == 0
            assert time.monotonic() - begun < 20  # nobody waited for the other one's 30
            switches["right"].free.set()
            await eventually(lambda: all(map(_whole, switches.values())), "both have all flows")

    together(work)


def test_a_controller_that_starts_without_a_switch_leaves_the_others_as_they_are(
    tmp_path: Path, switches: dict[str, HereSwitch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right does not answer: left keeps the way to its host, and says that it does not know right."""
    monkeypatch.setattr(module, "TAKE_OVER", 0.0)  # what is spared is so for the switch that is away alone
    left, right = switches["left"], switches["right"]

    async def work() -> None:
        async with _running(tmp_path, "a", switches) as controller:
            await _filled(controller)
            await eventually(lambda: all(map(_whole, switches.values())), "both have all flows")
            before = dict(left.flows)
        right.away = True
        async with _running(tmp_path, "b", switches) as controller:
            await eventually(lambda: controller.election.active, "the next one is active")
            looks = left.looks
            await eventually(lambda: left.looks > looks + 4, "left is looked at again and again")
            assert left.flows == before
            assert {one["name"]: one["state"] for one in status(controller)["switches"]}["left"] == "ok"
            found = await diff(controller.devices)
            assert (found["put"], found["delete"]) == ([], [])
            unknown = [{"device": "right", "problem": "switch right does not answer"}]
            assert found["unknown"] == unknown
            there, planned = await flows(controller.switches), await plan(controller.devices)
            assert (there["unknown"], planned["unknown"]) == (unknown, unknown)
            assert {one["switch"] for one in there["flows"]} == {one["device"] for one in planned["plan"]} == {"left"}
            assert len(there["flows"]) == len(before)
            assert all(one["present"] for one in planned["plan"])
            right.away = False
            await eventually(lambda: len(controller.where.places) == 2, "right is found again")
            await eventually(lambda: left.flows == before and _whole(right), "all is as it was")

    together(work)


def test_a_device_that_fails_is_tried_ever_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wake does not make it sooner; once it answers it is asked at its usual pace."""
    monkeypatch.setattr(devices, "AGAIN", 0.02)
    one = devices.Switch("left", "unix:/nowhere", HereSwitch("left", "h1"))
    at: list[float] = []

    async def turn() -> float:
        at.append(time.monotonic())
        if len(at) < 5:
            one.wake.set()
            raise Unavailable("it does not answer")
        return 60.0

    async def work() -> None:
        task = lasting("serving", lambda: one.serve(turn))
        await eventually(lambda: len(at) == 5 and not one.away, "it answers")
        task.cancel()
        one.close()

    together(work)
    gaps = [later - earlier for earlier, later in itertools.pairwise(at)]
    assert all(gap >= 0.019 * 2**number for number, gap in enumerate(gaps[:4]))


def test_a_host_whose_port_is_down_is_asked_for_at_once(
    tmp_path: Path, switches: dict[str, HereSwitch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be at another port. A host whose port is up is asked ever more rarely, which would take too long."""
    monkeypatch.setattr(module, "SEEK", 1000.0)
    left, right = switches["left"], switches["right"]

    def asked(host: str) -> int:
        return sum(frame.startswith(bytes.fromhex(MACS[host].replace(":", ""))) for frame in right.asked)

    async def work() -> None:
        async with _running(tmp_path, "a", switches) as controller:
            await _filled(controller)
            await eventually(lambda: all(map(_whole, switches.values())), "both have all flows")
            left.up, left.heard, before = False, left.heard[1:], asked("h1")
            await eventually(lambda: asked("h1") > before + 2, "the other switch asks for it")

    together(work)


def test_the_active_controller_tells_hosts_where_it_is(tmp_path: Path, switches: dict[str, HereSwitch]) -> None:
    """Its record names the addresses closed to containers, and is put back if somebody changes it."""

    async def work() -> None:
        async with _running(tmp_path, "a", switches, metrics="192.0.2.9:9643") as controller:
            for _ in range(2):
                await eventually(
                    lambda: controller.replica.value(SWITCHES, Control) == Control(("192.0.2.9:9643",)), "it is told"
                )
                await controller.replica.write({SWITCHES: Control()})

    together(work)


def test_every_device_that_is_programmed_over_the_network_is_told() -> None:
    """With the port in its address or else the usual one; an address on this machine is not reported."""
    switches = {"a": "tcp:192.0.2.1", "b": "ssl:[2001:db8::1]:6640", "c": "unix:/run/sw", "d": "tcp:[2001:db8::2]"}
    routers = {"r1": "ssh:admin@r1.example", "r2": "ssh:192.0.2.3:2222", "r3": "vtysh:"}
    found = services(Settings(switches=switches, routers=routers, metrics=":9643"))
    assert found == (
        *("192.0.2.1:6653", "[2001:db8::1]:6640", "[2001:db8::2]:6653"),
        *("r1.example:22", "192.0.2.3:2222"),
    )
