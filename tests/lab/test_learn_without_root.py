"""`linkspan learn` as a user who is nobody, and what such a user may not do to root's."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from linkspan.core.errors import NotFound
from linkspan.learn import needs, sandbox
from support.lab.reader import USER, any_process, as_nobody, nobody, state
from support.polling import until

__all__ = ["nobody", "state"]


PLAYED = """
import msgspec
from linkspan.learn import play
from linkspan.learn.lesson import numbered
print(msgspec.json.encode([play.play(numbered(str(number))) for number in range({first}, {last} + 1)]).decode())
"""


@pytest.mark.parametrize(("first", "last"), [(1, 8), (9, 15), (16, 23), (24, 33)])
def test_lessons_can_be_played_without_root(nobody: None, first: int, last: int) -> None:
    """In a user namespace; those that root cannot do here either say what they lack, and the one with a TAP device."""
    played = json.loads(as_nobody("-c", PLAYED.format(first=first, last=last)))
    assert [one["number"] for one in played] == list(range(first, last + 1))
    with sandbox.passing(f"test-root-{first}") as box:
        lacks = [one.what for one in needs.lacking(box, tuple(needs.NEEDS))] + ["/dev/net/tun"]
    for one in played:
        if why := one.get("unavailable"):
            assert any(what in why for what in lacks)
        else:
            assert (one["passed_by_solution"], one["passed_by_nothing"]) == (True, False)


def test_another_user_s_namespaces_are_never_entered(nobody: None, state: Path) -> None:
    """They are marked as root's sandbox, but nobody made them: root would run that user's programs."""
    name = str(state / "linkspan" / "learn")
    argv = [*USER, "unshare", "-Umnpfr", "--kill-child", "sleep", "600"]
    forger = subprocess.Popen(argv, env=os.environ | {sandbox.MARK: name})
    try:
        until(lambda: any_process(name), "the forged mark is there")
        until(lambda: Path(f"/proc/{forger.pid}/task/{forger.pid}/children").read_text(), "the namespaces are there")
        with pytest.raises(NotFound):
            sandbox.found(name)
        assert sandbox.end_all(name) == 0
    finally:
        forger.kill()
        forger.wait()


def test_the_programs_that_a_user_namespace_breaks_work(nobody: None) -> None:
    """Tcpdump sees a ping, and sudo is no obstacle."""
    code = (
        "from linkspan.learn import sandbox\n"
        "with sandbox.passing('nobody-tools') as box:\n"
        "    print(box.script('sudo timeout 20 tcpdump -c1 -ni lo icmp & '\n"
        "        'until ping -c1 -W1 127.0.0.1 >/dev/null; ! kill -0 $! 2>/dev/null; do :; done'))"
    )
    assert "ICMP echo request" in as_nobody("-c", code)
