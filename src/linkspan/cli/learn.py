"""`linkspan learn`: lessons in a sandbox."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from linkspan.cli import exam, reader_language, usage
from linkspan.cli.address import NOT_WELL
from linkspan.cli.lesson_session import (
    Lang,
    first_possible,
    fitted,
    helped,
    introduce,
    leave,
    opened,
    reader,
    unwatched,
    user,
    yes,
)
from linkspan.cli.output import Format, Output, as_json, say, step, table
from linkspan.core.errors import Conflict, LinkspanError, NotFound
from linkspan.core.escapes import escaped, shown
from linkspan.core.own_command import own_command
from linkspan.learn import INSIDE

if TYPE_CHECKING:
    from linkspan.diagnose.trace.hops import Hop
    from linkspan.learn.language import Words
    from linkspan.learn.lesson import Lesson
    from linkspan.learn.progress import Progress
    from linkspan.learn.sandbox import Sandbox

LAST = 3
"""The number of a lesson's last hint."""

app = typer.Typer(
    invoke_without_command=True,
    help="Lessons: build a container network by hand in a sandbox, in English or Chinese.",
)
app.add_typer(exam.app, name="exam", cls=usage.Commands)


@app.callback()
def learn(context: typer.Context, lang: Lang = "") -> None:
    """Go on with the first lesson that is not passed."""
    if context.invoked_subcommand is None:
        start("", lang=lang)
    elif lang:
        reader(lang)


@app.command("list")
def list_(lang: Lang = "", output: Output = Format.TABLE) -> None:
    """List the lessons, which are passed, and which this machine cannot start."""
    from linkspan.core.sentences import Sentences
    from linkspan.learn import lesson, needs, play, sandbox

    kept, words = reader(lang)
    every = lesson.lessons().values()
    unmet: list[str] | None = None
    obstacle = ""
    try:
        with sandbox.passing(play.name()) as box:
            unmet = needs.unmet(box, list(dict.fromkeys(need for one in every for need in one.data.needs)))
    except LinkspanError as error:
        obstacle = reader_language.translated(error, words.language)
    found = [
        {
            "number": one.number,
            "name": one.name,
            "title": one.texts[words.language].title,
            "state": kept.entry(one.name).state,
            "minutes": one.data.minutes,
            "after": one.data.after,
            "lacks": None if unmet is None else [need for need in unmet if need in one.data.needs],
        }
        for one in every
    ]
    if output is Format.JSON:
        as_json(found)
        return
    rows = [
        (
            one["number"],
            one["title"],
            one["minutes"],
            _state(str(one["state"]), words, possible=one["lacks"] == []),
            one["name"],
        )
        for one in found
    ]
    table((words("number"), words("title"), words("minutes"), words("state"), words("name")), rows, "")
    if obstacle or unmet:
        print()
    if obstacle:
        say(words("No lesson can start: {reason}", reason=obstacle))
    told = Sentences(words.language)
    for name in unmet or ():
        need = needs.NEEDS[name]
        lessons = words.listed(one.number for one in every if name in one.data.needs)
        say(words("Lesson {lessons} needs {what}: {fix}", lessons=lessons, what=told(need.what), fix=told(need.fix)))


def _state(state: str, words: Words, *, possible: bool = True) -> str:
    """Return a lesson's state in the reader's language."""
    if not possible and state != "passed":
        return words("cannot start")
    return {"new": words("new"), "started": words("started"), "passed": words("passed")}[state]


@app.command()
def start(
    number: Annotated[
        str, typer.Argument(metavar="N", help="The lesson's number or name; default: the first that is not passed.")
    ] = "",
    split: Annotated[
        bool, typer.Option("--split", help="Show the lesson and what is achieved in a pane of tmux.")
    ] = False,
    lang: Lang = "",
) -> None:
    """Start a lesson: make its sandbox, show its task, and open a shell there.

    Without a terminal it only makes the sandbox, which then lasts until `learn reset`; `learn shell` enters it.
    """
    from linkspan.learn import lesson, sandbox

    kept, words = reader(lang)
    if os.environ.get(INSIDE):
        fix = words("type `next` for the next lesson, or `exit` first")
        raise Conflict(words("this shell is in a sandbox already"), fix)
    kept.speak(words.language)  # the sandbox has a locale of its own: there `learn` speaks what is kept
    every = list(lesson.lessons().values())
    left = [one for one in every if kept.entry(one.name).state != "passed"]
    chosen = [lesson.numbered(number)] if number else left or every[:1]
    while chosen:
        on_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        one, box = first_possible(chosen, kept, words)
        if not on_terminal:
            box.leave()
            introduce(one, words)
            say(words("The sandbox is ready: `linkspan learn shell` enters it, `linkspan learn reset` removes it."))
            return
        try:
            code = _split(words) if split else _taught(box, one, kept, words)
        finally:
            leave(box, kept)
        if code == sandbox.NEXT and kept.entry(one.name).state != "passed":
            it = one.number
            say(words("Lesson {number} is not passed: `linkspan learn start {number}` begins it again.", number=it))
        chosen = [other for other in every if other.number > one.number] if code == sandbox.NEXT else []
        if code == sandbox.NEXT and not chosen:
            say(words("That was the last lesson."))
    say(words("The sandbox is gone. `linkspan learn` goes on with the first lesson that is not passed."))


def _taught(box: Sandbox, one: Lesson, kept: Progress, words: Words) -> int:
    """Let the reader type in the sandbox, and say what is achieved; return the shell's exit code."""
    from linkspan.learn import terminal
    from linkspan.learn.panel import News, Panel
    from linkspan.learn.watcher import PAUSE, Watcher

    introduce(one, words)
    say(words("You are root in a sandbox: what you type here does not touch this machine's network."))
    say(words("`learn hint` helps, `learn task` shows the task again, `exit` ends the lesson."))
    watcher, news = Watcher(box, one), News(Panel(one, words), one)
    begun = time.monotonic()

    def spend(*, passed: bool) -> None:
        nonlocal begun
        since, begun = begun, time.monotonic()
        kept.spend(one.name, begun - since, passed=passed)

    def look() -> str:
        judged = watcher.look()
        if judged is None:
            return ""
        spend(passed=judged.passed)  # at each change, because a window may be closed
        return fitted(news.of(judged))

    argv, environment = box.shell(f"learn {one.number}")
    code = terminal.run(argv, environment, look, PAUSE, lambda error: unwatched(error, words))
    spend(passed=False)
    return code


def _split(words: Words) -> int:
    """Show the lesson in one pane of tmux and a shell of the sandbox in the other; return the shell's exit code."""
    if shutil.which("tmux") is None:
        raise NotFound(words("there is no tmux"), words("apt install tmux, or start the lesson without --split"))
    own = shlex.join([*own_command(), "learn"])
    outside = {name: value for name, value in os.environ.items() if name != "TMUX"}  # it may run inside another one
    with tempfile.TemporaryDirectory() as folder:
        ended = Path(folder, "code")
        shell = f"{own} shell; echo $? >{ended}; tmux kill-server"
        panes = ["new-session", f"{own} watch", ";", "split-window", "-v", "-l", "40%", shell]
        subprocess.run(["tmux", "-S", f"{folder}/tmux", *panes], check=False, env=outside)
        return int(ended.read_text() or 0) if ended.exists() else 0


@app.command()
def watch(lang: Lang = "") -> None:
    """Show the open lesson, and what is achieved, until it is interrupted: for a window of its own."""
    from linkspan.learn import sandbox
    from linkspan.learn.panel import News, Panel
    from linkspan.learn.watcher import PAUSE, Watcher

    kept, words = reader(lang)
    one, box = helped(kept, words), sandbox.found(kept.sandbox)
    watcher, panel, begun = Watcher(box, one), Panel(one, words), time.monotonic()
    news = News(panel, one)
    introduce(one, words)
    say(words("Type in the other window: `learn hint` helps, `learn task` shows the task again, `exit` ends it."))
    try:
        while True:
            judged = watcher.look()
            if judged is not None:
                kept.spend(one.name, time.monotonic() - begun, passed=judged.passed)
                begun = time.monotonic()
                if lines := news.of(judged):
                    print(fitted(lines), flush=True)
            time.sleep(PAUSE)
    except LinkspanError:
        say(words("The sandbox is gone."))


@app.command()
def shell(lang: Lang = "") -> None:
    """Open one more shell in the sandbox of the open lesson."""
    from linkspan.learn import sandbox

    kept, words = reader(lang)
    one = opened(kept, words)
    argv, environment = sandbox.found(kept.sandbox).shell(f"learn {one.number}", logged=kept.exam)
    os.execvpe(argv[0], argv, environment)  # noqa: S606 - no shell is meant


@app.command()
def task(lang: Lang = "") -> None:
    """Show the open lesson's text again."""
    kept, words = reader(lang)
    introduce(opened(kept, words), words, exam=kept.exam)


@app.command()
def hint(
    number: Annotated[
        int, typer.Argument(metavar="N", min=0, max=LAST, show_default=False, help="1 to 3; default: the next one.")
    ] = 0,
    lang: Lang = "",
) -> None:
    """Show a hint for the open lesson; the next one tells more, up to the third."""
    from linkspan.learn.panel import Panel

    kept, words = reader(lang)
    one = helped(kept, words)
    shown = number or min(kept.entry(one.name).hints + 1, LAST)
    kept.hint(one.name, shown)
    say(Panel(one, words).part("hint", shown))
    if shown == LAST:
        say(words("That was the last hint. `learn solution` shows the commands."))


@app.command()
def solution(lang: Lang = "") -> None:
    """Show the commands that solve the open lesson."""
    kept, words = reader(lang)
    one = helped(kept, words)
    kept.solve(one.name)
    print(one.data.solutions[0].strip())


@app.command()
def answer(lang: Lang = "") -> None:
    """Show the answer to the open lesson's question, and how to clean up on a machine of your own."""
    from linkspan.learn.panel import Panel

    kept, words = reader(lang)
    one = helped(kept, words)
    if kept.entry(one.name).state != "passed":
        raise Conflict(words("the question comes after the task"), words("`learn task` shows it, `learn hint` helps"))
    for name in ("question", "answer", "clean"):
        say(Panel(one, words).part(name))


@app.command()
def explain(lang: Lang = "", output: Output = Format.TABLE) -> None:
    """Trace the open lesson's packet through what you have built, as `linkspan trace` does."""
    from linkspan.learn import sandbox
    from linkspan.learn.watcher import tried

    kept, words = reader(lang)
    one = helped(kept, words)
    if not one.data.trace:
        what = words("lesson {number} has no packet to trace", number=one.number)
        raise NotFound(what, words("`learn hint` helps"))
    box = sandbox.found(kept.sandbox)
    if one.data.fault and not tried(box, one):
        raise Conflict(words("try first: it explains after you have changed something"), words("`learn hint` helps"))
    if box.init:
        argv = [*box.entering(), *own_command(), "learn", "explain", "-o", output.value]
        os.execvpe(argv[0], argv, box.environment())  # noqa: S606 - the namespaces are a process's own
    from linkspan.core.sentences import Sentences
    from linkspan.learn.explanation import arrives, narrow, stop, walked

    told = Sentences(words.language)
    found = walked(one.data.trace, one.data.hosts)
    if output is Format.JSON:
        as_json(found)
        return
    for title, hops in ((words("there"), found.hops), (words("back"), found.reply_hops)):
        if not hops:
            continue
        columns = [title, words("in"), words("device"), words("action"), words("detail"), words("headers")]
        count = len(columns) if any(map(_around, hops)) else len(columns) - 1
        rows = [
            shown([str(n), hop.namespace, hop.device or "-", told(hop.action), told(hop.detail), _around(hop)])
            for n, hop in enumerate(hops, 1)
        ]
        table(columns[:count], [row[:count] for row in rows], "")
        print()
    if found.reachable and not arrives(found):
        say(words("The packet arrives, but nothing listens there: the answer is a refusal."))
    elif found.reachable:
        say(words("The packet arrives, and so does the answer."))
        if narrower := narrow(found):
            sender, place = narrower
            say(
                words(
                    "But {sender} sends up to {largest} bytes, and only {fitting} fit through {device} in {place}.",
                    sender=shown(sender.namespace),
                    largest=sender.mtu,
                    fitting=found.path_mtu,
                    device=shown(place.device),
                    place=shown(place.namespace),
                )
            )
    elif found.broken_at:
        say(words("Broken at {place}: {reason}", place=shown(stop(found)), reason=shown(told(found.reason))))
    else:
        say(words("Not certain: {reason}", reason=shown(told(found.reason))))


def _around(hop: Hop) -> str:
    """Return a packet's headers if a tunnel has put some around it, else ''."""
    inside = [header for header in hop.headers if header != "eth"]
    return " / ".join(inside) if sum(header.startswith("ip ") for header in inside) > 1 else ""


@app.command()
def status(lang: Lang = "", output: Output = Format.TABLE) -> None:
    """Show the open lesson, and what the kernel has of it."""
    from linkspan.learn import sandbox
    from linkspan.learn.panel import Panel
    from linkspan.learn.watcher import judge

    kept, words = reader(lang)
    one = opened(kept, words)
    judged = judge(sandbox.found(kept.sandbox), one)
    if judged.passed and not kept.exam:
        kept.spend(one.name, 0, passed=True)
    if output is Format.JSON:
        text = one.texts[words.language]
        as_json(
            {
                "number": one.number,
                "name": one.name,
                "checks": [{"text": text.part("check", n), "ok": ok} for n, ok in enumerate(judged.checks, 1)],
                "keep": [{"text": text.part("keep", n), "ok": ok} for n, ok in enumerate(judged.keeps, 1)],
                "probe": {"command": one.data.probe, "ok": judged.probe},
                "arrived": judged.arrived,
                "replaced": judged.replaced,
                "wrong": () if kept.exam else judged.wrong,
                "passed": judged.passed,
            }
        )
        return
    panel = Panel(one, words)
    say(panel.title)
    for line in panel.steps(judged):
        say(line)
    if judged.passed:
        say(words("Passed: {title}", title=one.texts[words.language].title))
    elif not kept.exam:
        for number in judged.wrong:
            say(panel.part("wrong", number))


@app.command()
def report(
    who: Annotated[str, typer.Option("--who", metavar="NAME", help="Name in the report; default: the user's.")] = "",
    lang: Lang = "",
    output: Output = Format.TABLE,
) -> None:
    """Show the tries, hints and time of each lesson: for a teacher, to whom nothing is sent by itself."""
    from linkspan.learn import lesson

    kept, words = reader(lang)
    found = [(one, kept.entry(one.name)) for one in lesson.lessons().values()]
    if output is Format.JSON:
        as_json(
            {
                "who": who or user(),
                "lessons": [
                    {
                        "number": one.number,
                        "name": one.name,
                        "state": entry.state,
                        "tries": entry.tries,
                        "hints": entry.hints,
                        "solution_seen": entry.solution_seen,
                        "seconds": entry.seconds,
                    }
                    for one, entry in found
                ]
            }
        )
        return
    of_lesson = words("number"), words("title"), words("state")
    columns = (*of_lesson, words("tries"), words("hints"), words("solution seen"), words("seconds"))
    rows: list[tuple[object, ...]] = []
    for one, entry in found:
        seen = yes(entry.solution_seen, words)
        state = _state(entry.state, words)
        title = one.texts[words.language].title
        rows.append((one.number, title, state, entry.tries, entry.hints, seen, entry.seconds))
    table(columns, rows, "")


@app.command()
def reset(
    forget: Annotated[bool, typer.Option("--forget", help="Forget what is passed, too.")] = False,
    lang: Lang = "",
    output: Output = Format.TABLE,
) -> None:
    """Remove the sandbox with everything in it, also one that a killed `learn` left."""
    from linkspan.learn import sandbox

    kept, words = reader(lang, kept_well=False)
    if os.environ.get(INSIDE):
        raise Conflict(words("this shell is in the sandbox"), words("type `exit` first: the sandbox ends with it"))
    count = sandbox.end_all(kept.sandbox)  # also one that another window is just making
    with kept.alone():
        count += sandbox.end_all(kept.sandbox)
        if forget:
            kept.forget()
        else:
            kept.close()
    if output is Format.JSON:
        as_json({"removed": count})
    else:
        say(words("The sandbox is gone.") if count else words("There was no sandbox."))


@app.command()
def play(
    number: Annotated[str, typer.Argument(metavar="N|all", help="A lesson, or all.")],
    lang: Lang = "",
    output: Output = Format.TABLE,
) -> None:
    """Play a lesson's solution in a sandbox of its own, and show that doing nothing does not pass; exit 3 if not so."""
    from linkspan.core.sentences import Sentences
    from linkspan.learn import lesson
    from linkspan.learn import play as played
    from linkspan.learn.play import Played

    _, words = reader(lang)
    chosen = list(lesson.lessons().values()) if number == "all" else [lesson.numbered(number)]
    results = []
    for one in chosen:
        with step(words("lesson {number}: {name}", number=one.number, name=one.name)):
            results.append(played.play(one))
    if output is Format.JSON:
        as_json(results)
    else:
        told = Sentences(words.language)
        rows = [
            (r.number, yes(r.passed_by_solution, words), yes(r.passed_by_nothing, words), "")
            if isinstance(r, Played)
            else (r.number, "-", "-", told(r.unavailable))
            for r in results
        ]
        by = words("passed by solution"), words("passed by nothing")
        table((words("number"), *by, words("unavailable")), rows, "")
    if not all(one.well for one in results if isinstance(one, Played)):
        raise typer.Exit(NOT_WELL)


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A lesson's folder.")],
    lang: Lang = "",
    output: Output = Format.TABLE,
) -> None:
    """Test a lesson: texts, data, and each solution and wrong answer in a sandbox; exit 3 if it has a problem."""
    from linkspan.learn import play as played

    _, words = reader(lang)
    with step(words("playing every way through {folder}", folder=escaped(folder.name))):
        found = list(played.problems(folder))
    if output is Format.JSON:
        as_json({"lesson": folder.resolve().name, "ok": not found, "problems": found})
    else:
        for problem in found or [words("no problem")]:
            say(escaped(problem, keep="\n").replace("\n", "\n    "))  # a command's output is no line of this one
    if found:
        raise typer.Exit(NOT_WELL)
