"""`linkspan learn exam` as a student sits it and a teacher verifies it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from linkspan.learn import closed_calls, exam
from linkspan.learn.lesson import numbered
from support.command_line import linkspan as typed
from support.lab.reader import (
    NOBODY,
    READS,
    SOURCE,
    USER,
    Window,
    any_process,
    as_nobody,
    learn,
    nobody,
    state,
)
from support.polling import SHARED, until

__all__ = ["nobody", "state"]


def sat(folder: Path) -> Path:
    """Sit an exam of three lessons in a terminal: two are passed, one with a loop, a here-document, and ^C."""
    path = folder / "exam.json"
    window = Window("exam", "start", "1", "case-1", "3", "--who", "Li Lei", "--file", str(path))
    window.shows("30 minutes are left")
    window.shows("Do not delete namespaces")
    window.shows("lines of a shell in NAME")
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
    """The result has all that was typed before, also if looking fails, and while another process has the lock."""
    code = (
        "from linkspan.learn.watcher import Watcher; Watcher.look = lambda self: 1 / 0; "
        "from linkspan.cli import exam; from linkspan.cli.lesson_session import reader; "
        "from linkspan.learn.exam import now; from linkspan.learn.lesson import numbered; "
        "print(exam._sit(numbered('namespaces'), *reader('en'), now() + 12))"
    )
    window = Window("-c", code, main=(sys.executable,))
    window.shows("[exam 1] #")
    window.type("ip netns add netns_B; sleep 600")
    with (state / "linkspan" / "learn" / "sandbox.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        window.shows("The time is up")
    window.shows("line='ip netns add netns_B; sleep 600'")
    assert window.ends() == 0
    assert json.loads((state / "linkspan" / "learn" / "progress.json").read_text())["current"] == ""


CLOCKS = """
import sys, time
from pathlib import Path
from linkspan.cli import exam
from linkspan.cli.lesson_session import reader
from linkspan.learn import exam as results
from linkspan.learn.lesson import numbered

began, wall, slept = time.monotonic(), time.time, Path(sys.argv[1])
real, running = results.now, time.monotonic
time.monotonic = lambda: began + (running() - began) / 10
time.time = lambda: wall() + 100 * (running() - began)
results.now = lambda: real() + (500 if slept.exists() else 0)
begun = results.now()
found = exam._sit(numbered("namespaces"), *reader("en"), begun + 480)[1]
print("after its lines:", found.passed_after is not None and found.passed_after >= found.commands[1].at > 5)
time.monotonic = running
result = results.Result("x", "", 8, (1,), 0.0, (found,))
print("replayed:", [one.verified for one in results._lessons(result, closed=False)])
"""
"""Sits an exam of 480 s: one clock of this process stands still for the most part, as it does while a laptop sleeps,
and another one is set all the time. When a file exists, the machine has slept 500 s.
"""


def test_a_lesson_is_passed_after_its_lines(state: Path) -> None:
    """Also if a clock of this process stands still; it is passed in time."""
    window = Window("-c", CLOCKS, str(state / "slept"), main=(sys.executable,))
    window.shows("[exam 1] #")
    window.type("sleep 5; echo sl''ept")
    window.shows("slept")
    window.type("for n in A B; do ip netns add netns_$n; ip -n netns_$n link set lo up; done")
    window.shows("Passed:")
    window.type("exit")
    window.shows("after its lines: True")
    window.shows("replayed: [True]")
    assert window.ends() == 0


def test_an_exam_ends_while_its_machine_sleeps(state: Path) -> None:
    """Work after that would not be in time."""
    window = Window("-c", CLOCKS, str(state / "slept"), main=(sys.executable,))
    window.shows("[exam 1] #")
    (state / "slept").touch()
    window.shows("The time is up", 10 * SHARED)
    window.shows("after its lines: False")
    assert window.ends() == 0


HOSTILE = """
from linkspan.learn import sandbox
fails = "python3 -c 'import ctypes, errno, sys; c = ctypes.CDLL(None, use_errno=True); " \
    "found = c.syscall(*map(int, sys.argv[2:])), errno.errorcode.get(ctypes.get_errno()); " \
    "print(found); sys.exit(found != (-1, sys.argv[1]))'"
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
        "umount -l /proc; for p in /proc/[0-9]*; do true >>$p/mem && cat $p/status; done | grep -x 'NSpid:.[0-9]*'",
        "test $(readlink /proc/self/ns/ipc) = {ipc}",
        "echo >/dev/tty",
        "cat /proc/[0-9]*/environ | grep -z '^[P]ATH=.*/opt/own'",
    ):
        assert box.results([line])[0][0], line
    assert box.results(["ps -e | wc -l"])[0][1] < "9"
with sandbox.passing("hostile", closed=True) as box:
    for line in (
        "hostname of-the-sandbox",
        "ip netns add x && sysctl -w net.ipv4.ip_forward=1 && touch /tmp/own /var/lib/misc/own",
        "echo >/dev/null && head -c1 /dev/urandom && test -L /var/run && ls /var/run/netns/x",
        "python3 -c 'import os; os.openpty()'",
        "echo key > ~/own && grep key /tmp/own",
        f"{{fails}} ENOSYS {keyctl} 0 -3 1",
        f"{{fails}} ENOSYS 425 1 0",
        f"{{fails}} EAFNOSUPPORT {create} 40 1 0",
        f"{{fails}} EAFNOSUPPORT {create} 42 2 0",
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
    nobody: None,
    open_folder: Path,
    listening: socket.socket,
    terminal: tuple[int, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An ordinary user's, also if they are root of their namespaces and take off what the sandbox mounted.

    Files are read-only, homes are hidden, and there are no sockets, terminals, processes and keys of the machine.
    """
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:/opt/own")
    shows, path = terminal
    mark = f"inkspan-exam-{os.getpid()}"
    beside = subprocess.Popen([*USER, "sh", "-c", "read line", f"l{mark}"], stdin=subprocess.PIPE)
    try:
        name, ipc = listening.getsockname(), os.readlink("/proc/self/ns/ipc")
        numbers = closed_calls.NUMBERS[os.uname().machine][1]
        given = {"folder": open_folder, "socket": name, "terminal": path, "mark": mark, "ipc": ipc}
        given |= {"keyctl": numbers[closed_calls.KEYCTL], "create": numbers[closed_calls.SOCKET]}
        as_nobody("-c", HOSTILE.format_map(given))
    finally:
        beside.communicate()
    assert list(open_folder.iterdir()) == []
    with pytest.raises(BlockingIOError):
        listening.accept()
    with pytest.raises(BlockingIOError):
        os.read(shows, 1)


def test_a_teacher_without_root_verifies(nobody: None, open_folder: Path) -> None:
    """With the same result; a line that ends its shell or never ends keeps nobody from the next one.

    Some programs ignore ^C; the shell that they were started in stays, with its variables.
    """
    pager = "sh -c \"trap '' INT QUIT; sleep 900\""
    lines = ("N=netns_A", pager, "ip netns add $N", "cd /run; sleep 900", "exit 3", "{ exit; }", "ip netns add netns_B",
             "for n in A B; do ip -n netns_$n link set lo up; done")  # fmt: skip
    typed = tuple(exam.Typed(0.1 * at, 1, line) for at, line in enumerate(lines))
    one = exam.Sat(1, "namespaces", exam.version(numbered("1")), 9.0, typed)
    path = open_folder / "exam.json"
    exam.write(path, exam.Result("x", exam.stamp(0), 30, (1,), 9.0, (one,)))
    path.chmod(0o644)
    found = as_nobody("-m", "linkspan.cli.main", "learn", "exam", "verify", str(path), "-o", "json")
    assert [one["verified"] for one in json.loads(found)[0]["lessons"]] == [True]


def claimed(number: str, *lines: tuple[float, int, str], after: float = 9.0) -> exam.Sat:
    """Return a lesson that these lines (time, shell, text) are said to have passed."""
    one = numbered(number)
    typed_ = tuple(exam.Typed(at, shell, line) for at, shell, line in lines)
    return exam.Sat(one.number, one.name, exam.version(one), after, typed_)


def replayed(folder: Path, sat: exam.Sat, settles: float = exam.TRIES[1][1]) -> dict[str, object]:
    """Verify a lesson as user nobody; return what became of it.

    ``settles``: the seconds for its state in the second try.
    """
    path = folder / "exam.json"
    exam.write(path, exam.Result("x", exam.stamp(0), 30, (sat.number,), 60.0, (sat,)))
    path.chmod(0o644)
    code = (
        "from pathlib import Path; import sys, msgspec; from linkspan.learn import exam; "
        f"exam.TRIES = (exam.TRIES[0], (exam.TRIES[1][0], {settles})); "
        "print(msgspec.json.encode(exam.verify(Path(sys.argv[1]), 30).lessons[0]).decode())"
    )
    return dict(json.loads(as_nobody("-c", code, str(path))))


def test_a_state_that_the_kernel_delays_passes(nobody: None, open_folder: Path) -> None:
    """An exam waits for a neighbour entry as long as it takes."""
    late = "(sleep 15; for n in A B; do ip netns add netns_$n; ip -n netns_$n link set lo up; done) &"
    assert replayed(open_folder, claimed("1", (0.0, 1, late), after=20.0))["verified"] is True


FORGED = (
    r"""printf '#!/bin/bash\ncase "$*" in *link*) echo "1: lo: <UP>";; *) echo netns_A; echo netns_B;; esac\n'"""
)
NAMES = "for n in A B; do ip netns add netns_$n; done"
TRICKS = {
    "a wrapper": ("1", f"cd /run/learn/bin; {FORGED} > ip; chmod 755 ip"),
    "another program": ("1", f"{FORGED} > /run/ip; chmod 755 /run/ip; mount --bind /run/ip $(command -v ip)"),
    "a state that comes and goes": (
        "1",
        NAMES,
        "while :; do for s in up down; do ip -n netns_A link set lo $s; ip -n netns_B link set lo $s; done; done &",
    ),
}
"""By what they do: a lesson, and lines that do not solve it."""


RENAMED = {
    "two names of one namespace": (
        "case-5",
        "umount /run/netns/netns_B; mount --bind /run/netns/netns_A /run/netns/netns_B",
        "ip -n netns_A addr add 172.18.0.3/16 dev eth0; ip -n netns_A link set lo up",
    ),
    "names of the host": (
        "1",
        "for n in A B; do touch /run/netns/netns_$n; mount --bind /proc/self/ns/net /run/netns/netns_$n; done",
    ),
    "a new namespace": (
        "case-8",
        "cd /run/netns; touch old; mount --bind netns_C old; umount netns_C; rm netns_C; ip netns add netns_C",
        "ip -n netns_C link add eth0 type veth peer name x; ip -n netns_C addr add 172.18.7.7/16 dev eth0",
        "mac=$(ip -n netns_B -o link show eth0 | grep -o 'link/ether [^ ]*' | cut -d' ' -f2)",
        "ip -n netns_A neigh replace 172.18.0.3 lladdr $mac dev eth0 nud permanent; rm /run/learn/namespaces",
    ),
}
"""By what they do: a lesson, and lines that give a name to another namespace."""


@pytest.mark.parametrize("trick", RENAMED)
def test_a_name_of_another_namespace_solves_nothing(nobody: None, open_folder: Path, trick: str) -> None:
    """A container that pings itself does what the probe asks."""
    number, *lines = RENAMED[trick]
    one = claimed(number, *((0.2 * at, 1, line) for at, line in enumerate(lines)))
    found = replayed(open_folder, one, settles=5.0)
    assert (found["verified"], str(found["why"])[:45]) == (False, "its commands delete or replace namespaces, or")


NAMED = {
    "an alias": (
        "33",
        "bridge fdb del 02:00:00:00:00:02 dev vxlan0 dst 198.51.100.2; ip addr del 198.51.100.1/24 dev wire",
        "ip link set wire alias 'vxlan id 42 '; ip route replace 172.18.2.0/24 via 192.0.2.2",
    ),
    "a peer's name": (
        "2",
        "ip link add mybr0 type veth peer name bridge; ip link set bridge up; ip link set mybr0 up alias bridge",
        "ip addr add 172.18.0.1/16 dev mybr0",
    ),
    "a comment": (
        "7",
        "iptables -P FORWARD ACCEPT; iptables -A FORWARD -m comment --comment $'x\\n-P FORWARD DROP'",
    ),
}
"""By what they do: a lesson, and lines whose text looks like what a check wants."""


@pytest.mark.parametrize("trick", NAMED)
def test_a_state_is_not_what_its_names_say(nobody: None, open_folder: Path, trick: str) -> None:
    """Aliases, names and comments are the student's."""
    number, *lines = NAMED[trick]
    one = claimed(number, *((0.2 * at, 1, line) for at, line in enumerate(lines)))
    assert replayed(open_folder, one, settles=5.0)["verified"] is not True


@pytest.mark.parametrize("trick", TRICKS)
def test_a_replay_is_not_fooled(nobody: None, open_folder: Path, trick: str) -> None:
    """It looks with the machine's own programs, which the replayed lines do not see, and twice."""
    number, *lines = TRICKS[trick]
    one = claimed(number, *((0.2 * at, 1, line) for at, line in enumerate(lines)))
    found = replayed(open_folder, one, settles=5.0)
    assert found["verified"] is False, found
    whys = r"its commands (do not pass it: (check .*|the probe)|pass it, and that does not last)"
    assert re.fullmatch(whys, str(found["why"]))


FOOLED = """
import sys
from linkspan.learn import play, sandbox
from linkspan.learn.beside import Beside
from linkspan.learn.lesson import numbered
from linkspan.learn.watcher import judge
one = numbered(sys.argv[1])
with sandbox.passing("fooled", closed=True) as box:
    play.begin(box, one)
    for line in sys.argv[2:]:
        assert box.script(line)[0] == 0
    assert judge(box, one).passed
    print(judge(Beside(box), one).checks)
"""


@pytest.mark.parametrize("trick", ["a wrapper", "another program"])
def test_what_looks_from_inside_is_fooled(nobody: None, trick: str) -> None:
    """By the same lines: so they would be, if verify looked there."""
    assert "True" not in as_nobody("-c", FOOLED, *TRICKS[trick])


def test_each_window_goes_on_while_another_one_works(nobody: None, open_folder: Path) -> None:
    """A server in a window of its own is ended by ^C only when that window gets a line, and not at the end."""
    waits = "until test -e /run/netns/netns_A; do sleep 0.1; done; ip netns add netns_B; sleep 900"
    lines = (
        (0.0, 7, waits),
        (0.5, 8, "ip netns add netns_A; ip -n netns_A link set lo up"),
        (2.5, 7, "ip -n netns_B link set lo up; exec sleep 900"),
    )
    assert replayed(open_folder, claimed("1", *lines, after=3.0))["verified"] is True


UNSEEN = """
from linkspan.learn import sandbox
from linkspan.learn.beside import Beside
sees = "sleep 0.5; ps -ef | grep [s]leep.1.731; umount -l /proc; umount -l /proc; cat /proc/[0-9]*/environ"
with sandbox.passing("unseen", closed=True) as box:
    box.script(f"mount -t proc proc /proc; ({sees}) >/run/seen 2>&1 &")
    assert Beside(box).results(["SEEN=mark sleep 1.731"]) == [(0, "")]
    assert box.results(["grep -ac -e SEEN=mark -e 'sleep 1.731' /run/seen"])[0][1] == "0", box.script("cat /run/seen")
"""


def test_what_looks_at_others_commands_is_out_of_their_reach(nobody: None) -> None:
    """They see no process of it, and may not read or change one that they find by the /proc below theirs."""
    as_nobody("-c", UNSEEN)


SLIPPED = """
from linkspan.learn import sandbox
from linkspan.learn.beside import Beside
with sandbox.passing("slipped", closed=True) as box:
    looks = Beside(box)
    assert looks.results(["ip netns; ping -c1 -W1 127.0.0.1; nft list ruleset"])[0][0] == 0
    for line in (
        "umount -l /opt; find {folder} | grep secret",
        "umount -l /home || umount -l /tmp",
        "mount -o remount,rw,bind /; touch {folder}/x /etc/x",
        "umount -l /dev/pts; umount -l /dev; ls /dev/kmsg /dev/sda",
        "chroot / true",
    ):
        assert looks.results([line])[0][0], line
"""


def test_a_command_beside_a_sandbox_cannot_uncover_this_machine(nobody: None) -> None:
    """If lines of others ever run there: what is covered is locked for them, and they lack capabilities."""
    covered = tempfile.mkdtemp(prefix="linkspan-exam-", dir="/opt")
    try:
        Path(covered, "secret").touch()
        Path(covered).chmod(0o777)
        as_nobody("-c", SLIPPED.format(folder=covered))
        assert [one.name for one in Path(covered).iterdir()] == ["secret"]
    finally:
        Path(covered, "secret").unlink()
        Path(covered).rmdir()


BOUNDED = """
from linkspan.learn import closed_files, sandbox
from linkspan.learn.beside import Beside
with sandbox.passing("bounded", closed=True) as box:
    box.script("for one in /run /tmp; do head -c 500000000 /dev/zero > $one/full || true; done")
    size = box.results(["cat /run/full /tmp/full | wc -c"])[0][1]
    assert int(size) < 200_000_000, size
    box.script("rm /run/full /tmp/full")
    assert "SECRET" not in box.results(["env"])[0][1]
    forks = "python3 -c 'import os, time; [os.fork() or time.sleep(60) for _ in range(2000)]' >/dev/null 2>&1 &"
    box.script(forks)
    looks = Beside(box)
    (code, count), (alive, _) = looks.results(["sleep 1; ps -e | wc -l", "ping -c1 -W1 127.0.0.1"])
    assert (code, alive) == (0, 0)
    assert int(count) < closed_files.PROCESSES + 60, count
    code, said = box.script("yes >&2")
    assert code and len(said) <= 70_000_000
    own = "cd /run; cp $(command -v sh) own; printf '#!/run/own\\necho $(readlink /proc/$$/fd/1) >/run/prints\\n' >fake"
    assert box.script(f"{own}; chmod 755 fake; mount --bind fake $(readlink -f $(command -v sh))") == (0, "")
    box.write("/run/line", "")
    assert Beside(box).results(["cat /run/prints"]) == [(0, "/dev/null")]
"""


def test_commands_of_others_take_a_bounded_part_of_the_machine(
    nobody: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of its files, of its processes, and nothing of the teacher's environment; and what looks at them still works."""
    monkeypatch.setenv("SECRET", "key")
    as_nobody("-c", BOUNDED)


def test_a_killed_verification_leaves_nothing(nobody: None, open_folder: Path) -> None:
    """Neither the sandbox nor what was typed in it, at whichever moment it is killed, and whatever was typed."""
    word = f"900.{os.getpid()}"
    path = open_folder / "exam.json"
    keeps = "echo x >/run/learn/left; kill -STOP $(pgrep -x head)"
    one = claimed("1", (0.0, 1, f"{keeps}; setsid sleep {word} & sleep {word}"))
    exam.write(path, exam.Result("x", exam.stamp(0), 30, (1,), 60.0, (one,)))
    path.chmod(0o644)
    argv = [*READS, sys.executable, "-m", "linkspan.cli.main", "learn", "exam", "verify", str(path)]
    env = os.environ | {"PYTHONPATH": str(SOURCE), "HOME": "/", "XDG_STATE_HOME": "/nonexistent"}
    moments: tuple[Callable[[int], object], ...] = (lambda pid: any_process(f"play-{pid}"), lambda _: running(word))
    for moment in moments:
        verifying = subprocess.Popen(argv, env=env, cwd="/", stderr=subprocess.DEVNULL)
        until(lambda: moment(verifying.pid), "it has come to the moment")  # noqa: B023 - called in this turn only
        verifying.kill()
        verifying.wait()
        until(lambda: not any_process(f"play-{verifying.pid}"), "the sandbox has ended")  # noqa: B023 - as above
        until(lambda: not running(word), "what was typed has ended")


def test_a_stopped_command_ends_with_its_verification(nobody: None, open_folder: Path) -> None:
    """A line may stop the program that enters the sandbox for the next one."""
    path = open_folder / "exam.json"
    stops = "cd /run/learn/bin; printf '#!/bin/bash\\nkill -STOP 0\\n' >sh; chmod 755 sh"
    one = claimed("1", (0.0, 1, stops), (0.5, 1, "true"))
    exam.write(path, exam.Result("x", exam.stamp(0), 30, (1,), 60.0, (one,)))
    path.chmod(0o644)
    argv = [*READS, sys.executable, "-m", "linkspan.cli.main", "learn", "exam", "verify", str(path)]
    env = os.environ | {"PYTHONPATH": str(SOURCE), "HOME": "/", "XDG_STATE_HOME": "/nonexistent"}
    verifying = subprocess.Popen(argv, env=env, cwd="/", stderr=subprocess.DEVNULL)
    until(lambda: stopped(verifying.pid), "a program that enters the sandbox is stopped")
    pids = stopped(verifying.pid)
    verifying.kill()
    verifying.wait()
    until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in pids), "it has ended")


def stopped(parent: int) -> list[str]:
    """Return the pids of a process's children that are stopped."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [pid for pid in children if "State:\tT" in Path(f"/proc/{pid}/status").read_text()]


def running(word: str) -> bool:
    """Return whether a program has this word."""
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdigit() and word.encode() in (process / "cmdline").read_bytes().split(b"\0"):
                return True
    return False
