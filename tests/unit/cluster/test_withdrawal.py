"""Withdrawal: a silent host gives up its networks once, says so, and comes back after contact."""

from __future__ import annotations

from pathlib import Path

import pytest

from linkspan.cluster import liveness
from linkspan.cluster.liveness import Liveness
from linkspan.cluster.withdrawal import Withdrawal
from linkspan.store.contact import STALE
from support.records.peer_stage import PeerStage

PROMISE = 60.0


def test_a_silent_host_withdraws_once_and_comes_back_after_contact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between half of the promised time and its end it gives no address, and has not withdrawn."""
    at = 1000.0
    monkeypatch.setattr(liveness, "now", lambda: at)
    stage, clock = PeerStage(tmp_path, 1), Liveness(tmp_path, STALE, lambda _host: PROMISE)
    part = Withdrawal(stage.hosts, clock, stage.peers, stage.event_log)
    clock.spoke("h1", at)
    part.begin()
    assert (stage.peers.withdrawn, part.look(), part.problem) == (False, False, "")
    at += PROMISE / 2
    assert (part.look(), part.problem.partition(":")[0]) == (False, "it gives no address")
    at += PROMISE / 2
    assert part.look()
    assert not part.look()
    assert (stage.peers.withdrawn, part.problem.partition(":")[0]) == (True, "it has withdrawn from its networks")
    clock.spoke("h1", at)
    assert part.look()
    assert (stage.peers.withdrawn, part.problem) == (False, "")
    assert [event.what for event in stage.event_log.kept("lease")] == [
        "host h1 withdraws from all networks that cross hosts",
        "host h1 is back in its networks",
    ]


def test_an_agent_that_starts_after_a_long_silence_has_withdrawn_from_the_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is no news: it follows no peer before the store has answered."""
    monkeypatch.setattr(liveness, "now", lambda: 1000.0)
    stage, clock = PeerStage(tmp_path, 1), Liveness(tmp_path, STALE, lambda _host: PROMISE)
    part = Withdrawal(stage.hosts, clock, stage.peers, stage.event_log)
    part.begin()
    assert (stage.peers.withdrawn, part.look(), stage.event_log.kept("lease")) == (True, False, [])
