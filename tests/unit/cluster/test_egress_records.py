"""Wrong, contradicting and old records about an egress address: at most one host has it, and all say why."""

from __future__ import annotations

from asyncio import sleep
from pathlib import Path

import msgspec

from linkspan.core.model import Egress, Underlay
from linkspan.store.absence import STEP
from support.records.egress_cluster import APPS, DEMO, EXIT, RECORD, Cluster, played
from support.virtual_time import clock


def test_a_record_of_a_host_that_does_not_exist_keeps_it_from_nobody(tmp_path: Path) -> None:
    """It is tied to no life, so it would never end."""

    async def work(cluster: Cluster) -> None:
        holder = await cluster.one()
        store = cluster.hosts[holder].store
        await store.transaction({RECORD: b"h9\x1b[2J"})
        await sleep(10)
        after = await cluster.one()
        assert cluster.hosts["h1"].exits.told(DEMO) == [{"address": EXIT.address, "host": after}]

    played(tmp_path, work)


def test_a_record_of_no_address_wakes_nobody(tmp_path: Path) -> None:
    """Any host may write and delete such records without end: nothing is kept or computed because of them."""

    async def work(cluster: Cluster) -> None:
        await cluster.one()
        await sleep(3)
        host = cluster.hosts["h1"]
        alive, heartbeats = host.hosts.alive(), set(host.presence._beats)
        assert alive == set(cluster.kernels)
        for key in ("alive/(egress)/4/192.0.2.7", "alive/(egress)/demo/4"):
            await host.replica.write({key: b"h1"})
            assert key in host.replica.records
            host.exits._wake.clear()
            host.exits.changed(frozenset({key}))
            assert not host.exits._wake.is_set()
            await host.replica.write({}, deletes=[key])
        asked = 0

        async def full() -> bool:
            nonlocal asked
            asked += 1
            return False

        host.store.full = full  # type: ignore[method-assign]
        begun = clock()
        for number in range(100):
            await host.store.transaction({f"alive/(egress)/4/{number}": b"h1"})
            await host.store.transaction({}, deletes=[f"alive/(egress)/4/{number}"])
            await sleep(0.03)
        assert 1 <= asked <= (clock() - begun) / STEP + 1
        assert host.hosts.alive() is alive
        assert host.presence._beats == heartbeats
        assert not any("egress" in key for key in host.replica.contact._gone)
        host.exits.changed(frozenset({RECORD}))
        assert host.exits._wake.is_set()

    played(tmp_path, work)


def test_two_networks_never_have_one_address(tmp_path: Path) -> None:
    """Two operators gave it to them at one moment; and one that leaves a network is taken for the other in time."""

    async def work(cluster: Cluster) -> None:
        await cluster.one()
        host = cluster.hosts["h1"]
        await host.replica.write({"networks/apps": msgspec.structs.replace(APPS, egress=(EXIT,))})
        await sleep(10)
        for one in cluster.hosts.values():
            assert list(one.exits.holders()) == [("apps", 4)]
            assert list(one.exits.problems()) == [
                f"networks apps and demo have one egress address, {EXIT.address}: change one"
            ]
        holder = await cluster.one()
        cluster.hosts[holder].store.cut()
        other = next(name for name in cluster.hosts if name != holder)
        await cluster.hosts[other].replica.write({"networks/apps": APPS})
        assert await cluster.one(but=holder) != holder
        cluster.hosts[holder].store.mend()

    played(tmp_path, work)


def test_nobody_takes_what_a_pool_or_a_host_has(tmp_path: Path) -> None:
    """Any host may write such a record of a network: an honest one would answer for somebody else."""

    async def work(cluster: Cluster) -> None:
        await cluster.one()
        for address, owner in (("10.244.3.4", "in a pool of network demo"), ("192.0.2.3", "host h3's own")):
            host = msgspec.structs.replace(cluster.hosts["h3"].hosts.here, underlay=Underlay("eth0", ("192.0.2.3/24",)))
            await cluster.hosts["h3"].replica.write({"hosts/h3": host})
            await cluster.wish(Egress(address, "h1", 2))
            await sleep(10)
            assert not cluster.having(address)
            assert list(cluster.hosts["h1"].exits.problems()) == [
                f"egress address {address} of network demo is {owner}: change it"
            ]

    played(tmp_path, work)


def test_a_host_that_does_not_know_egress_addresses_is_named(tmp_path: Path) -> None:
    """It may have joined later, and its containers leave by its own address."""

    async def work(cluster: Cluster) -> None:
        await cluster.one()
        old = msgspec.structs.replace(cluster.hosts["h3"].hosts.here, egresses=False)
        await cluster.hosts["h3"].replica.write({"hosts/h3": old})
        await sleep(3)
        (problem,) = cluster.hosts["h1"].exits.problems()
        assert problem.startswith("the agent of host h3 is of a version without egress addresses")

    played(tmp_path, work)
