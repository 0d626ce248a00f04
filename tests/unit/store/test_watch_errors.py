"""A watch that ends with an error: the changes that came before it are not lost."""

from __future__ import annotations

from typing import Any

import pytest

from linkspan.core.errors import Unavailable
from linkspan.store.etcd import EtcdStore
from linkspan.store.etcd_watch import QUIET_SECONDS, Place
from linkspan.store.etcd_wire import Txn
from support.records.replicas import together

CHANGE = b'{"result":{"events":[{"kv":{"key":"YS94","value":"e30=","mod_revision":"7"}}]}}'


class Ended:
    """A stream that brings these lines at once."""

    received = 0

    def __init__(self, *lines: bytes) -> None:
        self.lines = list(lines)

    async def next(self) -> bytes:
        """Return the next line."""
        return self.lines.pop(0)

    def waiting(self) -> list[bytes]:
        """Return those behind it."""
        left, self.lines = self.lines, []
        return left

    def close(self) -> None:
        """Do nothing."""


@pytest.mark.parametrize("last", [b'{"error":{"message":"no leader"}}', b"<html>"])
def test_changes_before_an_error_of_the_same_reading_count(monkeypatch: pytest.MonkeyPatch, last: bytes) -> None:
    """They need not be sent again: the watch begins after them."""

    async def work() -> None:
        store, place = EtcdStore("etcd://192.0.2.1:2379/c"), Place("/c/", 0)

        async def stream(*_request: Any) -> Ended:
            return Ended(CHANGE, last, CHANGE.replace(b'"7"', b'"8"'))

        async def guarded(*_request: Any) -> tuple[Txn, bool]:
            return Txn(), False

        monkeypatch.setattr(store._guard, "carry_out", guarded)
        monkeypatch.setattr(store.gateway, "stream", stream)
        changes = store._watch.follow(place, QUIET_SECONDS)
        batch = await anext(changes)
        assert [(record.value, record.revision) for record in batch.puts] == [(b"{}", 7)]
        with pytest.raises(Unavailable):
            await anext(changes)
        assert place.revision == 7
        await store.close()

    together(work)
