"""The service of names: it works when something changes, and else only reads what has no events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from linkspan.core.config import Config
from linkspan.core.states.programs import Dnsmasq, Process
from linkspan.dns.service import RESOLVERS, TICK, NameService
from linkspan.kernel.drivers.processes import ProcessDriver
from linkspan.kernel.probe import dnsmasq
from linkspan.kernel.worker import Worker
from linkspan.store.memory import Memory
from support.memory_machine import MemoryMachine, worker_of
from support.records.replicas import Member, network
from support.virtual_time import in_virtual_time, soon

DEMO = network()


class _Serving(MemoryMachine):
    """A machine on which helpers can run; none does yet."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.processes = ProcessDriver(folder)


def service_of(member: Member, folder: Path, machine: MemoryMachine, resolvers: Path) -> NameService:
    """Return the names' service of a host."""
    return NameService(
        worker_of(machine),
        member.networks,
        member.replica,
        member.remote,
        "h1",
        member.endpoints,
        Config(socket=str(folder / "agent.sock"), resolv_conf=str(resolvers)),
        member.event_log,
    )


def test_names_are_not_computed_again_while_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hosts that say again that they live change nothing; other resolvers, or an endpoint, do."""
    monkeypatch.setattr(dnsmasq, "found", lambda _folder: None)
    resolvers = tmp_path / "resolv.conf"
    resolvers.write_text("nameserver 192.0.2.53\n")
    plans: list[object] = []

    async def work() -> None:
        member = Member(Memory(), tmp_path, "h1")
        await member.replica.start()
        await member.replica.write({"networks/demo": DEMO})
        member.networks.refresh()
        service = service_of(member, tmp_path, MemoryMachine(), resolvers)
        plan = service._plan

        async def noted(seen: Any) -> Any:
            plans.append(seen)
            return await plan(seen)

        monkeypatch.setattr(service, "_plan", noted)
        member.told = service.changed
        await member.replica.write({"alive/h2": b"h2"})
        service.start()
        member.holds(DEMO, "c1", "10.244.0.2/32")
        service.note(("c1", "eth0"))
        await soon(lambda: service._used, "the container is known", 2)
        await asyncio.sleep(2 * TICK)
        plans.clear()
        for _ in range(30):
            await member.replica.write({"alive/h2": b"h2"})  # as agents of an older version do
            await asyncio.sleep(TICK)
        assert plans == []
        resolvers.write_text("nameserver 192.0.2.54\n")
        await soon(lambda: plans, "the other resolver is read", RESOLVERS + TICK)
        plans.clear()
        service.note(("c1", "eth0"))
        await soon(lambda: plans, "the endpoint is looked at", TICK)
        await service.stop()
        await member.replica.stop()

    in_virtual_time(work)


def test_a_server_waits_for_the_address_at_which_it_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last container may go, and the gateway's address with it, before the server starts: then it does not."""
    there = False
    monkeypatch.setattr(dnsmasq, "found", lambda folder: Dnsmasq("/usr/sbin/dnsmasq", "root", str(folder)))
    monkeypatch.setattr(dnsmasq, "can_listen", lambda address: there and address == "10.244.0.1")
    machine = _Serving(tmp_path)

    async def alone(_worker: Worker, function: Callable[..., object], *args: object) -> object:
        return function(*args)

    monkeypatch.setattr(Worker, "run", alone)  # the virtual clock does not wait for another thread

    def servers() -> list[str]:
        found = machine.reconciler.desired.states((Process,)).values()
        return [state.name for state in found if isinstance(state, Process)]

    async def work() -> None:
        nonlocal there
        member = Member(Memory(), tmp_path, "h1")
        await member.replica.start()
        await member.replica.write({"networks/demo": DEMO})
        member.networks.refresh()
        service = service_of(member, tmp_path, machine, tmp_path / "resolv.conf")
        monkeypatch.setattr(service, "_held", lambda places: dict.fromkeys(places, ""))
        monkeypatch.setattr(service._pulse, "beat", lambda _asked: None)
        service.start()
        member.holds(DEMO, "c1", "10.244.0.2/32")
        service.note(("c1", "eth0"))
        await soon(lambda: service._used, "the container is known", 2)
        await asyncio.sleep(3 * TICK)
        assert servers() == []
        assert service.standing("demo") == "awaited"
        del member.endpoints["c1", "eth0"]
        service.note(("c1", "eth0"))
        await soon(lambda: not service._used, "it waits for nobody", 2 * TICK)
        member.holds(DEMO, "c1", "10.244.0.2/32")
        service.note(("c1", "eth0"))
        there = True
        await soon(lambda: service.standing("demo") == "answers", "the server starts", 2 * TICK)
        await service.stop()
        await member.replica.stop()

    in_virtual_time(work)
    assert servers() == ["names-demo"]


def test_a_network_that_goes_while_its_server_starts_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its gateway's address is another program's next: the delete waits for the start, and ends the server."""
    monkeypatch.setattr(dnsmasq, "found", lambda folder: Dnsmasq("/usr/sbin/dnsmasq", "root", str(folder)))
    monkeypatch.setattr(dnsmasq, "can_listen", lambda _address: True)
    machine, starts, may_start = _Serving(tmp_path), asyncio.Event(), asyncio.Event()

    async def slowly(_worker: Worker, function: Callable[..., object], *args: object) -> object:
        if args[:1] == (("demo",),) and not may_start.is_set():
            starts.set()
            await may_start.wait()
        return function(*args)

    monkeypatch.setattr(Worker, "run", slowly)

    async def work() -> None:
        member = Member(Memory(), tmp_path, "h1")
        await member.replica.start()
        await member.replica.write({"networks/demo": DEMO})
        member.networks.refresh()
        service = service_of(member, tmp_path, machine, tmp_path / "resolv.conf")
        monkeypatch.setattr(service, "_held", lambda places: dict.fromkeys(places, ""))
        member.holds(DEMO, "c1", "10.244.0.2/32")
        starting = asyncio.create_task(service._put(service._look()))
        await starts.wait()
        del member.endpoints["c1", "eth0"]
        await member.replica.write({}, ["networks/demo"])
        member.networks.refresh()
        leaving = asyncio.create_task(service.leave("demo"))
        await asyncio.sleep(TICK)
        may_start.set()
        await asyncio.gather(starting, leaving)
        assert not machine.reconciler.desired.states((Process,))
        await service.stop()
        await member.replica.stop()

    in_virtual_time(work)
