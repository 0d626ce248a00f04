"""When the watcher of a lesson looks again."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from linkspan.learn import watcher
from linkspan.learn.lesson import Check, numbered
from linkspan.learn.sandbox import Sandbox
from linkspan.learn.watcher import Judgement, Watcher, judge


class Changing(Sandbox):
    """A sandbox whose FORWARD policy is DROP until the probe is sent; all commands succeed."""

    policy = "DROP"

    def results(self, commands: Sequence[str]) -> list[tuple[int, str]]:
        """Return the policy for each command, and change it after the probe."""
        found = []
        for command in commands:
            self.policy = "ACCEPT" if command == "probe" else self.policy
            found.append((0, self.policy))
        return found


def test_what_is_to_stay_stays_while_the_probe_is_sent() -> None:
    """Otherwise a reader who lets everything pass a moment before the probe has solved a lesson about it."""
    lesson = numbered("case-1")
    changed = {"check": (), "wrong": (), "also": (), "reaches": "", "probe": "probe"}
    data = msgspec.structs.replace(lesson.data, **changed, keep=(Check("policy", has="DROP"),))
    judged = judge(Changing(0), msgspec.structs.replace(lesson, data=data))
    assert (judged.probe, judged.keeps, judged.passed) == (True, (False,), False)


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
