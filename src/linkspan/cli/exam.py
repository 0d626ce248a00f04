"""`linkspan learn exam`: lessons without help and with a time limit, and the replay of what was typed."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from linkspan.cli.address import NOT_WELL
from linkspan.cli.lesson_session import (
    Lang,
    fitted,
    introduce,
    leave,
    prepared,
    reader,
    require,
    unwatched,
    user,
    yes,
)
from linkspan.cli.output import Format, Output, as_json, say, step, table
from linkspan.core.errors import Conflict, Invalid, LinkspanError
from linkspan.core.escapes import shown
from linkspan.learn import INSIDE

if TYPE_CHECKING:
    from linkspan.learn.exam import Sat, Verification
    from linkspan.learn.language import Words
    from linkspan.learn.lesson import Lesson
    from linkspan.learn.progress import Progress

MINUTES = 30
"""The time of an exam, unless another one is given."""
_LOOK = 1.0
"""Seconds between two looks at the time that is left: what a thread waits for stands still while a laptop sleeps."""

app = typer.Typer(no_args_is_help=True, help="Lessons as an exam: without help, with a time limit and a result file.")


@app.command()
def start(
    lessons: Annotated[list[str], typer.Argument(metavar="LESSON...", help="Numbers or names, in their order.")],
    minutes: Annotated[int, typer.Option("--minutes", metavar="N", min=1, help="Time for all of them.")] = MINUTES,
    who: Annotated[str, typer.Option("--who", metavar="NAME", help="Name in the result; default: the user's.")] = "",
    file: Annotated[
        Path, typer.Option("--file", metavar="FILE", help="The result, which must not exist yet.")
    ] = Path("exam.json"),
    lang: Lang = "",
) -> None:
    """Sit an exam: one lesson after the other, without hints, solutions and explanations. `next` goes on."""
    from linkspan.learn import exam, lesson, play, sandbox

    kept, words = reader(lang)
    if os.environ.get(INSIDE):
        raise Conflict(words("this shell is in a sandbox already"), words("type `exit` first"))
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise Conflict(words("an exam needs a terminal: what is typed is its result"), words("start it in a terminal"))
    if minutes > exam.DAY:
        what = words("an exam of {minutes} minutes is longer than a day", minutes=minutes)
        raise Invalid(what, words("give at most {minutes}", minutes=exam.DAY))
    if file.exists():
        raise Conflict(words("{file} exists", file=file), words("name another --file"))
    chosen = list({one.name: one for one in map(lesson.numbered, lessons)}.values())
    kept.speak(words.language)
    with step(words("looking at what the lessons need")), sandbox.passing(play.name()) as box:
        for one in chosen:
            require(box, one, words, exam.NEEDS)
    began = exam.now()
    asked = tuple(one.number for one in chosen)
    result = exam.Result(who=(who or user())[:200], begun=exam.stamp(time.time()), minutes=minutes, asked=asked)
    exam.write(file, result)
    end = began + 60.0 * minutes
    sat: list[Sat] = []
    for one in chosen:
        code, found = _sit(one, kept, words, end)
        sat.append(found)
        spent = round(exam.now() - began, 1)
        result = exam.Result(result.who, result.begun, minutes, asked, spent, tuple(sat))
        exam.write(file, result)
        if code != sandbox.NEXT or exam.now() >= end:
            break
    passed = sum(one.passed_after is not None for one in sat)
    say(words("{passed} of {all} lessons passed. The result is in {file}.", passed=passed, all=len(chosen), file=file))


def _sit(one: Lesson, kept: Progress, words: Words, end: float) -> tuple[int, Sat]:
    """Let a student work on a lesson until the shell ends or the time is up; return the shell's exit code, too."""
    from linkspan.learn import exam, play, sandbox, terminal
    from linkspan.learn.panel import News, Panel
    from linkspan.learn.watcher import PAUSE, Watcher

    box = prepared(one, kept, words, exam=True)
    try:
        introduce(one, words, exam=True)
        left = max(end - exam.now(), 0.0) / 60
        say(words("{minutes:.0f} minutes are left. `next` ends this lesson, `exit` the exam.", minutes=left))
        say(words("Write files by commands (cat, printf, sed): the result has lines, and no keys in an editor."))
        say(words("Lines count if you type them at this prompt, or in `linkspan learn shell`."))
        say(words("Do not delete namespaces that are there: new ones with their names do not count."))
        say(words("Type `ip netns exec NAME COMMAND`: lines of a shell in NAME are not logged. Use `&`, not ^Z."))
        watcher, news = Watcher(box, one), News(Panel(one, words), one, exam=True)
        began, up = exam.now(), exam.uptime(box)
        passed: list[float] = []
        log: list[exam.Typed] = []

        def spent() -> float:  # rounded up: no line is later than what it led to
            return round(exam.now() - began + 0.05, 1)

        def note() -> None:
            with contextlib.suppress(LinkspanError):  # another window may have ended the sandbox
                log[:] = exam.commands(box, up)

        def expire() -> None:
            while (left := end - exam.now()) > 0:
                if ended.wait(min(left, _LOOK)):
                    return
            note()
            if box.end() and kept.exam:  # the shell ends with it, also while another process keeps the sandbox's lock
                kept.close()

        def look() -> str:
            if exam.now() >= end:
                return ""
            try:
                judged = watcher.look()
            except LinkspanError:  # a command was late: the next look comes soon
                return ""
            if judged is None:
                return ""
            note()  # now, because another window may end the sandbox
            if judged.passed and not passed:
                passed.append(spent())
            return fitted(news.of(judged))

        argv, environment = box.shell(f"exam {one.number}", logged=True)
        ended = threading.Event()
        timer = threading.Thread(target=expire)
        timer.start()
        try:
            code = terminal.run(argv, environment, look, PAUSE, lambda error: unwatched(error, words))
        finally:
            ended.set()
            timer.join()
        last = spent()
        if exam.now() >= end:
            say(words("The time is up."))
        else:
            note()
            with step(words("looking at what is achieved")), contextlib.suppress(LinkspanError):
                if not passed and play.settled(box, one).passed:  # by the last line, before anybody looked
                    passed.append(last)
    finally:
        leave(box, kept)
    if code == sandbox.NEXT and not passed:
        say(words("Lesson {number} is not passed.", number=one.number))
    after = passed[0] if passed else None
    return code, exam.Sat(one.number, one.name, exam.version(one), after, tuple(log))


@app.command()
def verify(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Results of `learn exam start`.")],
    trust: Annotated[
        bool, typer.Option("--trust", help="Let the commands do what you may do; else files are read-only.")
    ] = False,
    minutes: Annotated[int, typer.Option("--minutes", metavar="N", min=1, help="The time that you gave.")] = MINUTES,
    lang: Lang = "",
    output: Output = Format.TABLE,
) -> None:
    """Replay what was typed in a new sandbox; exit 3 if a lesson that a result calls passed does not pass."""
    from linkspan.learn import exam

    _, words = reader(lang)
    exam.allowed(trust=trust)
    found = []
    for path in files:
        with step(words("replaying {file}", file=shown(str(path)))):
            found.append(exam.verify(path, minutes, trust=trust))
        if output is not Format.JSON:  # at once: a class takes hours
            _show(found[-1], words)
    if output is Format.JSON:
        as_json(found)
    if not all(one.well for one in found):
        raise typer.Exit(NOT_WELL)


def _show(found: Verification, words: Words) -> None:
    """Print what became of a result file."""
    from linkspan.core.sentences import Sentences

    told = Sentences(words.language)
    who = shown(" ".join(found.who.split()) or words("no name"))  # two spaces would look like the end of a column
    begins = (shown(found.file), who)
    rows: list[tuple[object, ...]] = []
    for n in found.lessons:
        told_of = (n.number, shown(n.name), yes(n.passed, words), yes(n.verified, words), shown(told(n.why)))
        rows.append((*begins, found.minutes, *told_of))
    if found.why:
        rows.append((*begins, found.minutes or "-", "-", "-", "-", words("no"), shown(told(found.why))))
    of_file = words("file"), words("who"), words("minutes")
    of_lesson = words("number"), words("name"), words("passed"), words("verified"), words("why")
    table((*of_file, *of_lesson), rows, words("{file} has no lessons", file=found.file))
