"""Members: which hosts are voters, as etcd says it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from linkspan.agent.members import members
from linkspan.cluster.founding import quorum
from linkspan.cluster.founding.quorum import Voters
from linkspan.core.errors import Unavailable
from linkspan.store.etcd import EtcdStore
from linkspan.store.etcd_gateway import Gateway
from linkspan.store.memory import Memory
from support.fake_voters import member
from support.records.replicas import Member as Replicas

PLACE = "192.0.2.1:5379"


def test_nobody_is_called_a_client_while_etcd_names_no_members(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A voter answers and has a leader, and its list is missing: a demotion would take that for its success."""
    told = Voters((), (PLACE,), {PLACE: True})

    async def look(_gateway: Gateway) -> Voters:
        return told

    monkeypatch.setattr(quorum, "look", look)

    async def run() -> None:
        nonlocal told
        store, hosts = EtcdStore(f"etcd://{PLACE}/linkspan"), Replicas(Memory(), tmp_path, "1").hosts
        with pytest.raises(Unavailable, match="no voter says who etcd's members are"):
            await members(store, hosts, own=True)
        told = Voters((), (PLACE,), {PLACE: False})
        with pytest.raises(Unavailable, match="the voters have no leader"):
            await members(store, hosts, own=True)
        told = Voters((member("1"),), (PLACE,), {PLACE: True})
        assert [(one.id, one.role) for one in await members(store, hosts, own=True)] == [("1", "voter")]
        await store.close()

    asyncio.run(run())
