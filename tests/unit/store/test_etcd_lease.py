"""Standing lease of a connection to etcd: all standing records are tied to one lease."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from linkspan.store.etcd import EtcdStore
from linkspan.store.etcd_errors import Refused
from linkspan.store.etcd_wire import Grant, Header, Json, Txn


def test_a_put_that_was_late_forgets_no_lease_but_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lease ended while a member hung; another put has made a new one, and no record may have a third."""
    granted: list[str] = []
    ended: set[str] = set()
    leases: dict[str, str] = {}

    async def work() -> None:
        store, answering = EtcdStore("etcd://192.0.2.1:2379/c"), asyncio.Event()

        async def grant(*_: object) -> Grant:
            granted.append(str(len(granted) + 1))
            return Grant(granted[-1], 3)

        async def carry_out(_if: Sequence[Json], do: Sequence[Json], _seconds: float) -> tuple[Txn, bool]:
            put = do[0]["request_put"]
            assert isinstance(put, dict)
            key, lease = put["key"].decode(), put["lease"]
            if "egress" in key:
                await answering.wait()
            if lease in ended:
                raise Refused("requested lease not found", "", 5)
            leases[key] = lease
            return Txn(Header("1", 1, 1), succeeded=True), False

        monkeypatch.setattr(store.gateway, "ask", grant)
        monkeypatch.setattr(store._guard, "carry_out", carry_out)
        await store.transaction({"alive/h1": b"1"}, standing=True)
        late = asyncio.create_task(store.transaction({"alive/(egress)/4/192.0.2.9": b"h1"}, standing=True))
        await asyncio.sleep(0)
        ended.add("1")
        await store.transaction({"alive/h1": b"1"}, standing=True)
        answering.set()
        await late
        await store.close()

    asyncio.run(work())
    assert granted == ["1", "2"]
    assert set(leases.values()) == {"2"}
