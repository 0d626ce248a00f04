"""Updates of an endpoint: a change is complete or does not happen."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from linkspan.core.errors import Unavailable
from linkspan.core.model import Endpoint, Port
from linkspan.endpoints import update
from linkspan.store.memory import Memory
from support.memory_machine import registry_of
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
            await update.publish(registry, table, endpoint.identity, (NEW,), ())
        await member.replica.stop()

    monkeypatch.setattr(update, "_alter", full)
    asyncio.run(work())
    assert "endpoint a" in table.holder(OLD)
    assert table.holder(NEW) == ""
