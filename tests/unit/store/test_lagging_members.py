"""Members of an etcd that answer, and apply nothing any more: the upkeep compares what they have applied."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from linkspan.store import upkeep
from linkspan.store.etcd_status import EtcdStatus, MemberStatus
from linkspan.store.memory import Memory
from linkspan.store.upkeep import Upkeep
from support.records.replicas import Member, together


class Members:
    """What an etcd of two members tells: the second one has applied nothing since the beginning."""

    def __init__(self) -> None:
        self.applied = 100

    async def status(self, _quota_age: float) -> EtcdStatus:
        """Return their status."""
        members = (("a", self.applied), ("b", 100))
        return EtcdStatus(1.0, tuple(MemberStatus(name, name, applied=index) for name, index in members))


def test_a_member_that_applies_nothing_for_a_while_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before others have applied more for LAGGING seconds: two answers never come at one moment."""

    async def work() -> None:
        one, etcd, at = Member(Memory(), tmp_path, "h1"), Members(), 1000.0
        monkeypatch.setattr(upkeep, "now", lambda: at)
        kept = Upkeep(one.replica, cast(Any, etcd), "h1", "compact", lambda _what: None, lambda _verb: None)

        async def lagging() -> list[str]:
            return [each.name for each in (await kept.asked()).members if each.lags]

        assert await lagging() == []
        etcd.applied = 150
        at += upkeep.LAGGING
        assert await lagging() == []
        at += upkeep.LAGGING - 1
        assert await lagging() == []
        at += 1
        assert await lagging() == ["b"]
        assert await lagging() == ["b"]

    together(work)
