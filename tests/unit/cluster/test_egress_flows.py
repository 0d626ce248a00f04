"""Open flows of a network whose egress address comes, changes or goes."""

from __future__ import annotations

from asyncio import sleep
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from linkspan.cluster.egress_flows import Turn, stale
from linkspan.core.addresses import prefix
from linkspan.core.model import Egress
from linkspan.kernel.probe.conntrack import Flow
from linkspan.store.memory import MemoryStore
from support.records.egress_cluster import DEMO, EXIT, FAILOVER, Cluster, played, turned
from support.records.replicas import network
from support.virtual_time import soon


def test_open_flows_follow_when_the_address_comes_changes_and_goes(tmp_path: Path) -> None:
    """On all hosts when the network gets, changes or loses it, also while nobody holds it."""

    async def work(cluster: Cluster) -> None:
        every = cluster.hosts.values()

        def follow(address: str) -> bool:
            """Return whether one host has it, and all follow that."""
            last = [host.followed[-1] for host in every if host.followed]
            return [last.count(turned(address, here=here)) for here in (True, False)] == [1, 2]

        await soon(lambda: follow(EXIT.address), "all follow", FAILOVER)
        assert [len(host.followed) for host in every] == [1, 1, 1]
        await cluster.wish(Egress("192.0.2.101"))
        await soon(lambda: follow("192.0.2.101"), "all follow the new address", 2 * FAILOVER)
        for host in every:
            host.store.cut()
        await sleep(20)
        await MemoryStore(cluster.memory).transaction({"networks/demo": msgspec.json.encode(network())})
        for host in every:
            host.store.mend()
        gone = turned("192.0.2.101", lost=True)
        await soon(lambda: all(host.followed[-1] == gone for host in every), "all know that it is gone", 20)

    played(tmp_path, work)


@pytest.mark.parametrize(
    ("turn", "wrong"),
    [
        (turned(here=True), {"", "192.0.2.1", "192.0.2.101"}),
        (turned(here=False), {EXIT.address, "192.0.2.1", "192.0.2.101"}),
        (turned(lost=True), {"", EXIT.address}),
        ({6: Turn(address=prefix("2001:db8::100"), here=True)}, set()),
        ({}, set()),
    ],
)
def test_a_flow_is_stale_if_the_outside_sees_another_source_of_it(turn: Mapping[int, Turn], wrong: set[str]) -> None:
    """The holder's have the address, others are not translated on their hosts, and without it each host masquerades."""

    def is_stale(seen: str) -> bool:
        source, target = prefix("10.244.1.2"), prefix("198.51.100.9")
        return stale((DEMO,), (DEMO,), {"demo": turn}, Flow(source, target, "tcp", 80, prefix(seen) if seen else None))

    assert {seen for seen in ("", EXIT.address, "192.0.2.1", "192.0.2.101") if is_stale(seen)} == wrong


def test_only_flows_from_the_network_to_no_pool_are_stale() -> None:
    """Of another network they go on as they are, and so do those between containers."""
    other = network("other", "10.245.0.0/16", options={"vni": "200"})

    def is_stale(source: str, target: str) -> bool:
        turns = {"demo": turned(here=True)}
        return stale((DEMO,), (DEMO, other), turns, Flow(prefix(source), prefix(target), "tcp", 80))

    assert is_stale("10.244.1.2", "198.51.100.9")
    assert not is_stale("10.244.1.2", "10.244.2.3")
    assert not is_stale("10.244.1.2", "10.245.0.9")
    assert not is_stale("10.245.0.9", "198.51.100.9")
