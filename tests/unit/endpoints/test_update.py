"""What changes at an endpoint that stands changes whole or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from linkspan.core.errors import Unavailable
from linkspan.core.model import Endpoint, Network, Port
from linkspan.core.ports import PortTable
from linkspan.endpoints import update
from linkspan.endpoints.registry import Identity, Registry
from linkspan.store.memory import Memory
from support.memory_machine import registry_of
from support.records.replicas import Member, network

OLD, NEW = Port("", 8080, 80, "tcp"), Port("", 9090, 80, "tcp")


def test_a_full_disk_leaves_an_endpoint_the_ports_that_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be recorded is held by nobody: another container may publish there."""
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
    table = PortTable(lambda _protocol, _ip, _port: "")
    table.restore(endpoint)

    async def alter(
        _registry: Registry, _identity: Identity, altered: Callable[[Network, Endpoint], Endpoint]
    ) -> Endpoint:
        altered(network(), endpoint)
        raise Unavailable("journal: the disk is full")

    monkeypatch.setattr(update, "alter", alter)
    registry = registry_of(Member(Memory(), tmp_path, "h1"), tmp_path)
    registry.endpoints[endpoint.identity] = endpoint
    with pytest.raises(Unavailable):
        asyncio.run(update.publish(registry, table, endpoint.identity, (NEW,), ()))
    assert "endpoint a" in table.holder(OLD)
    assert table.holder(NEW) == ""
