"""When the snapshot is written: after changes of records that it has."""

from __future__ import annotations

from pathlib import Path

import pytest

from linkspan.core.model import Host
from linkspan.store.memory import Memory
from linkspan.store.snapshot import Snapshot
from support.records.replicas import Member, together


def test_liveness_and_containers_cause_no_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They change all the time in a large cluster, and no snapshot has them."""

    async def work() -> None:
        one = Member(Memory(), tmp_path, "h1")
        await one.replica.start()
        await one.replica.accepted()
        noted: list[str] = []
        monkeypatch.setattr(Snapshot, "note", lambda _self: noted.append("due"))
        await one.replica.write({"alive/h2": b"h2", "endpoints/h1/c1/eth0": b"{}"})
        await one.replica.write({}, deletes=["endpoints/h1/c1/eth0"])
        assert noted == []
        await one.replica.write({"hosts/h2": Host(id="h2", name="h2")})
        assert noted == ["due"]
        await one.replica.stop()

    together(work)
