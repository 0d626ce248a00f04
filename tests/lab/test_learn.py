"""`linkspan learn` as a reader types it: in one window and in two, killed, and as a user who is nobody."""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from linkspan.core.errors import Denied
from linkspan.learn import needs, sandbox
from linkspan.learn.lesson import numbered
from linkspan.learn.needs import Need
from linkspan.learn.progress import Progress
from linkspan.learn.sandbox import Sandbox
from support.command_line import linkspan as typed
from support.lab.reader import MAIN, SOURCE, Window, any_process, inside, learn, state
from support.polling import until

__all__ = ["state"]


def test_a_lesson_in_a_second_window(state: Path) -> None:
    """It is begun, looked at, helped with, done by hand, explained, and left without a trace."""
    assert "netns_A" in learn("start", "4")
    found = json.loads(learn("status", "-o", "json"))
    assert (found["number"], found["passed"], [one["ok"] for one in found["checks"]]) == (4, False, [False] * 3)
    assert [learn("hint").split(":")[0] for _ in range(4)] == ["Hint 1", "Hint 2", "Hint 3", "Hint 3"]
    assert "ip link set vethpA netns netns_A" in learn("solution")
    assert "no link besides lo" in learn("explain")
    typed("learn", "answer")
    inside(state, numbered("container").data.wrong[0].attempt)
    assert "Not it: " in learn("status")
    inside(state, "ip -n netns_A link set eth0 up")
    until(lambda: json.loads(learn("status", "-o", "json"))["passed"], "the lesson is passed")
    assert "The packet arrives" in learn("explain")
    assert "Answer" in learn("answer")
    listed = {one["number"]: one for one in json.loads(learn("list", "-o", "json"))}
    assert (listed[4]["name"], listed[4]["state"], listed[5]["state"]) == ("container", "passed", "new")
    report = json.loads(learn("report", "-o", "json"))
    told = report["lessons"][3]
    assert report["who"] == getpass.getuser()
    assert json.loads(learn("report", "--who", "Li Lei", "-o", "json"))["who"] == "Li Lei"
    assert (told["tries"], told["hints"], told["solution_seen"], told["state"]) == (1, 3, True, "passed")
    assert json.loads(learn("reset", "-o", "json")) == {"removed": 1}
    assert json.loads(learn("reset", "-o", "json")) == {"removed": 0}
    assert typed("learn", "status").returncode == 1


def test_a_broken_network_is_explained_after_a_try(state: Path) -> None:
    """Looking is no try, changing a setting is one, and the reason is told at the end."""
    shown = learn("start", "case-1")
    assert "Why" not in shown
    inside(state, "ip netns exec netns_A ping -c1 -W0.5 172.18.0.3 || ip -n netns_B link")
    assert "try first" in typed("learn", "explain").stderr
    inside(state, "ip -n netns_B link set eth0 mtu 1400")
    assert "link vethB in host is down" in learn("explain")
    inside(state, "ip -n netns_B link set eth0 mtu 1500; ip link set vethB up")
    until(lambda: json.loads(learn("status", "-o", "json"))["passed"], "the lesson is passed")
    assert "The packet arrives" in learn("explain")
    learn("reset")


def test_the_list_says_which_lessons_cannot_start(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what they need; a lesson that is passed stays passed."""
    monkeypatch.setitem(needs.NEEDS, "bird", Need("false", "`birdc`", "apt install bird2"))
    Progress(state / "linkspan" / "learn").spend("bgp", 1.0, passed=True)
    lacks = {one["number"]: one["lacks"] for one in json.loads(learn("list", "-o", "json"))}
    assert (lacks[1], lacks[20], lacks[32]) == ([], ["bird"], ["bird"])
    said = learn("list", "--lang", "zh")
    assert re.search("第 20、32 课需要 `birdc`.apt install bird2", said)
    rows = {line.split()[0]: line for line in said.splitlines() if line}
    assert ["无法开始" in rows[number] for number in ("1", "20", "32")] == [False, False, True]


def test_the_list_says_that_no_sandbox_can_be_made(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can tell then what the lessons lack."""

    def make(name: str, **_: bool) -> Sandbox:
        raise Denied("this machine makes no sandbox: no", "use sudo")

    monkeypatch.setattr(sandbox, "make", make)
    assert {one["lacks"] for one in json.loads(learn("list", "-o", "json"))} == {None}
    said = learn("list", "--lang", "zh")
    assert said.count("无法开始") == 34
    assert re.search("所有课程都无法开始.这台机器无法创建沙箱.no.请用 sudo\n$", said)


def test_chinese_is_kept_until_another_language_is_asked_for(state: Path) -> None:
    """Texts, steps and tables."""
    assert "网络命名空间" in learn("start", "1", "--lang", "zh")
    assert "检查" not in learn("status")
    assert "提示 1" in learn("hint")
    assert "标题" in learn("list")
    assert "Hint 2" in learn("hint", "--lang", "en")
    learn("reset")


def test_the_language_of_the_locale_is_kept_for_the_sandbox(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sandbox's own locale is C, and `learn hint` speaks as the lesson did."""
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    learn("start", "1")
    inside(state, f"learn hint > {state}/hint")
    assert "提示 1" in (state / "hint").read_text(encoding="utf-8")
    learn("reset")


def test_play_and_check_answer_in_json(state: Path, tmp_path: Path) -> None:
    """As the contract says."""
    assert json.loads(learn("play", "1", "-o", "json")) == [
        {"number": 1, "passed_by_solution": True, "passed_by_nothing": False}
    ]
    folder = tmp_path / "09-own"
    folder.mkdir()
    source = SOURCE / "linkspan" / "learn" / "lessons" / "01-namespaces"
    for file in source.iterdir():
        text = file.read_text(encoding="utf-8")
        (folder / file.name).write_text(text.replace("ip -n netns_A link set lo up", "true"), encoding="utf-8")
    found = json.loads(learn("check", str(folder), "-o", "json", code=3))
    assert found["lesson"] == "09-own"
    assert found["problems"] == ["solution 1 does not pass: check 3"]


def test_the_first_lesson_in_one_window(state: Path) -> None:
    """The window says above the prompt what is achieved, a half-typed line stays, and `next` goes on."""
    window = Window()
    window.shows("Lesson 1:")
    window.shows("[learn 1] #")
    window.type("sudo ip netns add netns_A && ip netns add netns_B")
    window.shows("`netns_A` exists")
    window.shows("lo` is still down")
    window.type("learn hint")
    window.shows("Hint 1")
    window.type("for n in A B; do ip -n netns_$n link set lo up; done")
    window.shows("Passed:")
    window.shows("[learn 1] #")
    window.type("learn answer")
    window.shows("Answer")
    window.type("next")
    window.shows("Lesson 2:")
    window.shows("[learn 2] #")
    window.type("exit")
    window.shows("The sandbox is gone")
    assert window.ends() == 0
    listed = json.loads(learn("list", "-o", "json"))
    assert [one["state"] for one in listed[:3]] == ["passed", "started", "new"]


@pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")
def test_two_panes_end_with_a_killed_learn(state: Path) -> None:
    """The sandbox, both panes, and tmux itself."""
    window = Window("start", "1", "--split")
    window.shows("[learn 1] #")
    os.kill(window.pid, signal.SIGKILL)
    until(lambda: not any_process(str(state / "linkspan" / "learn")), "all processes of the sandbox have ended")
    window.ends()


@pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")
def test_a_lesson_in_two_panes(state: Path) -> None:
    """The upper one says what is achieved in the lower one; both end together, and nothing is left."""
    window = Window("start", "1", "--split")
    window.shows("[learn 1] #")
    window.type("ip netns add netns_A")
    window.shows("✓")
    window.type("exit")
    window.shows("The sandbox is gone")
    assert window.ends() == 0
    assert not any_process(str(state / "linkspan" / "learn"))


@pytest.mark.parametrize(
    ("language", "look", "said"),
    [
        ("en", "gone(['ls'])", "watches no longer: the sandbox"),
        ("zh", "gone(['ls'])", "不再观察"),
        ("en", "str(1 // 0)", "watches no longer: integer division"),
    ],
)
def test_a_reader_is_told_that_nobody_watches_any_more(language: str, look: str, said: str) -> None:
    """Whatever the watcher fails of; the shell goes on."""
    code = (
        "import os; from linkspan.cli.lesson_session import unwatched; from linkspan.learn import sandbox, terminal; "
        f"from linkspan.learn.language import Words; words = Words('{language}'); "
        "gone = sandbox.Sandbox(2**30).results; "
        f"terminal.run(['sh'], os.environ, lambda: {look}, 0.1, lambda error: unwatched(error, words))"
    )
    window = Window("-c", code, main=(sys.executable,))
    window.shows(said)
    window.type("exit")
    assert window.ends() == 0


def test_a_line_that_is_being_typed_is_shown_again_below_the_message(state: Path) -> None:
    """It is not lost, and runs as typed."""
    window = Window("start", "1")
    window.shows("[learn 1] #")
    os.write(window._fd, b"echo ha''lf")
    inside(state, "ip netns add netns_A")
    window.shows("`netns_A` exists")
    window.shows("echo ha''lf")
    window.type("-done")
    window.shows("\rhalf-done")
    window.type("exit")
    assert window.ends() == 0


def test_a_line_that_is_typed_too_early_runs(state: Path) -> None:
    """The sandbox is being made then, which takes a moment."""
    window = Window("start", "1")
    window.shows("making the sandbox")
    window.type("echo ear''ly")
    window.shows("early\r")
    window.type("exit")
    assert window.ends() == 0


@pytest.mark.parametrize("moment", ["at once", "at the prompt", "at work", "in an exam"])
def test_a_killed_learn_leaves_nothing(state: Path, moment: str) -> None:
    """The sandbox ends with it, even before `learn reset`, and the next lesson has its hints again."""
    name = str(state / "linkspan" / "learn")
    exam = moment == "in an exam"
    window = Window("exam", "start", "6", "--file", str(state / "exam.json")) if exam else Window("start", "6")
    if moment != "at once":
        window.shows("[exam 6] #" if exam else "[learn 6] #")
    else:
        until(lambda: any_process(name), "the sandbox is being made")
    if moment == "at work":
        window.type("ip netns exec netns_A setsid sleep 600 & ping 172.18.0.2")
        window.shows("icmp_seq=1")
        until(lambda: json.loads(learn("report", "-o", "json"))["lessons"][5]["seconds"] > 0, "the time is kept")
    os.kill(window.pid, signal.SIGKILL)
    window.ends()
    until(lambda: not any_process(name), "all processes of the sandbox have ended")
    learn("reset")
    assert "no lesson is open" in typed("learn", "hint").stderr


def test_a_learn_without_a_terminal_that_is_killed_leaves_nothing(state: Path) -> None:
    """Its sandbox outlives it only once the lesson has begun."""
    name = str(state / "linkspan" / "learn")
    started = subprocess.Popen([*MAIN, "start", "6"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    until(lambda: any_process(name), "the sandbox is being made")
    started.kill()
    started.wait()
    until(lambda: not any_process(name), "all processes of the sandbox have ended")


def test_of_two_that_start_at_once_the_later_one_has_the_only_sandbox(state: Path) -> None:
    """The open lesson is the one whose sandbox is there."""
    name = str(state / "linkspan" / "learn")
    both = [subprocess.Popen([*MAIN, "start", number], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
            for number in ("1", "4")]  # fmt: skip
    for one in both:
        one.communicate()
    assert len(sandbox._marked(name)) == 1
    found = json.loads(learn("status", "-o", "json"))
    there = sandbox.found(name).results(["ip link show mybr0"])[0][0] == 0
    assert there == (found["number"] == 4)
    assert json.loads(learn("reset", "-o", "json")) == {"removed": 1}


def test_a_reset_needs_no_progress_that_can_be_read(state: Path) -> None:
    """It removes the sandbox, says what is wrong with the file, and forgets it if it is asked to."""
    learn("start", "1")
    path = state / "linkspan" / "learn" / "progress.json"
    path.write_text(path.read_text()[:-40])
    failed = typed("learn", "reset")
    assert failed.returncode == 1
    assert "progress.json cannot be read" in failed.stderr
    assert not any_process(str(path.parent))
    learn("reset", "--forget")
    assert not path.exists()
    learn("list")
