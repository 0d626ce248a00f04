"""Lessons that need a kernel with IPIP, WireGuard and IPsec: every way through them, and what `explain` says."""

from __future__ import annotations

import os
import re

import pytest

from linkspan.learn import needs, play, sandbox
from linkspan.learn.lesson import numbered
from linkspan.learn.watcher import judge

CLEAN = """
for link in ipip0 far wg0 secret ipsec0; do ip link delete $link 2>/dev/null || true; done
ip -n router route flush root 172.18.0.0/16
ip route flush root 172.18.3.0/24
ip xfrm state deleteall
ip xfrm policy deleteall
ip netns exec host3 sh -c 'for peer in $(wg show wg0 peers 2>/dev/null); do wg set wg0 peer $peer remove; done'
"""
"""Takes back what solutions and wrong answers have done."""


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give commands more time: a fork costs much inside."""
    monkeypatch.setattr(sandbox, "PATIENCE", 300.0)
    monkeypatch.setattr(play, "_SETTLED", 30.0)


@pytest.mark.parametrize("name", ["ipip", "wireguard", "ipsec"])
def test_a_lesson_for_this_kernel_is_played_in_every_way(name: str) -> None:
    """One way after the other in one sandbox, because its beginning takes half a minute; `explain` sees the mistake."""
    one = numbered(name)
    with sandbox.passing(f"test-kernel-{os.getpid()}") as box:
        assert needs.lacking(box, one.data.needs) == []
        play.begin(box, one)
        for number, wrong in enumerate(one.data.wrong, 1):
            box.script(wrong.attempt)
            judged = judge(box, one)
            assert (number in judged.wrong, judged.passed) == (True, False), (number, judged)
            if wrong.finds:  # each explanation takes some seconds inside
                assert re.search(wrong.finds, play.explained(box, one).finding)
            box.script(CLEAN)
        for number, solution in enumerate(one.data.solutions, 1):
            assert not judge(box, one).passed
            code, output = box.script(solution)
            assert code == 0, output
            judged = play.settled(box, one)
            assert judged.passed, play.told(judged)
            if number == 1:
                assert play.explained(box, one).arrives
            box.script(CLEAN)
