"""Exams: the result file is another person's, and what a replay needs no sandbox to refuse."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from linkspan.cli.lesson_session import helped
from linkspan.core.errors import Conflict, Denied, Invalid, Unavailable
from linkspan.learn import exam
from linkspan.learn.exam import Result, Sat, Typed
from linkspan.learn.language import Words
from linkspan.learn.lesson import numbered
from linkspan.learn.panel import News, Panel
from linkspan.learn.progress import Progress
from linkspan.learn.watcher import Judgement

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
    """Whatever a student made of it."""
    path = tmp_path / "exam.json"
    exam.write(path, result(SAT))
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    with pytest.raises(Invalid) as caught:
        exam.read(path)
    assert said in str(caught.value)


def test_a_result_that_is_not_there_is_named(tmp_path: Path) -> None:
    """Both ways."""
    with pytest.raises(Unavailable, match="cannot be read"):
        exam.read(tmp_path / "none")
    with pytest.raises(Unavailable, match="cannot be written"):
        exam.write(tmp_path / "none" / "exam.json", result())


@pytest.mark.parametrize(
    ("change", "verified", "why"),
    [
        ({"passed_after": None}, None, ""),
        ({"name": "nothing"}, False, "no such lesson"),
        ({"number": 5}, False, "no such lesson"),
        ({"version": "0"}, False, "another version"),
        ({"passed_after": 1801.0}, False, "after 1801 s, and the exam had 1800 s"),
    ],
)
def test_what_cannot_be_true_is_not_replayed(change: dict[str, object], verified: bool | None, why: str) -> None:
    """Nor is a lesson that was not passed."""
    (found,) = exam.verify(result(msgspec.structs.replace(SAT, **change)), trust=True)
    assert found.verified is verified
    assert why in found.why


def test_root_replays_nobody_s_commands_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read-only files do not keep root."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(Denied) as caught:
        list(exam.verify(result(SAT)))
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
