"""Services of etcd, which containers must not reach, while its list of members does not come."""

from __future__ import annotations

import asyncio

import pytest

from linkspan.core.errors import Unavailable
from linkspan.store.etcd import EtcdStore


def test_every_port_of_a_voter_is_known_without_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients', members' and the signer's; of an etcd that linkspan did not found, etcd's own ports."""

    async def found(url: str) -> tuple[str, ...]:
        store = EtcdStore(url)

        async def away(*_: object) -> None:
            raise Unavailable("etcd is away")

        monkeypatch.setattr(store.gateway, "ask", away)
        try:
            return await store.services()
        finally:
            await store.close()

    own = {f"192.0.2.1:{port}" for port in (5379, 5380, 5381, 2380)}
    assert set(asyncio.run(found("etcd://192.0.2.1:5379/linkspan"))) == own
    assert set(asyncio.run(found("etcd://192.0.2.1:2379/linkspan"))) == {"192.0.2.1:2379", "192.0.2.1:2380"}
