"""Lessons that need a kernel with IPIP, WireGuard and IPsec: both solutions pass, and doing nothing does not."""

from __future__ import annotations

import os
import re

import pytest

from linkspan.learn import needs, play, sandbox
from linkspan.learn.lesson import numbered
from linkspan.learn.watcher import judge

SETTLED = 30.0
"""Seconds in which a solution must pass."""


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give commands more time: a fork costs much inside."""
    monkeypatch.setattr(sandbox, "PATIENCE", 300.0)


@pytest.mark.parametrize(
    ("name", "undo", "seen", "mistake"),
    [
        ("ipip", "ip link delete ipip0", "1480 fit through ipip0", ""),
        ("wireguard", "ip link delete wg0", "1420 fit through wg0", ""),
        (
            "ipsec",
            "ip xfrm state deleteall; ip xfrm policy deleteall; ip route flush root 172.18.3.0/24",
            "",
            "ip xfrm policy delete src 172.18.3.0/24 dst 172.18.1.0/24 dir fwd",
        ),
    ],
)
def test_a_lesson_for_this_kernel_is_solved_and_explained(name: str, undo: str, seen: str, mistake: str) -> None:
    """One solution after the other in one sandbox, because its beginning takes half a minute.

    After the first one, `explain` follows the packet there and back, and has ``seen`` what fits through the tunnel; or
    ``mistake`` makes the first wrong answer of it: that is recognised, and `explain` finds it.
    """
    one = numbered(name)
    with sandbox.passing(f"test-kernel-{os.getpid()}") as box:
        assert needs.lacking(box, one.data.needs) == []
        play.begin(box, one)
        for number, solution in enumerate(one.data.solutions, 1):
            assert not judge(box, one).passed
            code, output = box.script(solution)
            assert code == 0, output
            judged = play.settled(box, one, SETTLED)
            assert judged.passed, play.told(judged)
            if number == 1 and seen:
                found = play.explained(box, one)
                assert found.arrives, found.finding
                assert seen in found.finding
            if number == 1 and mistake:
                box.script(mistake)
                judged = judge(box, one)
                assert (judged.wrong, judged.passed) == ((1,), False)
                assert re.search(one.data.wrong[0].finds, play.explained(box, one).finding)
            box.script(undo)
