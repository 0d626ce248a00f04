"""Updates of an endpoint: a change is complete or does not happen."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from linkspan.core.errors import Unavailable
from linkspan.core.model import Endpoint, Port
from linkspan.endpoints import update
from linkspan.kernel.io.namespaces import Namespaces
from linkspan.kernel.machine import Machine
from linkspan.store.memory import Memory
from support.memory_machine import registry_of
from support.records import one_host
from support.records.registry_stage import NotedMachine, RegistryStage
from support.records.replicas import Member, network

OLD, NEW = Port("", 8080, 80, "tcp"), Port("", 9090, 80, "tcp")


def test_a_full_disk_leaves_an_endpoint_the_ports_that_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A port that could not be recorded is free: another container may publish it."""
    endpoint = Endpoint(
        id="a",
        ifname="eth0",
        network="demo",
        host="h1",
        addresses=("10.244.0.2/32",),
        gateways=("10.244.0.1",),
        mac="02:00:00:00:00:07",
        mtu=1450,
        host_ifname="lsr1",
        ports=(OLD,),
        netns=7,
        netns_path="",
    )
    member = Member(Memory(), tmp_path, "h1")
    registry = registry_of(member, tmp_path)
    registry.endpoints[endpoint.identity] = endpoint
    table = registry.ports
    table.restore(endpoint)

    async def full(*_words: Any) -> Endpoint:
        assert table.holder(NEW)
        raise Unavailable("journal: the disk is full")

    async def work() -> None:
        await member.replica.start()
        await member.replica.write({"networks/demo": network()})
        member.networks.refresh()
        with pytest.raises(Unavailable):
            await update.publish(registry, endpoint.identity, (NEW,), ())
        await member.replica.stop()

    monkeypatch.setattr(update, "_alter", full)
    asyncio.run(work())
    assert "endpoint a" in table.holder(OLD)
    assert table.holder(NEW) == ""


class Ways(NotedMachine):
    """A machine that remembers the ways into namespaces."""

    enter, leave = Machine.enter, Machine.leave

    def __init__(self) -> None:
        super().__init__()
        self.namespaces = Namespaces()


def test_the_way_into_the_next_namespace_with_an_inode_is_known_from_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the journal takes the change, a resync may enter it: it must not take any namespace with the inode."""
    demo = one_host.network("demo", "10.1.0.0/24", routed=True)
    one = one_host.endpoint(demo, "10.1.0.5")

    async def run() -> None:
        machine = Ways()
        stage, seen = RegistryStage(tmp_path, machine), list[str]()
        await stage.start(demo)
        stage.journal.begin(one)
        stage.registry.admit(one, 0)
        monkeypatch.setattr(stage.journal, "attached", lambda _: seen.append(machine.namespaces.path(one.netns)))
        place = {"netns_path": "/run/netns/next", "netns_cookie": one.netns_cookie + 1}
        await update.alter(stage.registry, one.identity, lambda _, e: msgspec.structs.replace(e, **place))
        assert seen == ["/run/netns/next"]
        await stage.stop()

    asyncio.run(run())
