"""Holder of an egress address while the store or agents fail: never two, and soon somebody again."""

from __future__ import annotations

import random
from asyncio import sleep
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from linkspan.core.errors import Unavailable
from linkspan.core.model import Egress
from linkspan.kernel.drivers.egress_addresses import LIFETIME
from linkspan.store.memory import MemoryStore
from support.records.egress_cluster import EXIT, LATE, RECORD, Cluster, played
from support.records.replicas import network
from support.virtual_time import clock, soon


def test_without_the_store_nobody_has_it(tmp_path: Path) -> None:
    """And with it again, one has."""

    async def work(cluster: Cluster) -> None:
        await cluster.one()
        for host in cluster.hosts.values():
            host.store.cut()
        await soon(lambda: cluster.having() == [], "nobody has it", LIFETIME + LATE + 0.1)
        await sleep(20)
        assert cluster.having() == []
        for host in cluster.hosts.values():
            host.store.mend()
        await soon(lambda: len(cluster.having()) == 1, "one has it", 15)

    played(tmp_path, work)


def _faulty(monkeypatch: pytest.MonkeyPatch, fault: str, seconds: float, *, of: str) -> None:
    """Let the store fail for so long from the first write of a record on that ``of`` puts, or deletes.

    "refused": it is not executed, and there is no answer. "lost": it is executed, and there is no answer. "changed":
    it is not executed, because a condition fails.
    """
    real, begun = MemoryStore.transaction, []

    async def transaction(
        self: MemoryStore, puts: Mapping[str, bytes], deletes: Sequence[str] = (), **more: object
    ) -> int:
        if RECORD not in (puts if of == "puts" else deletes):
            return await real(self, puts, deletes, **more)  # type: ignore[arg-type]
        begun.append(clock())
        if clock() - begun[0] > seconds:
            return await real(self, puts, deletes, **more)  # type: ignore[arg-type]
        if fault == "lost":
            await real(self, puts, deletes, **more)  # type: ignore[arg-type]
        if fault != "changed":
            raise Unavailable("store in memory: no answer")
        return 0

    monkeypatch.setattr(MemoryStore, "transaction", transaction)


FAULTS = pytest.mark.parametrize("fault", ["refused", "lost", "changed"])


@FAULTS
def test_a_drained_host_frees_it_in_spite_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Its keepalive keeps the record until it is deleted, so it tries that again."""

    async def work(cluster: Cluster) -> None:
        first = await cluster.one()
        _faulty(monkeypatch, fault, 3, of="deletes")
        await cluster.drain(first, "1")
        await soon(lambda: cluster.having() == [], "it is gone from the drained host", 2)
        assert await cluster.one(but=first) != first

    played(tmp_path, work)


@FAULTS
def test_an_operator_moves_it_in_spite_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The host that has it does not take it again for the new wish."""

    async def work(cluster: Cluster) -> None:
        first = await cluster.one()
        target = next(name for name in cluster.kernels if name != first)
        _faulty(monkeypatch, fault, 3, of="deletes")
        await cluster.wish(Egress(EXIT.address, target, 1))
        assert await cluster.one(but=first) == target

    played(tmp_path, work)


@FAULTS
def test_a_network_without_one_leaves_nothing_in_spite_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The record goes later; and a network that gets one again has it on one host."""

    async def work(cluster: Cluster) -> None:
        await cluster.one()
        _faulty(monkeypatch, fault, 3, of="deletes")
        await next(iter(cluster.hosts.values())).replica.write({"networks/demo": network()})
        await soon(lambda: cluster.having() == [], "it is gone", 2)
        await soon(lambda: cluster.memory.entries[RECORD][0] is None, "the record is gone", 5)
        await cluster.wish(EXIT)
        await cluster.one()

    played(tmp_path, work)


def test_a_record_that_another_host_has_taken_meanwhile_is_not_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its record, the holder would have the address beside the next one for a moment."""
    real, tried = MemoryStore.transaction, list[str]()

    async def work(cluster: Cluster) -> None:
        first = await cluster.one()
        drained, other = cluster.hosts[first].store, next(name for name in cluster.hosts if name != first).encode()

        async def transaction(
            self: MemoryStore, puts: Mapping[str, bytes], deletes: Sequence[str] = (), **more: object
        ) -> int:
            if RECORD in deletes and self is not drained:
                return 0
            if RECORD in deletes:
                if not tried:
                    await real(self, {RECORD: other})
                    await sleep(0.1)  # the host that deletes learns of it
                tried.append(RECORD)
            return await real(self, puts, deletes, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(MemoryStore, "transaction", transaction)
        await cluster.drain(first, "1")
        await soon(lambda: tried, "the drained host deletes its record", 2)
        await sleep(5)
        assert tried == [RECORD]
        assert cluster.memory.entries[RECORD][0] == other

    played(tmp_path, work)


def test_a_host_that_got_no_answer_waits_before_it_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It finds its own record then, though another host may have the address in its kernel for a moment longer."""

    async def work(cluster: Cluster) -> None:
        for _ in range(4):
            holder = await cluster.one()
            with monkeypatch.context() as patched:
                _faulty(patched, "lost", 0.1, of="puts")
                await cluster.hosts[holder].die()
                await cluster.one(but=holder)
            await cluster.begin(holder)
            await sleep(5)

    played(tmp_path, work)


def _faults(seed: int) -> Iterator[tuple[float, str, str]]:
    """Yield faults of hosts with the seconds until the next one."""
    chosen = random.Random(seed)  # noqa: S311 - it repeats
    for _ in range(40):
        yield chosen.uniform(0, 7), chosen.choice(("die", "begin", "cut", "mend", "mend")), f"h{chosen.randint(1, 3)}"


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_never_two_have_it(tmp_path: Path, seed: int) -> None:
    """Agents that die, begin again, lose the store and find it; in the end one host has it (``played`` watches)."""

    async def work(cluster: Cluster) -> None:
        dead: set[str] = set()
        for pause, what, name in _faults(seed):
            await sleep(pause)
            if what == "die" and name not in dead:
                dead.add(name)
                await cluster.hosts[name].die()
            elif what == "begin" and name in dead:
                dead.discard(name)
                await cluster.begin(name)
            elif what == "cut":
                cluster.hosts[name].store.cut()
            elif what == "mend":
                cluster.hosts[name].store.mend()
        for name, host in list(cluster.hosts.items()):
            host.store.mend()
            if name in dead:
                await cluster.begin(name)
        await soon(lambda: len(cluster.having()) == 1, "one has it", 30)

    played(tmp_path, work)
