"""`address check --fix`: what leaked is freed, and nobody keeps what another one holds."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from linkspan.core.addresses import prefix
from linkspan.core.model import Endpoint
from linkspan.core.states.host import Address, Veth
from linkspan.endpoints.address_audit import Check
from linkspan.endpoints.address_repair import check, repair
from linkspan.endpoints.orphans import Orphans
from linkspan.kernel.io.namespaces import Namespaces
from linkspan.store.memory import Memory
from support.memory_machine import MemoryMachine, registry_of
from support.records.one_host import endpoint, network
from support.records.replicas import Member

DEMO = network("demo", "10.1.0.0/24", routed=True)


class Spacious(MemoryMachine):
    """A machine that remembers the ways into namespaces."""

    def __init__(self) -> None:
        super().__init__()
        self.namespaces = Namespaces()


class Stage:
    """A host with three containers: 10.1.0.5, 10.1.0.6 and 10.1.0.7."""

    def __init__(self, folder: Path) -> None:
        self.machine = Spacious()
        self.member = Member(Memory(), folder, "h1")
        self.registry = registry_of(self.member, folder, self.machine)
        self.endpoints: list[Endpoint] = []

    async def start(self) -> None:
        """Have the containers."""
        await self.member.replica.start()
        await self.member.replica.write({"networks/demo": DEMO})
        self.member.networks.refresh()
        self.member.blocks.refresh()
        for number in (5, 6, 7):
            one = endpoint(DEMO, f"10.1.0.{number}", id_=f"c{number}")
            one = msgspec.structs.replace(one, netns=one.netns + number, netns_path="")
            self.machine.reconciler.changes(self.registry.states(DEMO, one))
            self.registry.journal.begin(one)
            self.registry.admit(one, 0)
            self.endpoints.append(one)

    def break_(self) -> None:
        """Give c6 the address of c5, take the pair of c7 away, and make one that leads to nobody."""
        five, six, seven = self.endpoints
        stolen = Address(six.ifname, prefix("10.1.0.5/32"), six.netns)
        nobody = Veth("lsrnobody", bytes(6), 1500, "", five.netns + 100, "eth0")
        states = self.machine.driver.states
        states |= {stolen.key: stolen, nobody.key: nobody}
        del states["Veth", seven.host_ifname]


def _found(found: Check) -> tuple[list[str], list[str], list[str]]:
    leaked, double = ([one.address for one in some] for some in (found.leaked, found.duplicate))
    return leaked, double, [one.holder for one in found.orphaned]


def test_what_is_wrong_is_named_and_put_right(tmp_path: Path) -> None:
    """The container that is gone is detached, and what holds keeps its address."""

    async def run() -> None:
        stage = Stage(tmp_path)
        await stage.start()
        assert (await check(stage.registry)).ok
        stage.break_()
        assert _found(await check(stage.registry)) == (["10.1.0.7"], ["10.1.0.5"], ["lsrnobody"])
        member, registry = stage.member, stage.registry
        orphans = Orphans(
            registry.worker,
            registry.journal,
            member.networks,
            member.blocks,
            member.readiness,
            member.event_log,
            grace=60,
        )
        assert (await repair(registry, orphans)).ok
        assert {id_ for id_, _ in registry.endpoints} == {"c5", "c6"}
        held = [s for s in stage.machine.driver.states.values() if isinstance(s, Address) and s.netns]
        assert {(s.prefix.address, s.netns) for s in held} == {
            (one.prefixes[0].address, one.netns) for one in stage.endpoints[:2]
        }
        await member.replica.stop()
        registry.journal.close()

    asyncio.run(run())
