"""Holder of an egress address: never two, and soon somebody again, where the operator wants it."""

from __future__ import annotations

from asyncio import sleep
from pathlib import Path

import msgspec
import pytest

from linkspan.cluster.egress import LATER, PATIENCE
from linkspan.core.model import Egress, Network
from linkspan.core.store_contract import LIFE
from linkspan.kernel.drivers.egress_addresses import LIFETIME
from linkspan.store.absence import ABSENCE
from support.records.egress_cluster import APPS, DEMO, EXIT, FAILOVER, LATE, RECORD, Cluster, played, turned
from support.records.replicas import network
from support.virtual_time import clock, soon


def test_another_host_takes_it_when_the_holder_dies(tmp_path: Path) -> None:
    """Again and again; one that is back leaves it where it is, and all know who has it."""

    async def work(cluster: Cluster) -> None:
        holder = await cluster.one()
        for _ in range(4):
            await cluster.hosts[holder].die()
            died, begun = holder, clock()
            holder = await cluster.one(but=died)
            assert LIFETIME + 1.5 - 1 <= clock() - begun <= FAILOVER
            await cluster.begin(died)
            await sleep(15)
            assert await cluster.one() == holder
            told = [host.exits.told(DEMO) for host in cluster.hosts.values()]
            assert told == [[{"address": EXIT.address, "host": holder}]] * 3
            assert {name: host.followed[-1] for name, host in cluster.hosts.items()} == {
                name: turned(here=name == holder) if name in (died, holder) else {} for name in cluster.hosts
            }

    played(tmp_path, work)


def test_a_restarted_agent_keeps_it(tmp_path: Path) -> None:
    """If it is back before its record ends, the kernel has the address again before its time is over, or soon."""

    async def work(cluster: Cluster) -> None:
        holder = await cluster.one()
        await sleep(3)
        await cluster.hosts[holder].die()
        await sleep(0.5)
        await cluster.begin(holder)
        await sleep(4)
        assert cluster.having() == [holder]

    played(tmp_path, work)


def test_the_preferred_host_comes_first_and_an_operator_moves_it(tmp_path: Path) -> None:
    """The same wish again is a new one; while the preferred host is dead, another one has it."""

    async def work(cluster: Cluster) -> None:
        first = await cluster.one()
        target = next(name for name in cluster.kernels if name != first)
        await cluster.wish(Egress(EXIT.address, target, 1))
        assert await cluster.one(but=first) == target
        await cluster.hosts[target].die()
        other = await cluster.one(but=target)
        await cluster.begin(target)
        await sleep(15)
        assert cluster.having() == [other]
        await cluster.wish(Egress(EXIT.address, target, 2))
        assert await cluster.one(but=other) == target

    played(tmp_path, work)


def test_a_preferred_host_that_is_drained_leaves_it_to_another(tmp_path: Path) -> None:
    """When it is drained no more, it leaves it there."""

    async def work(cluster: Cluster) -> None:
        await cluster.wish(Egress(EXIT.address, "h2", 1))
        await soon(lambda: cluster.having() == ["h2"], "h2 has it", FAILOVER)
        await cluster.drain("h2", "1")
        other = await cluster.one(but="h2")
        await cluster.drain("h2", "")
        await sleep(15)
        assert cluster.having() == [other]

    played(tmp_path, work)


def test_a_move_to_a_host_without_a_link_ends_on_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host gets the chance for some seconds."""

    async def work(cluster: Cluster) -> None:
        first = await cluster.one()
        target = next(name for name in cluster.kernels if name != first)
        monkeypatch.setattr(cluster.kernels[target], "place", lambda _address: "")
        await cluster.wish(Egress(EXIT.address, target, 1))
        await sleep(15)
        assert cluster.having() not in ([], [target])

    played(tmp_path, work)


def test_an_address_that_cannot_be_put_goes_elsewhere_and_stops_no_other(tmp_path: Path) -> None:
    """Its link may be gone on that host, or down."""

    async def work(cluster: Cluster) -> None:
        bad = Egress("192.0.2.50", "h1")
        for name in cluster.kernels:
            cluster.kernels[name].broken = {bad.address} if name == "h1" else set()
        await cluster.wish(Egress(EXIT.address, "h1", 1))
        await cluster.hosts["h2"].replica.write({"networks/apps": msgspec.structs.replace(APPS, egress=(bad,))})
        await soon(lambda: cluster.having() == ["h1"], "h1 has the good one", 2 * FAILOVER)
        for _ in range(200):
            await sleep(0.1)
            assert cluster.having() == ["h1"]
        assert len(cluster.having(bad.address)) == 1

    played(tmp_path, work)


def test_a_network_without_one_leaves_nothing(tmp_path: Path) -> None:
    """Neither in a kernel nor in the store."""

    async def work(cluster: Cluster) -> None:
        await cluster.one()
        assert not any(host.exits.told(network()) for host in cluster.hosts.values())
        await next(iter(cluster.hosts.values())).replica.write({"networks/demo": network()})
        await soon(lambda: cluster.having() == [], "it is gone", 2)
        assert cluster.memory.entries[RECORD][0] is None
        assert not any(list(host.exits.problems()) for host in cluster.hosts.values())

    played(tmp_path, work)


def test_the_next_holder_waits_longer_than_an_address_can_live() -> None:
    """Its record ends LIFE after the last keepalive, and others see that half a second later."""
    assert LIFE + ABSENCE + LATER > LIFETIME + LATE
    assert msgspec.convert(msgspec.to_builtins(DEMO), Network) == DEMO


def test_since_when_nobody_has_it_is_forgotten_with_the_wish(tmp_path: Path) -> None:
    """A network that gets it again later leaves it to the preferred host for PATIENCE, as at first."""

    async def work(cluster: Cluster) -> None:
        await cluster.one()
        await cluster.hosts["h1"].replica.write({"networks/demo": network()})
        await soon(lambda: cluster.having() == [], "it is gone", 2)
        exits = cluster.hosts["h2"].exits
        await soon(lambda: not (exits._followed or exits._flowing), "no flow follows it", 2)
        exits._unwanted.clear()  # as of a host that has never tried to take one: it has nothing to do now
        exits._vacant[EXIT.address] = clock()
        await sleep(2 * PATIENCE)
        assert exits._vacant == {}

    played(tmp_path, work)
