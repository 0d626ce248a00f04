"""Lessons that need a kernel with IPIP and WireGuard: both solutions pass, and doing nothing does not."""

from __future__ import annotations

import os

import pytest

from linkspan.learn import needs, play, sandbox
from linkspan.learn.lesson import numbered
from linkspan.learn.watcher import judge


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give commands more time: a fork costs much inside."""
    monkeypatch.setattr(sandbox, "PATIENCE", 300.0)
    monkeypatch.setattr(play, "_SETTLED", 30.0)


@pytest.mark.parametrize(("name", "undo"), [("ipip", "ip link delete ipip0"), ("wireguard", "ip link delete wg0")])
def test_a_lesson_for_this_kernel_is_solved(name: str, undo: str) -> None:
    """One solution after the other in one sandbox, because its beginning takes half a minute."""
    one = numbered(name)
    with sandbox.passing(f"test-kernel-{os.getpid()}") as box:
        assert needs.lacking(box, one.data.needs) == []
        play.begin(box, one)
        for solution in one.data.solutions:
            assert not judge(box, one).passed
            code, output = box.script(solution)
            assert code == 0, output
            judged = play.settled(box, one)
            assert judged.passed, play.told(judged)
            box.script(undo)
