"""`linkspan learn exam` as a student sits it and a teacher verifies it."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from linkspan.learn import exam
from linkspan.learn.lesson import numbered
from support.command_line import linkspan as typed
from support.lab.reader import Window, as_nobody, learn, nobody, state

__all__ = ["nobody", "state"]


def sat(folder: Path) -> Path:
    """Sit an exam of three lessons in a terminal: two are passed, one with a loop, a here-document, and ^C."""
    path = folder / "exam.json"
    window = Window("exam", "start", "1", "case-1", "3", "--who", "Li Lei", "--file", str(path))
    window.shows("30 minutes are left")
    window.shows("[exam 1] #")
    window.type("learn hint")
    window.shows("an exam is running")
    window.type("for n in A B; do")
    window.type("ip netns add netns_$n; done")
    window.type("cat > /run/learn/up <<END")
    window.type("link set lo up")
    window.type("END")
    window.type("ping 127.0.0.1 & ping 127.0.0.1")
    window.shows("icmp_seq=2")
    window.type("\x03")
    window.type("kill %1; N=netns_; ip -n ${N}A -batch /run/learn/up && ip -n ${N}B -batch /run/learn/up")
    window.shows("Passed:")
    window.type("next")
    window.shows("[exam 23] #")
    window.type("ip link set vethB up")
    window.shows("Passed:")
    window.type("next")
    window.shows("[exam 3] #")
    window.type("exit")
    window.shows("2 of 3 lessons passed")
    assert window.ends() == 0
    return path


def test_an_exam_is_sat_and_its_commands_lead_to_what_it_claims(state: Path) -> None:
    """It cannot be verified as root unasked, leaves nothing open, and is no try of a lesson."""
    path = sat(state)
    result = json.loads(path.read_text())
    assert [(one["number"], one["passed_after"] is not None) for one in result["lessons"]] == [
        (1, True), (23, True), (3, False),
    ]  # fmt: skip
    lines = [one["line"] for one in result["lessons"][0]["commands"]]
    assert "for n in A B; do\nip netns add netns_$n; done" in lines
    assert "cat > /run/learn/up <<END\nlink set lo up\nEND" in lines
    assert all(one["tries"] == 0 for one in json.loads(learn("report", "-o", "json"))["lessons"])
    assert typed("learn", "status").returncode == 1
    assert "--trust" in typed("learn", "exam", "verify", str(path)).stderr
    (found,) = json.loads(learn("exam", "verify", "--trust", str(path), "-o", "json"))
    assert [one["verified"] for one in found["lessons"]] == [True, True, None]
    assert (found["who"], found["asked"]) == ("Li Lei", [1, 23, 3])
    result["lessons"][1]["commands"] = []
    path.write_text(json.dumps(result))
    (found,) = json.loads(learn("exam", "verify", "--trust", str(path), "-o", "json", code=3))
    assert [one["verified"] for one in found["lessons"]] == [True, False, None]


def test_the_shell_ends_when_the_time_is_up(state: Path) -> None:
    """What was typed before is in the result."""
    code = (
        "import time; from linkspan.cli import exam; from linkspan.cli.lesson_session import reader; "
        "from linkspan.learn.lesson import numbered; one = numbered('namespaces'); "
        "print(exam._sit(one, *reader('en'), time.monotonic() + 12))"
    )
    window = Window("-c", code, main=(sys.executable,))
    window.shows("[exam 1] #")
    window.type("ip netns add netns_B; sleep 600")
    window.shows("The time is up")
    window.shows("line='ip netns add netns_B; sleep 600'")
    assert window.ends() == 0


HOSTILE = """
from linkspan.learn import sandbox
with sandbox.passing("hostile", closed=True) as box:
    for line in (
        "touch {folder}/x /etc/x /usr/x",
        "mount -o remount,rw,bind / && touch {folder}/x",
        "mkdir /run/m && mount --bind {folder} /run/m && mount -o remount,rw,bind /run/m && touch /run/m/x",
        "umount -l /tmp; find /tmp /home /root /dev/shm -mindepth 1 | grep .",
        "ip route add default dev lo && ip route get 192.0.2.1 && ls /run/docker.sock",
    ):
        assert box.results([line])[0][0], line
    assert box.results(["ip netns add x && sysctl -w net.ipv4.ip_forward=1 && touch /tmp/own"])[0][0] == 0
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Give a folder in which user nobody may write, and which no sandbox hides."""
    with tempfile.TemporaryDirectory(prefix="linkspan-exam-", dir="/var/lib") as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


def test_commands_of_others_change_and_see_no_files(nobody: None, open_folder: Path) -> None:
    """An ordinary user's are read-only for them, also if they are root of their namespaces; homes are hidden."""
    as_nobody("-c", HOSTILE.format(folder=open_folder))
    assert list(open_folder.iterdir()) == []


def test_a_teacher_without_root_verifies(nobody: None, open_folder: Path) -> None:
    """With the same result; a line that ends its shell or never ends keeps nobody from the next one."""
    lines = ("N=netns_A", "ip netns add $N", "cd /run; sleep 900", "exit 3", "{ exit; }", "ip netns add netns_B",
             "for n in A B; do ip -n netns_$n link set lo up; done")  # fmt: skip
    typed = tuple(exam.Typed(0.1 * at, 1, line) for at, line in enumerate(lines))
    one = exam.Sat(1, "namespaces", exam.version(numbered("1")), 9.0, typed)
    path = open_folder / "exam.json"
    exam.write(path, exam.Result("x", exam.stamp(0), 30, (1,), 9.0, (one,)))
    path.chmod(0o644)
    found = as_nobody("-m", "linkspan.cli.main", "learn", "exam", "verify", str(path), "-o", "json")
    assert [one["verified"] for one in json.loads(found)[0]["lessons"]] == [True]
