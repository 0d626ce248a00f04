"""Pages of a listing from an etcd whose large answers do not come in time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from linkspan.core.errors import Unavailable
from linkspan.store import etcd_page_size
from linkspan.store.etcd import EtcdStore
from linkspan.store.etcd_wire import Done, KeyValue, Range, Txn
from support.records.replicas import together

KEYS = [f"k{number:02}".encode() for number in range(30)]


class SlowLink:
    """An etcd with KEYS whose answers with more than ``most`` records do not come in time."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.asked: list[int] = []

    async def first(self, _conditions: object, operations: list[dict[str, Any]]) -> tuple[Txn, bool]:
        """Answer a transaction, which is about one range."""
        return Txn(responses=(Done(await self.ask("", operations[0]["request_range"], Range)),)), False

    async def ask(self, _path: str, body: dict[str, Any], _kind: type[Range]) -> Range:
        """Answer about a range of keys."""
        limit = body["limit"]
        self.asked.append(limit)
        if limit > self.most:
            await asyncio.sleep(0.1)
            raise Unavailable("store etcd: no answer")
        left = [key for key in KEYS if body["key"] <= key < body["range_end"]]
        return Range(kvs=tuple(KeyValue(key) for key in left[:limit]), more=len(left) > limit)


def _store(link: SlowLink, monkeypatch: pytest.MonkeyPatch) -> EtcdStore:
    for name, value in {"SMALLEST": 1, "PAGE": 4, "LARGEST": 16, "PROMPT": 0.05}.items():
        monkeypatch.setattr(etcd_page_size, name, value)
    store = EtcdStore("etcd://192.0.2.1:2379/c")
    monkeypatch.setattr(store._guard, "carry_out", link.first)
    monkeypatch.setattr(store.gateway, "ask", link.ask)
    return store


def test_a_large_page_that_does_not_come_is_asked_for_again_as_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records that follow may be larger than the first ones: the listing goes on, in small pages to its end."""

    async def work() -> None:
        link = SlowLink(most=4)
        store = _store(link, monkeypatch)
        pages = [page async for page, _ in store._pages([{"key": b"k", "range_end": b"l"}])]
        assert [each.key for page in pages for each in page.kvs] == KEYS
        assert link.asked == [4, 16, *[4] * 7]
        await store.close()

    together(work)


def test_very_large_records_are_asked_for_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the first page. As many as came in time are asked for from then on, and not those that did not."""

    async def work() -> None:
        link = SlowLink(most=2)
        store = _store(link, monkeypatch)
        pages = [page async for page, _ in store._pages([{"key": b"k", "range_end": b"l"}])]
        assert [each.key for page in pages for each in page.kvs] == KEYS
        assert link.asked == [4, *[1] * 30]
        await store.close()

    together(work)


def test_a_listing_ends_if_small_pages_do_not_come_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each size is tried once."""

    async def work() -> None:
        link = SlowLink(most=4)
        store = _store(link, monkeypatch)
        pages = store._pages([{"key": b"k", "range_end": b"l"}])
        await anext(pages)
        link.most = 0
        with pytest.raises(Unavailable):
            await anext(pages)
        assert link.asked == [4, 16, 4, 1]
        await store.close()

    together(work)
