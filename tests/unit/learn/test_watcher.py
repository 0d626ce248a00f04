"""When the watcher of a lesson looks again."""

from __future__ import annotations

import pytest

from linkspan.learn import watcher
from linkspan.learn.lesson import numbered
from linkspan.learn.sandbox import Sandbox
from linkspan.learn.watcher import Judgement, Watcher


def test_a_change_is_judged_again_until_old_neighbour_entries_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader who has repaired a network is told so, though a wrong MAC was remembered; then it is quiet."""
    monkeypatch.setattr(watcher, "_state", lambda _box, _lesson: "the same")
    monkeypatch.setattr(watcher, "judge", lambda _box, _lesson: Judgement((), (), None))
    now = [0.0]
    looking = Watcher(Sandbox(0), numbered("case-1"), lambda: now[0])
    judged = []
    for second in range(200):
        now[0] = float(second)
        judged += [second] if looking.look() else []
    assert judged[0] == 0
    assert 55 <= judged[-1] < 70
    assert len(judged) < 10
