"""Exams: the result file is another person's, and what a replay needs no sandbox to refuse."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import msgspec
import pytest

from linkspan.cli.lesson_session import helped
from linkspan.core.errors import Conflict, Denied, Invalid, LinkspanError, Unavailable
from linkspan.learn import exam, given_text, needs, play, replay, sandbox
from linkspan.learn import lesson as lesson_files
from linkspan.learn.exam import Result, Sat, Typed
from linkspan.learn.language import Words
from linkspan.learn.lesson import Lesson, numbered
from linkspan.learn.panel import News, Panel
from linkspan.learn.progress import Progress
from linkspan.learn.sandbox import ENTRY, FIELD, Sandbox
from linkspan.learn.watcher import Judgement
from support.command_line import linkspan

ONE = numbered("container")
SAT = Sat(4, "container", exam.version(ONE), 60.0, (Typed(1.5, 7, "ip netns"),))


def result(*lessons: Sat) -> Result:
    """Return an exam of 30 minutes."""
    return Result("Li Lei", exam.stamp(0), 30, (4,), 61.0, lessons)


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    """And nobody else may read it."""
    path = tmp_path / "exam.json"
    exam.write(path, result(SAT))
    assert exam.read(path) == result(SAT)
    assert path.stat().st_mode & 0o777 == 0o600
    assert result().begun == "1970-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b'"minutes": 30', b'"minutes": 0', "minutes"),
        (b'"minutes": 30', b'"hours": 30', "hours"),
        (b'"at": 1.5', b'"at": -1', "at"),
        (b'"at": 1.5', b'"at": 1e400', "at"),
        (b'"ip netns"', b'"' + b"x" * 20_001 + b'"', "line"),
        (b'"ip netns"', b"17", "line"),
        (b'"ip netns"', b'"a\\u0000b"', "line"),
        (b'"ip netns"', b'"\xff"', "no result of an exam"),
        (b"{", b"x{", "no result of an exam"),
        (b"{", b" " * 4_000_001 + b"{", "more than 4 MB"),
    ],
    ids=("no time", "unknown", "past", "infinite", "long line", "no line", "nul", "bytes", "no json", "long file"),
)
def test_a_damaged_result_is_refused_and_the_fault_named(tmp_path: Path, old: bytes, new: bytes, said: str) -> None:
    """The reader names what a student changed in it."""
    path = tmp_path / "exam.json"
    exam.write(path, result(SAT))
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    with pytest.raises(Invalid) as caught:
        exam.read(path)
    assert said in str(caught.value)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    """Nobody writes to a student's pipe, and a device never ends."""
    path = tmp_path / "exam.json"
    {"pipe": os.mkfifo, "folder": os.mkdir, "device": lambda one: os.symlink("/dev/zero", one)}[kind](path)
    with pytest.raises(LinkspanError, match=r"no regular file|is a directory"):
        exam.read(path)


@pytest.mark.parametrize("more", [b'{"more":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"[" * 100_000])
def test_a_result_of_any_depth_is_refused(tmp_path: Path, more: bytes) -> None:
    """Not by a traceback."""
    path = tmp_path / "exam.json"
    path.write_bytes(more)
    with pytest.raises(Invalid):
        exam.read(path)


def test_a_file_s_name_moves_no_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Students name the files: on stdout and on stderr."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    path = tmp_path / "\x1b]0;forged\x07.json"
    path.write_text("{}")
    done = linkspan("learn", "exam", "verify", "--trust", str(path))
    assert "forged" in done.stdout
    assert "forged" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def test_a_file_s_name_may_be_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It loses nothing of what other files' replays have found."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    path = tmp_path / (os.fsdecode(b"\xff") + "\u4e2d.json")
    exam.write(path, result(msgspec.structs.replace(SAT, passed_after=None, commands=())))
    done = linkspan("learn", "exam", "verify", "--trust", str(path), str(path) + "x", "-o", "json")
    found = json.loads(done.stdout)
    assert [one["file"].removeprefix(f"{tmp_path}/") for one in found] == ["\\xff\u4e2d.json", "\\xff\u4e2d.jsonx"]
    assert [bool(one["why"]) for one in found] == [False, True]


def test_a_result_that_is_not_there_is_named(tmp_path: Path) -> None:
    """Both ways."""
    with pytest.raises(Unavailable, match="cannot be read"):
        exam.read(tmp_path / "none")
    with pytest.raises(Unavailable, match="cannot be written"):
        exam.write(tmp_path / "none" / "exam.json", result())


class Logged(Sandbox):
    """A sandbox that has only a log."""

    def __init__(self, log: str) -> None:
        super().__init__(0)
        self._log = log

    def results(self, commands: Sequence[str]) -> list[tuple[int, str]]:
        """Return the log."""
        return [(0, self._log)]


def entry(at: str, shell: str = "7", line: str = "ip netns") -> str:
    """Return an entry as a shell writes it."""
    return f"{at}{FIELD}{shell}{FIELD}{line}{ENTRY}"


def test_a_line_that_cannot_be_read_loses_no_other_one() -> None:
    """One with the log's own marks, and what a program wrote there."""
    times, shells = ("x", "nan", "1e999", ""), ("-1", "9" * 99, "9" * 5000)
    nonsense = [*(entry(at) for at in times), *(entry("1", shell) for shell in shells)]
    log = entry("11.5") + "".join(nonsense) + entry("13.25", line=f"a{ENTRY}b{FIELD}c") + entry("12", line="a\0b")
    found = exam.commands(Logged(log), 10.0)
    assert found == (Typed(1.5, 7, "ip netns"), Typed(2.0, 7, "ab"), Typed(3.25, 7, "a"))


def test_whatever_was_typed_can_be_read_again(tmp_path: Path) -> None:
    """Long lines are cut, and all lessons have room in one file."""
    long = exam.commands(Logged(entry("1", line="x" * 30_000)), 0.0)
    assert [len(one.line) for one in long] == [20_000]
    many = exam.commands(Logged("".join(entry(str(at), line="\x01" * 20) for at in range(9000))), 0.0)
    assert len(many) > 400
    path = tmp_path / "exam.json"
    lessons = tuple(Sat(one.number, one.name, "0", 1.0, many) for one in lesson_files.lessons().values())
    exam.write(path, result(*lessons))
    assert exam.read(path) == result(*lessons)


def verified(path: Path, *lessons: Sat, minutes: int = 30) -> exam.Verification:
    """Verify a result file."""
    exam.write(path, result(*lessons))
    return exam.verify(path, minutes, trust=True)


@pytest.mark.parametrize(
    ("change", "replayed", "why"),
    [
        ({"passed_after": None, "commands": ()}, None, ""),
        ({"passed_after": None, "commands": (Typed(1.5, 7, "exit"),)}, None, ""),
        ({"name": "nothing"}, False, "no such lesson"),
        ({"number": 5}, False, "was not asked"),
        ({"version": "0"}, False, "another version"),
        ({"passed_after": 1801.0}, False, "after 1801 s, and the exam had 1800 s"),
    ],
)
def test_what_cannot_be_true_is_not_replayed(
    tmp_path: Path, change: dict[str, object], replayed: bool | None, why: str
) -> None:
    """Nor is a lesson that was not passed and has no lines."""
    found = verified(tmp_path / "exam.json", msgspec.structs.replace(SAT, **change)).lessons[0]
    assert found.verified is replayed
    assert why in found.why


def test_the_lessons_of_an_exam_share_its_time(tmp_path: Path) -> None:
    """Each within the time is not enough, and none counts twice; one that was not begun is named."""
    path = tmp_path / "exam.json"
    old = tuple(Sat(n, numbered(str(n)).name, "0", 1700.0) for n in (4, 5, 5, 6))
    exam.write(path, msgspec.structs.replace(result(*old), asked=(4, 5, 6, 7)))
    found = exam.verify(path, 30, trust=True)
    assert [one.why.partition(",")[0] for one in found.lessons] == [
        "it is another version of this lesson: verify with the version of linkspan that was used",
        "it was passed after 3400 s", "it was not asked", "it was passed after 6800 s", "it was not begun",
    ]  # fmt: skip
    assert [one.verified for one in found.lessons] == [False, False, False, False, None]


@pytest.mark.parametrize(("works", "replayed"), [((False, True), True), ((False, False), False), ((True,), True)])
def test_a_busy_machine_gets_a_second_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, works: tuple[bool, ...], replayed: bool
) -> None:
    """With more time for each line: only then an honest line that was late is told from one that does not end."""
    tries: list[int] = []
    waits: list[float] = []

    def lasting(_box: object, _lesson: object, seconds: float, _given: object) -> tuple[Judgement, bool]:
        waits.append(seconds)
        return Judgement((True,), (), True), True

    @contextlib.contextmanager
    def late(_box: object, _lines: object, _end: float, slower: int) -> Iterator[None]:
        tries.append(slower)
        if not works[len(tries) - 1]:
            raise LinkspanError("a command does not end")
        yield

    monkeypatch.setattr(sandbox, "passing", lambda *_, **_k: contextlib.nullcontext(Sandbox(0)))
    monkeypatch.setattr(needs, "lacking", lambda *_: [])
    monkeypatch.setattr(play, "begin", lambda *_: {})
    monkeypatch.setattr(given_text, "misleads", lambda *_: False)
    monkeypatch.setattr(play, "lasting", lasting)
    monkeypatch.setattr(replay, "typed", late)
    (found,) = verified(tmp_path / "exam.json", SAT).lessons
    assert (found.verified, tries) == (replayed, [slower for slower, _ in exam.TRIES][: len(works)])
    assert waits == [seconds for seconds, well in zip((5.0, 60.0), works, strict=False) if well]


@pytest.mark.timeout(30)
def test_a_replay_without_an_end_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while a pattern is searched; the sandbox ends, no second try follows, and other files do."""
    ended: list[bool] = []

    @contextlib.contextmanager
    def passing(*_: object, **_k: object) -> Iterator[Sandbox]:
        try:
            yield Sandbox(0)
        finally:
            ended.append(True)

    monkeypatch.setattr(sandbox, "passing", passing)
    monkeypatch.setattr(needs, "lacking", lambda *_: [])
    monkeypatch.setattr(play, "begin", lambda *_: {})
    monkeypatch.setattr(given_text, "misleads", lambda *_: False)
    monkeypatch.setattr(play, "lasting", lambda *_: re.search("(a|aa)+$", "a" * 99 + "b"))
    monkeypatch.setattr(replay, "typed", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(exam, "_SPARE", 0.5 - 3 * 30 * 60.0)
    before = signal.getsignal(signal.SIGALRM)
    found = verified(tmp_path / "exam.json", SAT)
    assert (found.why, found.lessons, ended) == ("its replay takes much longer than its exam", (), [True])
    assert (signal.getitimer(signal.ITIMER_REAL)[0], signal.getsignal(signal.SIGALRM)) == (0.0, before)


def test_a_replay_does_not_ask_for_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody reads the answer, and each question costs time."""
    asked: list[Lesson] = []

    def lasting(_box: object, lesson: Lesson, *_: object) -> tuple[Judgement, bool]:
        asked.append(lesson)
        return Judgement((True,), (), True), True

    monkeypatch.setattr(sandbox, "passing", lambda *_, **_k: contextlib.nullcontext(Sandbox(0)))
    monkeypatch.setattr(needs, "lacking", lambda *_: [])
    monkeypatch.setattr(play, "begin", lambda *_: {})
    monkeypatch.setattr(given_text, "misleads", lambda *_: False)
    monkeypatch.setattr(play, "lasting", lasting)
    monkeypatch.setattr(replay, "typed", lambda *_: contextlib.nullcontext())
    assert verified(tmp_path / "exam.json", SAT).lessons[0].verified
    assert [(one.data.check, one.data.wrong, one.data.also) for one in asked] == [(ONE.data.check, (), ())]


def test_a_machine_that_starts_no_program_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A result's programs may have used up this user's processes: the other files follow."""

    def passing(*_: object, **_k: object) -> NoReturn:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(sandbox, "passing", passing)
    found = verified(tmp_path / "exam.json", SAT)
    assert (found.well, found.why) == (False, "this machine cannot replay it: resource temporarily unavailable")


def test_an_exam_with_more_time_than_was_given_is_refused(tmp_path: Path) -> None:
    """The minutes in the file are the student's own."""
    found = verified(tmp_path / "exam.json", SAT, minutes=29)
    assert (found.why, found.lessons, found.well) == ("its exam had 30 minutes, and 29 were given", (), False)


def test_a_file_that_is_no_result_keeps_nobody_from_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a row, and the exit code says that not all is well."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    (tmp_path / "a.json").write_text("{}")
    exam.write(tmp_path / "b.json", result(msgspec.structs.replace(SAT, passed_after=None, commands=())))
    files = [str(tmp_path / name) for name in ("a.json", "none.json", "b.json")]
    done = linkspan("learn", "exam", "verify", "--trust", *files)
    assert done.returncode == 3
    assert "a.json" in done.stdout
    assert "cannot be read" in done.stdout
    assert "Li Lei" in done.stdout
    done = linkspan("learn", "exam", "verify", "--trust", *files, "-o", "json")
    assert [bool(one["why"]) for one in json.loads(done.stdout)] == [True, True, False]


def test_each_row_begins_with_the_file_s_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The student's name may be somebody else's, and may look like a row of its own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    forged = msgspec.structs.replace(SAT, passed_after=None, commands=())
    path = tmp_path / "a.json"
    who = "Li Lei  30       4      container  yes     yes\u3000x"
    exam.write(path, msgspec.structs.replace(result(forged), who=who))
    header, row = linkspan("learn", "exam", "verify", "--trust", str(path)).stdout.splitlines()
    assert header.split()[:2] == ["FILE", "WHO"]
    assert re.split(r" {2,}", row)[:2] == [str(path), "Li Lei 30 4 container yes yes x"]


def test_root_replays_nobody_s_commands_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read-only files do not keep root."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(Denied) as caught:
        exam.allowed(trust=False)
    assert "--trust" in caught.value.hint


def test_an_exam_helps_with_nothing(tmp_path: Path) -> None:
    """No reason, no answered mistake, no end with explanations; and no try is counted."""
    panel = Panel(ONE, Words("en"))
    shown = panel.introduction(exam=True)
    assert panel.part("task") in shown
    assert panel.part("why") not in shown
    now = [0.0]
    news = News(panel, ONE, lambda: now[0], exam=True)
    wrong = Judgement((True, False, False), (), None, wrong=(1,))
    assert len(news.of(wrong)) == 1
    now[0] = 60.0
    assert news.of(wrong) == []
    assert news.of(Judgement((True, True, True), (), True))[-1].startswith("Passed")
    kept = Progress(tmp_path)
    kept.sit("container")
    assert (kept.exam, kept.current, kept.entry("container").tries) == (True, "container", 0)
    with pytest.raises(Conflict, match="an exam is running"):
        helped(kept, Words("en"))
    kept.start("container")
    assert helped(kept, Words("en")) == ONE
