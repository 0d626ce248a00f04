"""Move of a host's own store into etcd: what is not read, what is not overwritten, and how much goes at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from linkspan.cluster.founding import store_move
from linkspan.cluster.founding.store_move import KEPT, batches, move, pending
from linkspan.cluster.founding.trust_files import TrustFiles, Voter
from linkspan.core.errors import Unavailable
from linkspan.core.store_contract import Record
from linkspan.store.factory import OWN
from linkspan.store.memory import Memory, MemoryStore
from linkspan.store.request import MOST_BYTES, MOST_KEYS, Request
from linkspan.store.sqlite import FILE, SqliteStore

VOTER = Voter("192.0.2.1")


@pytest.fixture
def etcd(monkeypatch: pytest.MonkeyPatch) -> Memory:
    """Give a memory in the place of etcd, for the records and for the vault."""
    memory = Memory()
    vault = Memory()
    monkeypatch.setattr(store_move, "EtcdStore", lambda _url, _cluster: MemoryStore(memory))
    monkeypatch.setattr("linkspan.store.vault.EtcdStore", lambda _url: MemoryStore(vault))
    return memory


def written(state_dir: Path, records: dict[str, bytes]) -> None:
    """Make a host's own store with records."""

    async def write() -> None:
        store = SqliteStore(state_dir / OWN)
        await store.transaction(records)
        await store.close()

    asyncio.run(write())


def test_a_store_that_cannot_be_read_is_not_taken_for_none(tmp_path: Path, etcd: Memory) -> None:
    """Nothing is moved, and nothing set aside, until somebody has mended it; without a store there is nothing to do."""
    files = TrustFiles(tmp_path)
    assert not pending(tmp_path)
    assert asyncio.run(move(files, VOTER)) == 0
    written(tmp_path, {"networks/demo": b"{}"})
    file = tmp_path / OWN / FILE
    sound = file.read_bytes()
    file.write_bytes(b"damaged" * 1000)
    assert pending(tmp_path)
    with pytest.raises(Unavailable, match="cannot be read, and its records are not in etcd yet"):
        asyncio.run(move(files, VOTER))
    assert not (tmp_path / KEPT).exists()
    file.write_bytes(sound)
    assert asyncio.run(move(files, VOTER)) == 1
    assert not pending(tmp_path)


def test_a_move_that_broke_off_goes_on_and_overwrites_nothing(tmp_path: Path, etcd: Memory) -> None:
    """A record that etcd has already stays as it is."""
    written(tmp_path, {"networks/a": b"old", "networks/b": b"old"})
    asyncio.run(MemoryStore(etcd).transaction({"networks/a": b"newer"}))
    asyncio.run(move(TrustFiles(tmp_path), VOTER))
    found, _ = asyncio.run(MemoryStore(etcd).list("networks/"))
    assert {one.key: one.value for one in found} == {"networks/a": b"newer", "networks/b": b"old"}


def test_batches_are_what_one_transaction_takes() -> None:
    """By the number of keys, and by bytes."""
    small = [Record(f"k/{number}", b"", number + 1) for number in range(2 * MOST_KEYS + 1)]
    large = [Record(f"l/{number}", b"x" * (MOST_BYTES // 3), number + 1) for number in range(7)]
    found = [*batches([*small, *large])]
    for batch in found:
        Request(batch, absent=[*batch]).check()
    assert {key: value for batch in found for key, value in batch.items()} == {r.key: r.value for r in (*small, *large)}
    assert not [*batches([])]
