"""Taking egress addresses over: all of a dead holder's at once, and none that another machine has."""

from __future__ import annotations

from asyncio import create_task, sleep
from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec
import pytest

from linkspan.cluster import address_probe, held_addresses
from linkspan.cluster.egress import OTHERS
from linkspan.cluster.held_addresses import Held
from linkspan.core.addresses import Prefix
from linkspan.core.model import Egress, Network
from linkspan.kernel.probe import arp
from linkspan.kernel.worker import Worker
from linkspan.store.memory import MemoryStore
from support.records.egress_cluster import APPS, EXIT, FAILOVER, RECORD, Cluster, played
from support.virtual_time import clock, soon

TAKEN = Egress("192.0.2.50")


def address(number: int) -> str:
    """Return the address of such a network."""
    return f"203.0.{113 + (number >> 8)}.{number & 255}"


def leaving_by(host: str, number: int) -> dict[str, Network]:
    """Return the records of networks that each leave by an address of its own, which a host should hold."""
    return {
        f"networks/n{n}": msgspec.structs.replace(
            APPS,
            name=f"n{n}",
            pools=(f"10.{n >> 1}.{n % 2 * 128}.0/17",),
            gateways=(f"10.{n >> 1}.{n % 2 * 128}.1/17",),
            options={"vni": f"{1000 + n}"},
            egress=(Egress(address(n), host),),
        )
        for n in range(1, number + 1)
    }


def test_no_host_takes_an_address_that_another_machine_has(tmp_path: Path) -> None:
    """`status` names it on every host, whoever asks; once the machine is gone, a host takes it."""

    async def work(cluster: Cluster) -> None:
        await cluster.one()
        cluster.segment.others.add(TAKEN.address)
        await cluster.wish(TAKEN)

        def named() -> bool:
            told = [list(host.exits.problems()) for host in cluster.hosts.values()]
            return all(len(one) == 1 and "is in use by another machine: take it off" in one[0] for one in told)

        await soon(named, "all hosts name it", 3 * FAILOVER)
        for _ in range(300):
            await sleep(0.1)
            assert cluster.having(TAKEN.address) == []
        assert named()
        assert not any(host.exits.held()[TAKEN.address] for host in cluster.hosts.values())
        cluster.segment.others.clear()
        await soon(lambda: len(cluster.having(TAKEN.address)) == 1, "one has it", OTHERS + FAILOVER)
        await soon(lambda: not any(list(h.exits.problems()) for h in cluster.hosts.values()), "no problem is left", 5)

    played(tmp_path, work)


def test_a_host_that_came_to_have_it_meanwhile_keeps_the_next_holder_from_it(tmp_path: Path) -> None:
    """The question is asked at each takeover, and not only for a new address."""

    async def work(cluster: Cluster) -> None:
        holder = await cluster.one()
        cluster.segment.others.add(EXIT.address)
        await sleep(5)
        assert cluster.having() == [holder]
        await cluster.hosts[holder].die()
        await sleep(20)
        assert cluster.having() == []

    played(tmp_path, work)


def test_all_addresses_of_a_dead_holder_move_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a few transactions, and all networks follow together: as soon as one alone would.

    Though the questions for all take their time, and the dead host's kernel answers them for a while.
    """
    taken: list[int] = []
    real = MemoryStore.transaction

    async def transaction(self: MemoryStore, puts: Mapping[str, bytes], *more: object, **how: object) -> int:
        if count := sum(key.startswith("alive/(egress)/") for key in puts):
            taken.append(count)
        return await real(self, puts, *more, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(MemoryStore, "transaction", transaction)
    many = leaving_by("h1", 300)
    addresses = {one.egress[0].address for one in many.values()}

    async def work(cluster: Cluster) -> None:
        answered = cluster.segment.rivals

        async def slowly(worker: Worker, asked: Collection[Prefix]) -> dict[Prefix, str]:
            """Take the time of `kernel/probe/arp.py`: those that answer do so at the first question."""
            found = await answered(worker, asked)
            sending = arp.PAUSE / address_probe.BURST
            await sleep(len(asked) * sending)
            if silent := len(asked) - len(found):
                await sleep(address_probe.WAIT + (address_probe.TRIES - 1) * (silent * sending + address_probe.WAIT))
            return found

        monkeypatch.setattr(cluster.segment, "rivals", slowly)
        records = list(many.items())
        for first in range(0, len(records), 100):
            await cluster.hosts["h1"].replica.write(dict(records[first : first + 100]))
        await soon(lambda: all(cluster.having(a) == ["h1"] for a in addresses), "h1 has all", 4 * FAILOVER)
        await sleep(6)
        calls = {name: len(host.calls) for name, host in cluster.hosts.items()}
        taken.clear()
        cluster.segment.announced.clear()
        await cluster.hosts["h1"].die()

        def moved() -> bool:
            return all(cluster.having(a) not in ([], ["h1"]) for a in addresses)

        await soon(moved, "the others have all", FAILOVER)
        assert len(taken) < 30
        assert sum(cluster.segment.announced) >= len(addresses)
        assert len(cluster.segment.announced) < 20
        for name in ("h2", "h3"):
            since = cluster.hosts[name].calls[calls[name] :]
            assert len(since) < 10
            assert {network for call in since for network in call} >= {f"n{n}" for n in range(1, 301)}

    played(tmp_path, work)


def test_an_agent_that_ends_as_it_takes_the_record_does_not_shorten_the_wait(tmp_path: Path) -> None:
    """The next agent finds the record in its name, but the host before may still have the address."""

    async def work(cluster: Cluster) -> None:
        first = await cluster.one()
        cluster.hosts[first].store.cut()

        def taker() -> str:
            value, _ = cluster.memory.entries.get(RECORD, (None, 0))
            return "" if value is None or value == first.encode() else value.decode()

        await soon(taker, "another host takes the record", FAILOVER)
        name = taker()
        await cluster.hosts[name].die()
        await cluster.begin(name)
        await soon(lambda: cluster.having() == [name], "it has the address", FAILOVER)

    played(tmp_path, work)


def test_the_metric_says_whether_anybody_holds_it(tmp_path: Path) -> None:
    """Also while the store is away, because nobody does then; and if the record's host does not exist."""

    async def work(cluster: Cluster) -> None:
        await cluster.one()
        every = cluster.hosts.values()

        def held() -> set[bool]:
            return {host.exits.held()[EXIT.address] for host in every}

        await soon(lambda: held() == {True}, "all know that one holds it", 2)
        for host in every:
            host.store.cut()
        await soon(lambda: held() == {False}, "nobody holds it", FAILOVER)
        for host in every:
            host.store.mend()
        await soon(lambda: held() == {True}, "one holds it again", 15)
        assert RECORD in cluster.memory.entries

    played(tmp_path, work)


def test_to_ask_for_many_addresses_takes_no_other_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A question for each costs time, and the kernel ends the addresses that the host has after four seconds."""

    async def work(cluster: Cluster) -> None:
        await cluster.wish(Egress(EXIT.address, "h1", 1))
        await soon(lambda: cluster.having() == ["h1"], "h1 has the first", 2 * FAILOVER)
        answered = cluster.segment.rivals

        async def slowly(worker: Worker, addresses: Collection[Prefix]) -> dict[Prefix, str]:
            await sleep(0.04 * len(addresses))
            return await answered(worker, addresses)

        monkeypatch.setattr(cluster.segment, "rivals", slowly)
        many = leaving_by("h1", 240)
        for first in range(0, len(many), 100):
            await cluster.hosts["h1"].replica.write(dict(list(many.items())[first : first + 100]))

        async def last() -> None:
            await soon(lambda: cluster.having(address(240)) == ["h1"], "h1 has all", 4 * FAILOVER)

        waiting = create_task(last())
        while not waiting.done():
            assert cluster.having() == ["h1"]
            await sleep(0.1)
        await waiting

    played(tmp_path, work)


def test_an_address_whose_record_ended_meanwhile_is_not_put(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While others are put, the host learns that it was silent, and lives again: others may hold its addresses."""

    async def work(cluster: Cluster) -> None:
        await cluster.hosts["h1"].replica.write(leaving_by("h1", 3))
        addresses = [address(n) for n in range(1, 4)]
        await soon(lambda: all(cluster.having(a) == ["h1"] for a in addresses), "h1 has all", 2 * FAILOVER)
        exits = cluster.hosts["h1"].exits
        put: list[str] = []

        async def meanwhile(due: Mapping[str, Held]) -> None:
            put.extend(due)
            exits.lost()
            exits.confirmed(clock())

        await exits.stop()
        monkeypatch.setattr(held_addresses, "PUT_AT_ONCE", 1)
        monkeypatch.setattr(exits._addresses, "_put_some", meanwhile)
        await exits._addresses.put()
        assert len(put) == 1

    played(tmp_path, work)
