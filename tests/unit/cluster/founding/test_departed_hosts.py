"""Departed hosts: what a snapshot has of hosts that were forgotten or removed since is taken out of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection
from pathlib import Path

import pytest

from linkspan.cluster.founding import certificates, restoration
from linkspan.cluster.founding.departed_hosts import forget_again, revoked_serials
from linkspan.cluster.founding.etcd_service import EtcdService
from linkspan.cluster.founding.restoration import Aim
from linkspan.cluster.founding.signer import HOSTS, REVOKED, JoinedHost, Revoked
from linkspan.cluster.founding.trust_files import Voter
from linkspan.store import records
from linkspan.store.memory import Memory, MemoryStore
from linkspan.store.records import AddressRecord, BlockRecord
from support.memory_vault import Etcd


def of(host: str) -> dict[str, bytes]:
    """Return the records of a host, of all kinds."""
    number = host.removeprefix("h")
    block = records.encode(BlockRecord(host, 1.0), b"", 1)
    address = records.encode(AddressRecord(host, "c", "eth0", 1.0, ""), b"", 1)
    return {
        f"hosts/{host}": b"{}",
        f"leases/demo/{host}": b"{}",
        f"endpoints/{host}/c/eth0": b"{}",
        f"blocks/demo/10.0.{number}.0_24": block,
        f"addresses/demo/10.9.0.{number}": address,
    }


async def found(
    etcd: Etcd, store: MemoryStore, revoked: set[int], gone: set[str], known: Collection[str] = ()
) -> tuple[dict[str, str], set[str]]:
    """Return the departed hosts, and the hosts of which no record is left."""
    departed = await forget_again(etcd.vault, store, "h1", revoked, known, gone)
    left = {one.key for one in (await store.list(""))[0]}
    hosts = {f"h{number}" for number in range(1, 5)}
    return departed, {host for host in hosts if not left & {*of(host)}}


@pytest.mark.parametrize("known_by", ["certificates", "tombstone"])
def test_a_host_that_departed_after_the_snapshot_stays_outside(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, known_by: str
) -> None:
    """With all its records: its addresses belong to others by now. A tombstone says so to whoever still knows it."""
    etcd, store = Etcd(monkeypatch, tmp_path), MemoryStore(Memory())

    async def run() -> None:
        await etcd.token("a1")
        for host in ("h2", "h3"):
            await etcd.join(host, "a1", certificates.new_key())
        for host in ("h1", "h2", "h3", "h4"):  # h4 is a host of which the voters know nothing
            await store.transaction(of(host))
        joined, _ = await etcd.vault.get(HOSTS + "h3", JoinedHost)
        assert joined is not None
        serials = {int(one, 16) for one in joined.serials}
        revoked, gone = (serials, set[str]()) if known_by == "certificates" else (set[int](), {"h1", "h3"})
        assert await found(etcd, store, revoked, gone) == ({"h3": "h3"}, {"h3"})
        assert {*etcd.passwords} == {"h2"}
        graves = [one.key for one in (await store.list("gone/"))[0]]
        assert graves == ["gone/hosts/h3"]
        assert {f"{one:x}" for one in serials} <= {*await etcd.vault.all(REVOKED, Revoked)}
        assert await found(etcd, store, revoked, gone) == ({}, {"h3"})  # nothing is left to do
        assert await found(etcd, store, set(), {"h4"}) == ({"h4": "h4"}, {"h3", "h4"})

    asyncio.run(run())


def test_a_host_that_came_back_under_its_id_keeps_its_records(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It was forgotten after the snapshot and has joined again with another key, which the snapshot does not have.

    Its user ends, so it must join once more: the restore names it there, and not among the hosts that departed.
    """
    etcd, store = Etcd(monkeypatch, tmp_path), MemoryStore(Memory())

    async def run() -> None:
        await etcd.token("a1")
        for host in ("h2", "h3"):
            await etcd.join(host, "a1", certificates.new_key())
            await store.transaction(of(host))
        joined, _ = await etcd.vault.get(HOSTS + "h3", JoinedHost)
        assert joined is not None
        serials = {int(one, 16) for one in joined.serials}
        known = {"h1", "h2", "h3"}
        assert await found(etcd, store, serials, set(), known) == ({}, {"h1", "h4"})
        assert (await store.list("gone/"))[0] == []
        assert {*etcd.passwords} == {"h2"}
        hosts = await etcd.vault.all(HOSTS, JoinedHost)
        voter = Voter("192.0.2.1")
        with contextlib.closing(EtcdService(tmp_path, "h1", voter)) as service:
            aim = Aim(
                etcd.files, service, voter, "h1", "h1", "", dict.fromkeys(sorted(known), "named"), frozenset(),
                lambda: None, etcd.files.url([voter.clients], "h1"), 3600,
            )  # fmt: skip
        assert restoration._again(aim, hosts, {}, b"authority") == {"h3": "named"}
        assert restoration._again(aim, hosts, {"h3"}, b"authority") == {}
        await etcd.token("a2")
        await etcd.join("h3", "a2", certificates.new_key())
        assert await found(etcd, store, set(), {"h3"}, known) == ({"h3": "h3"}, {"h1", "h3", "h4"})

    asyncio.run(run())


def test_nobody_departs_without_a_list(tmp_path: Path) -> None:
    """The voter never had one, or the disk has damaged it."""
    assert revoked_serials(tmp_path / "none") == set()
    (tmp_path / "list").write_bytes(b"damaged")
    assert revoked_serials(tmp_path / "list") == set()
