"""Departed hosts: what a snapshot has of hosts that were forgotten or removed since is taken out of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from linkspan.cluster.founding import certificates
from linkspan.cluster.founding.departed_hosts import forget_again, revoked_serials
from linkspan.cluster.founding.signer import HOSTS, REVOKED, JoinedHost, Revoked
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


async def found(etcd: Etcd, store: MemoryStore, revoked: set[int], gone: set[str]) -> tuple[dict[str, str], set[str]]:
    """Return the departed hosts, and the hosts of which no record is left."""
    departed = await forget_again(etcd.vault, store, "h1", revoked, gone)
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


def test_nobody_departs_without_a_list(tmp_path: Path) -> None:
    """The voter never had one, or the disk has damaged it."""
    assert revoked_serials(tmp_path / "none") == set()
    (tmp_path / "list").write_bytes(b"damaged")
    assert revoked_serials(tmp_path / "list") == set()
