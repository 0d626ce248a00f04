"""The common part of lessons' and exams' commands: the reader, the open lesson, and its sandbox."""

from __future__ import annotations

import getpass
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from linkspan.cli import layout
from linkspan.cli.output import say, step, width
from linkspan.core.errors import Conflict, Invalid, LinkspanError, NotFound
from linkspan.core.escapes import escaped

if TYPE_CHECKING:
    from linkspan.learn.language import Words
    from linkspan.learn.lesson import Lesson
    from linkspan.learn.progress import Progress
    from linkspan.learn.sandbox import Sandbox

Lang = Annotated[
    str, typer.Option("--lang", metavar="zh|en", help="The language; default: the last one, else the locale's.")
]


def reader(lang: str, *, kept_well: bool = True) -> tuple[Progress, Words]:
    """Return the reader's progress, and the interface in the reader's language, which is kept if it was asked for.

    With ``kept_well``, raise Invalid if the progress cannot be read; without it, take the locale's language then.
    """
    from linkspan.core.translation import chosen
    from linkspan.learn import language, progress

    kept = progress.Progress(progress.folder())
    try:
        before = kept.language
    except Invalid:
        if kept_well:
            raise
        return kept, language.Words(chosen(lang, ""))
    speaks = chosen(lang, before)
    if lang:
        kept.speak(speaks)
    return kept, language.Words(speaks)


def user() -> str:
    """Return this user's name, or number if it has none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


def yes(value: bool | None, words: Words) -> str:
    """Return a value in words, '-' if nobody knows it."""
    return {True: words("yes"), False: words("no"), None: "-"}[value]


def opened(kept: Progress, words: Words) -> Lesson:
    """Return the lesson that is open. Raises NotFound."""
    from linkspan.learn import lesson

    if not kept.current:
        raise NotFound(words("no lesson is open"), words("`linkspan learn start N` opens one"))
    return lesson.numbered(kept.current)


def helped(kept: Progress, words: Words) -> Lesson:
    """Return the lesson that is open, for help with it. Raises NotFound, or Conflict in an exam."""
    if kept.exam:
        what = words("an exam is running: it has no hints, solutions and explanations")
        raise Conflict(what, words("`learn task` shows the task again"))
    return opened(kept, words)


class Lacking(Conflict):
    """This machine lacks what a lesson needs."""


def require(box: Sandbox, one: Lesson, words: Words, more: tuple[str, ...] = ()) -> None:
    """Raise Lacking, with the way out, if this machine lacks what a lesson needs, or ``more`` besides."""
    from linkspan.core.sentences import Sentences
    from linkspan.learn import needs

    if lacking := needs.lacking(box, (*one.data.needs, *more)):
        told = Sentences(words.language)
        what = words.listed(told(one.what) for one in lacking)
        fix = "; ".join(dict.fromkeys(told(one.fix) for one in lacking))
        raise Lacking(words("lesson {number} needs {what}", number=one.number, what=what), fix)


def prepared(one: Lesson, kept: Progress, words: Words, *, exam: bool = False) -> Sandbox:
    """Make the lesson's beginning in a new sandbox; an earlier one ends. Raises LinkspanError."""
    from linkspan.learn import play, sandbox

    with kept.alone(), step(words("making the sandbox of lesson {number}", number=one.number)):
        sandbox.end_all(kept.sandbox)
        box = sandbox.make(kept.sandbox)
        try:
            require(box, one, words)
            play.begin(box, one)
            (kept.sit if exam else kept.start)(one.name)
        except BaseException:
            box.end()
            raise
    return box


def first_possible(lessons: Sequence[Lesson], kept: Progress, words: Words) -> tuple[Lesson, Sandbox]:
    """Make the beginning of the first of these lessons (at least one) that this machine can do, and return it.

    Say what those before it lack. Raises Lacking if the machine can do none, and LinkspanError as `prepared`.
    """
    *before, last = lessons
    for one in before:
        try:
            return one, prepared(one, kept, words)
        except Lacking as error:
            say(words("Skipped: {reason}", reason=error.told))
    return last, prepared(last, kept, words)


def leave(box: Sandbox, kept: Progress) -> None:
    """End a sandbox; no lesson is open then, unless another window has ended it, and may have opened one since."""
    with kept.alone():
        if box.end():
            kept.close()


def introduce(one: Lesson, words: Words, *, exam: bool = False) -> None:
    """Show a lesson's text."""
    from linkspan.learn.panel import Panel

    for paragraph in Panel(one, words).introduction(exam=exam):
        say(paragraph)
        if not paragraph.startswith("  "):
            print()


def unwatched(error: Exception, words: Words) -> str:
    """Return what a reader is told if nobody watches any more, because of an error."""
    from linkspan.cli.reader_language import translated

    why = translated(error, words.language) if isinstance(error, LinkspanError) else str(error)
    return fitted([words("linkspan watches no longer: {why}. `learn status` looks once.", why=escaped(why))])


def fitted(lines: list[str]) -> str:
    """Return paragraphs as text that fits the terminal."""
    room = width()
    return "\n".join(layout.filled(line, room) if room and line else line for line in lines)
