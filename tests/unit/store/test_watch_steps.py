"""Steps that a watch makes of changes of one key that come together."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from linkspan.core.store_contract import Batch
from linkspan.store.etcd import EtcdStore
from linkspan.store.etcd_errors import Refused
from linkspan.store.etcd_watch import Place, _steps
from linkspan.store.etcd_wire import Done, Event, KeyValue, Range, Txn
from linkspan.store.memory import Memory
from linkspan.store.records import BlockRecord
from support.records.replicas import Member, together

BLOCK = "blocks/demo/10.244.0.0/24"


def events(*changes: tuple[int, str, bytes | None]) -> list[Event]:
    """Return events of (revision, key, value), None for a deletion."""
    prefix = EtcdStore("etcd://192.0.2.1:2379/c").url.prefix
    return [
        Event(KeyValue(f"{prefix}{key}".encode(), value or b"", at), "DELETE" if value is None else "PUT")
        for at, key, value in changes
    ]


def batches(*changes: tuple[int, str, bytes | None]) -> list[Batch]:
    """Return the batches that a watch yields for changes that are read together."""
    watch = EtcdStore("etcd://192.0.2.1:2379/c")._watch
    return [watch._batch(step) for step in _steps(events(*changes))]


def test_a_key_that_changes_often_is_told_once() -> None:
    """The last value counts, and a record that came and went is gone."""
    (one,) = batches((1, "a", b"1"), (2, "b", b"1"), (3, "a", b"2"), (4, "b", None))
    assert [(record.key, record.value) for record in one.puts] == [("a", b"2")]
    assert one.deletes == ("b",)


def test_a_key_that_is_put_again_after_its_deletion_is_told_twice() -> None:
    """A revision stays whole."""
    one, two = batches((1, "a", None), (2, "b", b"1"), (3, "c", b"1"), (3, "a", b"2"))
    assert (one.deletes, [record.key for record in one.puts]) == (("a",), ["b"])
    assert (two.deletes, [record.key for record in two.puts]) == ((), ["c", "a"])


def test_a_block_that_was_freed_and_claimed_at_once_is_no_conflict(tmp_path: Path) -> None:
    """A network was deleted and created again, and another host was the first one there: its claim stays."""

    async def work() -> None:
        one = Member(Memory(), tmp_path, "h1")
        await one.replica.start()
        ours, theirs = (msgspec.json.encode(BlockRecord(host, 1.0)) for host in ("h1", "h2"))
        changes = [(1, BLOCK, ours), (2, BLOCK, None), (2, f"gone/{BLOCK}", b"{}")]
        for batch in batches(*changes, (3, BLOCK, theirs), (3, f"gone/{BLOCK}", None)):
            await one.replica._take(batch)
        assert one.replica.records[BLOCK].value == theirs
        assert one.replica.displaced == {}
        await one.replica.stop()

    together(work)


@pytest.mark.parametrize(("compacted", "questions"), [(0, 1), (5, 2), (6, 3), (9, 4)])
def test_changes_that_were_compacted_cost_few_questions(
    monkeypatch: pytest.MonkeyPatch, compacted: int, questions: int
) -> None:
    """When etcd is back all hosts ask at once whether it is the same one; what is left of the last eight shows it."""
    watch = EtcdStore("etcd://192.0.2.1:2379/c")._watch
    asked: list[list[int]] = []
    place = Place("/c/", 0)
    place.saw(events(*((number, f"k{number}", b"x") for number in range(1, 9))))

    async def answer(_path: str, body: dict[str, list[dict[str, dict[str, str]]]], _kind: object) -> Txn:
        revisions = [int(one["request_range"]["revision"]) for one in body["success"]]
        asked.append(revisions)
        if min(revisions) < compacted:
            raise Refused("required revision has been compacted", "", 11)
        return Txn(responses=tuple(Done(Range(kvs=(KeyValue(b"", b"", at),))) for at in revisions))

    monkeypatch.setattr(watch._gateway, "ask", answer)
    asyncio.run(watch._require_seen(place))
    assert len(asked) == questions
