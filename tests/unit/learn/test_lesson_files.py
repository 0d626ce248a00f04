"""Lessons as data: what a folder must have, and what is refused with which words."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from linkspan.cli import main
from linkspan.core.errors import Invalid, NotFound
from linkspan.learn import lesson
from linkspan.learn.comparison import commands
from linkspan.learn.language import Words
from linkspan.learn.lesson import LESSONS, Check, Lesson, lessons, load, numbered, opening
from linkspan.learn.panel import News, Panel
from linkspan.learn.watcher import Judgement

ALL = list(lessons().values())


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Give a lesson's folder to damage."""
    return Path(shutil.copytree(LESSONS / "07-forward", tmp_path / "07-forward"))


def edit(path: Path, old: str, new: str) -> None:
    """Replace a text in a file, which must have it."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_all_lessons_are_read_and_follow_each_other() -> None:
    """Their numbers are 1, 2, 3, .., and each comes after those that it needs."""
    assert [one.number for one in ALL] == list(range(1, len(ALL) + 1))
    for place, one in enumerate(ALL):
        before = {other.name for other in ALL[:place]}
        assert set(one.data.after) <= before
        assert one.data.begins in {"", *before}
        assert numbered(str(one.number)) is one
        assert numbered(one.name) is one


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_a_lesson_shows_what_linkspan_would_do(one: Lesson) -> None:
    """Where its texts announce commands, linkspan's own plan has some of each kind, and of no other container."""
    shown = one.data.plan
    for language, colon in (("en", ":"), ("zh", "\uff1a")):
        assert one.texts[language].part("linkspan").endswith(colon) == bool(shown)
    if shown is None:
        return
    for kind in shown.kinds:
        found = commands(msgspec.structs.replace(shown, kinds=(kind,)))
        assert found, kind
        assert set(re.findall(r"netns_\w", "\n".join(found))) <= {shown.of}


def test_a_lesson_shows_the_commands_of_what_was_built_in_it() -> None:
    """The second container's in lesson 6, and not those of the first, the bridge and its pool."""
    shown = numbered("two-containers").data.plan
    assert shown is not None
    found = commands(shown)
    assert "ip -n netns_B addr replace 172.18.0.3/16 dev eth0 brd +" in found
    assert [one for one in found if "172.18.0.1/16" in one or "unreachable" in one] == []
    assert commands(msgspec.structs.replace(shown, of="netns_X")) == []


@pytest.mark.parametrize("name", ["learn.md", "zh/learn.md"])
def test_the_page_has_every_lesson_and_every_command(name: str) -> None:
    """And says which lessons have a packet to trace."""
    page = (Path(__file__).parents[3] / "docs" / name).read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| ([a-z0-9-]+) \|", page, re.MULTILINE)
    assert rows == [(str(one.number), one.name) for one in ALL]
    told = set(re.findall(r"`learn ([a-z]+)", "\n".join(line for line in page.splitlines() if line[:1] == "|")))
    assert told == set(main.commands("learn").commands["learn"].commands)
    assert [one.number for one in ALL if one.data.trace] == [*range(4, 34)]


def test_a_beginning_is_that_of_the_lesson_before_with_its_solution() -> None:
    """And the lesson's own preparation at the end."""
    scripts = opening(numbered("default-route"))
    assert "ip netns add netns_A" in scripts[0]
    assert "netns_A ip link set eth0 up" in scripts[-2]
    assert "192.0.2.10" in scripts[-1]


@pytest.mark.parametrize("file", ["lesson.toml", "zh.md"])
@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe", b"x = " + b"[" * 50_000, b"# " + b"x" * 200_000, b"\0", b""],
    ids=("bytes", "deep", "long", "zero", "empty"),
)
def test_a_stranger_s_file_is_refused(copy: Path, file: str, content: bytes) -> None:
    """Whatever it is: with an error, not a traceback."""
    (copy / file).write_bytes(content)
    with pytest.raises(Invalid):
        load(copy)


@pytest.mark.parametrize("file", ["lesson.toml", "zh.md"])
def test_a_stranger_s_pipe_is_not_waited_for(copy: Path, file: str) -> None:
    """And a link to a device is not read to its end."""
    (copy / file).unlink()
    os.mkfifo(copy / file)
    with pytest.raises(NotFound):
        load(copy)
    (copy / file).unlink()
    (copy / file).symlink_to("/dev/zero")
    with pytest.raises(NotFound):
        load(copy)


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("lesson.toml", "iptables -P FORWARD DROP", "iptables \\u0000 -P FORWARD DROP", "zero byte"),
        ("lesson.toml", "has = '^1'", "has = 'a{99999999999999}'", "is no pattern"),
        ("lesson.toml", "ping -c1 -W0.5 172.18.0.3\"", "true\"", "so it needs a probe by ping or /dev/tcp"),
        ("zh.md", "**提示 2:**", "**提示 4:**", "zh.md lacks the part '提示 2'"),
        ("zh.md", "`-m physdev`", "`-m phys`", "'常见错误 3' in zh.md has other commands than en.md"),
        ("zh.md", "**思考:**", "**想想:**", "'想想' is no part of a lesson"),
        ("en.md", "**Goal:**", "**Task:**", "has the part 'Task' twice"),
        ("en.md", "# Let", "Let", "does not begin with a title"),
        ("lesson.toml", "minutes = 8", 'minutes = "8"', "lesson.toml: minutes"),
        ("lesson.toml", "minutes = 8", "minute = 8", "lesson.toml"),
        ("lesson.toml", '"nft"', '"nftables"', "needs nftables, which nobody can check"),
        ("lesson.toml", "has = '^0'", "has = '(0'", "'(0' is no pattern"),
        ("lesson.toml", "has = '^0'", "has = '[[a]'", "'[[a]' is no pattern: Possible nested set"),
        ("lesson.toml", "[[also]]", "[also", "lesson.toml:"),
        ("lesson.toml", "minutes = 8", "minutes = 8\nfault = true", "a fault needs trace, and in finds what"),
        ("lesson.toml", "minutes = 8", "minutes = 8\nfinds = 'x'", "other lessons have no finds"),
    ],
)
def test_a_damaged_lesson_is_refused_and_the_fault_named(
    copy: Path, file: str, old: str, new: str, said: str
) -> None:
    """An author finds the place by the message alone."""
    edit(copy / file, old, new)
    with pytest.raises(Invalid) as caught:
        load(copy)
    assert said in caught.value.message


def test_a_lesson_without_a_language_or_a_good_name_is_refused(copy: Path, tmp_path: Path) -> None:
    """Both are named."""
    with pytest.raises(Invalid, match="is not of the form"):
        load(copy.rename(tmp_path / "forward"))
    shutil.copytree(LESSONS / "01-namespaces", tmp_path / "01-namespaces")
    (tmp_path / "01-namespaces" / "zh.md").unlink()
    with pytest.raises(NotFound, match=r"has no zh\.md"):
        load(tmp_path / "01-namespaces")
    with pytest.raises(NotFound, match=r"it has no lesson\.toml"):
        load(tmp_path)


def test_an_unknown_lesson_is_not_found() -> None:
    """The hint lists them."""
    with pytest.raises(NotFound, match="no lesson 99"):
        numbered("99")


@pytest.mark.parametrize(
    ("check", "code", "output", "holds"),
    [
        (Check("x"), 0, "", True),
        (Check("x"), 1, "", False),
        (Check("x", has="^b"), 0, "a\nb", True),
        (Check("x", has="^b"), 0, "ab", False),
        (Check("x", has="b"), 1, "b", False),
        (Check("x", lacks="a"), 0, "a", False),
        (Check("x", has="b", lacks="a"), 0, "b", True),
        (Check("x", lacks="a"), 0, "b" * 30_000, True),
        (Check("x", lacks="a"), 0, "b" * 30_001, False),
    ],
)
def test_a_check_needs_exit_code_and_both_patterns(check: Check, code: int, output: str, holds: bool) -> None:
    """Patterns are looked for in each line, and not in an output that costs too much time."""
    assert check.holds(code, output) is holds


def almost(pattern: str) -> Iterator[str]:
    """Yield outputs in which all but the last text of a pattern is found, as often as there is room."""
    for old, new in (
        (r"\\d\+?", "1"),
        (r"\\[Sw]\+", "x"),
        (r"\\s[*+]", " "),
        (r"\\[bAZ]|\(\?[>=!i]\)?|\(\?s:|\[\^.*?\][*+]\??|\.[*+]\??|\(\.\|\\n\)\*|[()|^$?*+]", "\0"),
        (r"\\(.)", r"\1"),
    ):
        pattern = re.sub(old, new, pattern)
    words = [one for one in pattern.split("\0") if one]
    words = words[:-1] or words
    for end in ("", " ", "\n"):
        for line in ("".join(words) + end, "".join(one + end for one in words)):
            yield line * (30_000 // len(line))
        yield "".join((one + end) * (30_000 // len(words) // len(one + end)) for one in words)


@pytest.mark.alone
@pytest.mark.timeout(60)
@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_no_output_costs_a_pattern_much_time(one: Lesson) -> None:
    """The state of another person's sandbox may be any."""
    for check in (*one.data.check, *one.data.keep):
        for pattern in filter(None, (check.has, check.lacks)):
            for output in almost(pattern):
                began = time.process_time()
                re.search(pattern, output, re.MULTILINE)
                assert time.process_time() - began < 1, (pattern, output[:200])


def test_both_states_of_ipsec_must_stay() -> None:
    """In either order, and before a policy."""
    keep = numbered("ipsec").data.keep[1]
    states = ("spi 0x00000301 ", "spi 0x00000103 ")
    found = [keep.holds(0, f"{''.join(one)}\ndir fwd") for one in (states, states[::-1], states[:1])]
    assert found == [True, True, False]


def test_news_are_told_once_and_again_after_they_changed_back() -> None:
    """A step that is achieved, undone and achieved again; a wrong idea that stays; the end."""
    one, now = numbered("container"), [0.0]
    news = News(Panel(one, Words("en")), one, lambda: now[0])
    none = Judgement((False, False, False), (), None)
    first = Judgement((True, False, False), (), None, wrong=(2,))
    assert news.of(none) == []
    assert ["✓ `netns_A` has an interface" in line for line in news.of(first)] == [True]
    assert news.of(first) == []
    now[0] = 7.0
    assert ["Not it: " in line for line in news.of(first)] == [True]
    assert news.of(first) == []
    assert [line.strip()[0] for line in news.of(none)] == ["·"]
    assert len(news.of(first)) == 1
    now[0] = 14.0
    assert len(news.of(first)) == 1
    end = "\n".join(news.of(Judgement((True, True, True), (), True)))
    assert "Passed" in end
    assert "ip link add" in end
    assert "Question" in end
    assert news.passed
    assert news.of(none) == []


@pytest.mark.parametrize("language", ["en", "zh"])
def test_what_is_broken_is_told_at_the_end(language: str) -> None:
    """Not before the task is done, as the reason of other lessons is."""
    broken, other = (Panel(numbered(name), Words(language)) for name in ("case-1", "forward"))
    why = broken.part("why")
    assert "vethB" in why
    assert why not in broken.introduction()
    assert why in broken.ending()
    assert other.part("why") in other.introduction()
    assert other.part("why") not in other.ending()


def test_what_was_to_stay_is_no_open_step_and_an_untried_probe_says_why() -> None:
    """A reader would take the first for one more thing to do, and try the second by hand: it works."""
    judged = Judgement((True,), (True, False, True, True), None)
    done, probe, broken = Panel(numbered("two-bridges"), Words("en")).steps(judged)
    assert done.startswith("  ✓ ")
    assert probe.startswith("  · ")
    assert probe.endswith("(tried once all else is as it must be)")
    assert broken.startswith("  ✗ this must stay: ")


def test_another_namespace_under_a_name_is_told_once() -> None:
    """It is nothing to be done, but to be undone."""
    one = numbered("case-1")
    judged = Judgement((), (True, True), True, replaced=("netns_B",))
    news = News(Panel(one, Words("en")), one)
    assert [line for line in news.of(judged) if "netns_B" in line and line.startswith("  ✗ ")] != []
    assert news.of(judged) == []


def test_a_probe_that_says_little_has_words() -> None:
    """Other ones are shown as they are typed."""
    worded, plain = (Panel(numbered(name), Words("en")).steps(None)[-1] for name in ("two-bridges", "container"))
    assert "do not reach each other" in worded
    assert plain.endswith("works: ip netns exec netns_A ping -c1 -W0.5 172.18.0.1")


def test_a_lesson_that_begins_with_itself_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not an endless loop."""
    one = numbered("veth")
    circle = msgspec.structs.replace(one, data=msgspec.structs.replace(one.data, begins="veth"))
    monkeypatch.setattr(lesson, "lessons", lambda: {"veth": circle})
    with pytest.raises(Exception, match="which is no lesson before it"):
        opening(circle)


@pytest.mark.parametrize("name", ["bgp", "case-9"])
@pytest.mark.parametrize(
    ("connection", "held"),
    [
        ("192.0.2.2:179 192.0.2.1:40001", True),
        ("192.0.2.2%wire:58613 192.0.2.1:179", True),
        ("[::ffff:192.0.2.2]%wire:179 [::ffff:192.0.2.1]:40001", True),
        ("192.0.2.2:22 192.0.2.1:40001", False),
        ("192.0.2.2:179 192.0.2.11:40001", False),
    ],
)
def test_a_session_may_be_opened_by_either_host(name: str, connection: str, held: bool) -> None:
    """Who is first is chance, and a socket of BIRD that opens one is bound to its link."""
    (session,) = (one for one in numbered(name).data.check if "birdc" in one.run)
    up = "BGP --- up 10:00 Established\n"
    said = f"BIRD 2.17 ready.\nhost2 {up}BIRD 2.17 ready.\nhost1 {up}0      0      {connection} "
    assert session.holds(0, said) is held
