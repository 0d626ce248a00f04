"""`linkspan learn exam` as a student sits it and a teacher verifies it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from linkspan.learn import exam
from linkspan.learn.lesson import numbered
from support.command_line import linkspan as typed
from support.lab.reader import NOBODY, USER, Window, as_nobody, learn, nobody, state

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
    window.shows("[exam 24] #")
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
        (1, True), (24, True), (3, False),
    ]  # fmt: skip
    lines = [one["line"] for one in result["lessons"][0]["commands"]]
    assert "for n in A B; do\nip netns add netns_$n; done" in lines
    assert "cat > /run/learn/up <<END\nlink set lo up\nEND" in lines
    assert all(one["tries"] == 0 for one in json.loads(learn("report", "-o", "json"))["lessons"])
    assert typed("learn", "status").returncode == 1
    assert "--trust" in typed("learn", "exam", "verify", str(path)).stderr
    (found,) = json.loads(learn("exam", "verify", "--trust", str(path), "-o", "json"))
    assert [one["verified"] for one in found["lessons"]] == [True, True, None]
    assert (found["who"], found["asked"]) == ("Li Lei", [1, 24, 3])
    result["lessons"][1]["commands"] = []
    path.write_text(json.dumps(result))
    (found,) = json.loads(learn("exam", "verify", "--trust", str(path), "-o", "json", code=3))
    assert [one["verified"] for one in found["lessons"]] == [True, False, None]


def test_what_the_last_line_does_counts(state: Path) -> None:
    """Also if `next` follows at once, in another locale, and with nonsense in the log; a lost claim is found again."""
    path = state / "exam.json"
    window = Window("exam", "start", "1", "--file", str(path))
    window.shows("[exam 1] #")
    window.type("export LC_ALL=de_DE.UTF-8; printf 'x\\036' >> /run/learn/typed")
    window.type("for n in A B; do ip netns add netns_$n; ip -n netns_$n link set lo up; done; next")
    window.shows("1 of 1 lessons passed")
    assert window.ends() == 0
    result = json.loads(path.read_text())
    result["lessons"][0]["passed_after"] = None
    path.write_text(json.dumps(result))
    (found,) = json.loads(learn("exam", "verify", "--trust", str(path), "-o", "json"))
    assert [(one["passed"], one["verified"]) for one in found["lessons"]] == [(False, True)]


def test_the_shell_ends_when_the_time_is_up(state: Path) -> None:
    """The result has all that was typed before, also if looking fails."""
    code = (
        "from linkspan.learn.watcher import Watcher; Watcher.look = lambda self: 1 / 0; "
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
call = "python3 -c 'import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])'"
with sandbox.passing("hostile", closed=True) as box:
    for line in (
        "touch {folder}/x /etc/x /usr/x",
        "mount -o remount,rw,bind / && touch {folder}/x",
        "mkdir /run/m && mount --bind {folder} /run/m && mount -o remount,rw,bind /run/m && touch /run/m/x",
        f"umount -l /run; umount -l /run; {{call}} {socket}",
        f"{{call}} {socket}",
        f"umount -l /var; {{call}} /var{socket}",
        "echo forged > {terminal}",
        "umount -l /dev/pts; umount -l /dev; echo forged > {terminal}",
        "umount -l /tmp; find /tmp /home /root /dev/shm /var/lib -type f | grep .",
        "ls /dev/kmsg /dev/sda /dev/mqueue /dev/log",
        "umount -l /proc; umount -l /proc; cat /proc/[0-9]*/cmdline | grep -z '[l]{mark}'",
        "test $(readlink /proc/self/ns/ipc) = {ipc}",
        "echo >/dev/tty",
    ):
        assert box.results([line])[0][0], line
    assert box.results(["ps -e | wc -l"])[0][1] < "9"
with sandbox.passing("hostile", closed=True) as box:
    for line in (
        "ip netns add x && sysctl -w net.ipv4.ip_forward=1 && touch /tmp/own /var/lib/misc/own",
        "echo >/dev/null && head -c1 /dev/urandom && test -L /var/run && ls /var/run/netns/x",
        "python3 -c 'import os; os.openpty()'",
    ):
        assert box.results([line])[0][0] == 0, (line, box.results([line]))
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Give a folder in which user nobody may write, and which no sandbox hides."""
    with tempfile.TemporaryDirectory(prefix="linkspan-exam-", dir="/usr/local") as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    """Give a socket in /run that everybody may connect to."""
    made = tempfile.TemporaryDirectory(prefix="linkspan-exam-", dir="/run")
    with made as folder, socket.socket(socket.AF_UNIX) as one:
        Path(folder).chmod(0o755)
        one.bind(f"{folder}/bus")
        Path(folder, "bus").chmod(0o777)
        one.listen()
        one.setblocking(False)
        yield one


@pytest.fixture
def terminal() -> Iterator[tuple[int, str]]:
    """Give a terminal of user nobody: the descriptor of what it would show, and its path."""
    shows, writes = os.openpty()
    os.set_blocking(shows, False)
    os.fchown(writes, NOBODY, -1)
    yield shows, os.ttyname(writes)
    os.close(shows)
    os.close(writes)


def test_commands_of_others_change_and_reach_nothing(
    nobody: None, open_folder: Path, listening: socket.socket, terminal: tuple[int, str]
) -> None:
    """An ordinary user's, also if they are root of their namespaces and take off what the sandbox mounted.

    Files are read-only, homes are hidden, and there are no sockets, terminals and processes of the machine.
    """
    shows, path = terminal
    mark = f"inkspan-exam-{os.getpid()}"
    beside = subprocess.Popen([*USER, "sh", "-c", "read line", f"l{mark}"], stdin=subprocess.PIPE)
    try:
        name, ipc = listening.getsockname(), os.readlink("/proc/self/ns/ipc")
        as_nobody("-c", HOSTILE.format(folder=open_folder, socket=name, terminal=path, mark=mark, ipc=ipc))
    finally:
        beside.communicate()
    assert list(open_folder.iterdir()) == []
    with pytest.raises(BlockingIOError):
        listening.accept()
    with pytest.raises(BlockingIOError):
        os.read(shows, 1)


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
