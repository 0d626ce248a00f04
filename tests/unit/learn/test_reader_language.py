"""`linkspan learn` in the reader's language: help, errors, and what a replay says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from linkspan.cli import lesson_session, reader_language
from linkspan.cli.lesson_session import Lacking, first_possible
from linkspan.learn import play
from linkspan.learn.language import Words
from linkspan.learn.lesson import Lesson, numbered
from linkspan.learn.progress import Progress
from linkspan.learn.sandbox import Sandbox
from support.command_line import linkspan


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a reader who has no progress yet, and an English locale."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    return tmp_path


@pytest.mark.parametrize("words", [(), ("start",), ("exam",), ("exam", "verify")])
def test_help_is_in_the_language_of_the_reader(words: tuple[str, ...]) -> None:
    """That of --lang, or the kept one, also what the library itself adds."""
    assert not re.search("[\u4e00-\u9fff]", linkspan("learn", *words, "--help").stdout)
    linkspan("learn", "list", "--lang", "zh")
    said = linkspan("learn", *words, "--help").stdout
    assert "显示本帮助并退出" in said
    assert "选项" in said
    assert "用法: linkspan learn" in said
    assert "Usage" not in said
    assert re.findall(r"default|required", said) == []
    assert re.findall(r"[a-z]+ [a-z]+ [a-z]+\.|\u2026", said) == []  # nor is a text cut at 80 cells
    assert not re.search("[\u4e00-\u9fff]", linkspan("learn", *words, "--lang", "en", "--help").stdout)


def test_the_locale_says_the_language_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown language of --lang is refused by the command, and nothing fails before."""
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    assert reader_language.spoken(("learn", "--help")) == "zh"
    assert reader_language.spoken(("learn", "--lang=en", "list")) == "en"
    assert "there is no language 'fr'" in linkspan("learn", "list", "--lang", "fr").stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("start", "99"), "没有第 99 课"),
        (("hint",), "没有正在进行的课程\uff1b`linkspan learn start N` 会开始一课"),
        (("lits",), "没有命令 `linkspan learn lits`\uff1b你是不是想输入 `linkspan learn list`"),
        (("start", "--splitt"), "`linkspan learn start` 没有选项 --splitt"),
    ],
)
def test_errors_are_in_the_language_of_the_reader(words: tuple[str, ...], said: str) -> None:
    """Also those of parts that speak English themselves."""
    linkspan("learn", "list", "--lang", "zh")
    assert said in linkspan("learn", *words).stderr


def test_a_replay_speaks_to_the_teacher(state: Path) -> None:
    """Its table has Chinese headings and reasons, and names a file of nobody without taking it for a name."""
    (state / "exam.json").write_text("{")
    done = linkspan("learn", "exam", "verify", "--trust", "--lang", "zh", str(state / "exam.json"))
    assert done.returncode == 3
    heading, row = done.stdout.splitlines()
    assert heading.split()[:2] == ["文件", "姓名"]
    assert re.match(rf"{re.escape(str(state))}/exam\.json +未写姓名 ", row)
    assert "不是考试结果" in done.stdout


def test_a_report_says_which_solutions_were_shown(state: Path) -> None:
    """As the file for a teacher does."""
    Progress(state / "linkspan" / "learn").solve("bridge")
    rows = linkspan("learn", "report").stdout.splitlines()
    assert "SOLUTION SEEN" in rows[0]
    assert [re.split(r" {2,}", row)[-2] for row in rows[1:4]] == ["no", "yes", "no"]


def test_a_problem_with_several_lines_is_one_problem(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command of the lesson may print what looks like the end."""
    monkeypatch.setattr(play, "problems", lambda _: iter(["solution 1 fails: x\n  ok  no problem"]))
    done = linkspan("learn", "check", str(state))
    assert (done.returncode, done.stdout) == (3, "solution 1 fails: x\n      ok  no problem\n")


def test_a_lesson_that_this_machine_cannot_do_is_skipped(
    state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A reader who goes on is told, and not stopped; one who has chosen it is refused."""

    def prepared(one: Lesson, kept: Progress, words: Words) -> Sandbox:
        if one.name == "ipip":
            raise Lacking("lesson 19 needs ipip", "sudo modprobe ipip")
        return Sandbox(0)

    monkeypatch.setattr(lesson_session, "prepared", prepared)
    kept, words = Progress(state), Words("en")
    found, _ = first_possible([numbered("ipip"), numbered("bgp"), numbered("wireguard")], kept, words)
    assert found.name == "bgp"
    assert "Skipped: lesson 19 needs ipip; sudo modprobe ipip" in capsys.readouterr().out
    with pytest.raises(Lacking):
        first_possible([numbered("ipip")], kept, words)
