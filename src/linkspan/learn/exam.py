"""Exams: the result file, and what a replay of its commands says."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import msgspec

from linkspan.core.errors import Denied, Invalid, LinkspanError, Unavailable, of_validation
from linkspan.core.remedies import reason, remedy
from linkspan.kernel.io import durable_files
from linkspan.learn import foreign_file, given_text, named_namespaces, needs, play, replay, sandbox
from linkspan.learn import lesson as lesson_files
from linkspan.learn.beside import Beside
from linkspan.learn.lesson import Lesson
from linkspan.learn.sandbox import Sandbox
from linkspan.learn.watcher import SETTLING

NEEDS = ("bash",)
"""Needs of every exam besides its lessons': the shell that writes the log."""
DAY = 1440
"""Minutes of an exam, at most."""
_LARGEST = 4_000_000
"""Bytes of a result file, at most: it is another person's."""
TRIES = ((1, play.SETTLED), (4, SETTLING[-1]))
"""Replays of a lesson until one passes: how many times as slow this machine may be, and seconds to wait for the state.

The second one waits as long as the watcher does, because the kernel keeps an old neighbour entry for up to 55 s.
"""
_LONGEST = 20_000
"""Characters of a line, at most."""
_ROOM = 100_000
"""Bytes of a lesson's lines in a result file, at most: all lessons fit into one."""

_SPARE = 900.0
"""Seconds for the replay of a file besides three times its exam's time."""
_AGAIN = 300.0
"""Seconds until a replay that is late is interrupted once more: the sandbox has ended long before."""
_LAYOUT = 60
"""Bytes that a line's entry has besides, in a file that people can read."""
_LATEST = 1e6
"""Seconds after an exam's beginning, at most."""
_PIDS = 2**32
"""A shell's number is below."""

_Seconds = Annotated[float, msgspec.Meta(ge=0, le=_LATEST)]
_Number = Annotated[int, msgspec.Meta(ge=0, le=1000)]
_Short = Annotated[str, msgspec.Meta(max_length=200)]


class _Late(Exception):
    """A replay takes too long. It is no LinkspanError, because a lesson that fails with one is replayed once more."""


class Typed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A command line: ``at`` seconds after the lesson's beginning, in the shell with this number."""

    at: _Seconds
    shell: Annotated[int, msgspec.Meta(ge=0, le=_PIDS)]
    line: Annotated[str, msgspec.Meta(max_length=_LONGEST, pattern=r"\A[^\x00]*\Z")]


class Sat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One lesson of an exam; ``passed_after`` seconds, None if it was not passed. ``version`` is of its data."""

    number: _Number
    name: _Short
    version: _Short
    passed_after: _Seconds | None = None
    commands: Annotated[tuple[Typed, ...], msgspec.Meta(max_length=5_000)] = ()


class Result(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A result file; ``begun`` is a time in ISO 8601, ``asked`` the numbers of the chosen lessons."""

    who: _Short
    begun: _Short
    minutes: Annotated[int, msgspec.Meta(ge=1, le=DAY)]
    asked: Annotated[tuple[_Number, ...], msgspec.Meta(max_length=200)]
    seconds: _Seconds = 0.0
    lessons: Annotated[tuple[Sat, ...], msgspec.Meta(max_length=200)] = ()
    schema: Literal[1] = 1


class Verified(msgspec.Struct, frozen=True):
    """The outcome of a lesson's replay: ``verified`` is None if nothing was claimed or this machine cannot play it."""

    number: int
    name: str
    passed: bool
    verified: bool | None
    why: str = ""


class Verification(msgspec.Struct, frozen=True):
    """A result file, and what became of its lessons; ``why`` says why it was not replayed, to its end or at all."""

    file: str
    who: str = ""
    begun: str = ""
    minutes: int = 0
    asked: tuple[int, ...] = ()
    seconds: float = 0.0
    lessons: tuple[Verified, ...] = ()
    why: str = ""

    @property
    def well(self) -> bool:
        """Return whether all that the file claims was replayed, and no lesson failed."""
        return not self.why and all(one.verified is not False for one in self.lessons)


def version(lesson: Lesson) -> str:
    """Return a fingerprint of a lesson's data: set-up and checks, not its texts."""
    return hashlib.sha256(msgspec.json.encode(lesson.data)).hexdigest()[:16]


def write(path: Path, result: Result) -> None:
    """Write a result file. Raises Unavailable."""
    try:
        durable_files.write(path, msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n", mode=0o600)
    except OSError as error:
        raise Unavailable(
            f"the result cannot be written to {path}: {reason(error)}", remedy(error, path, "name another --file")
        ) from error


def read(path: Path) -> Result:
    """Read a result file. Raises Invalid with the first problem, Unavailable if it cannot be read."""
    try:
        content = foreign_file.content(path, _LARGEST)
    except FileNotFoundError as error:
        raise Unavailable(f"{path} cannot be read: there is no such file") from error
    try:
        return msgspec.json.decode(content, type=Result)
    except msgspec.ValidationError as error:
        raise of_validation(error, Result).within(str(path)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"{path} is no result of an exam: it is no JSON", "`learn exam start` writes one") from error


def now() -> float:
    """Return the seconds since this machine started, also those that it slept; nobody sets that clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def uptime(box: Sandbox) -> float:
    """Return the same as the log of a sandbox has it: a container's /proc/uptime may begin later.

    Raises LinkspanError if the sandbox is gone.
    """
    ((code, found),) = box.results(["cat /proc/uptime"])
    if code:
        raise LinkspanError(f"/proc/uptime cannot be read: {found}")
    return float(found.split()[0])


def commands(box: Sandbox, begun: float) -> tuple[Typed, ...]:
    """Return what was typed in a sandbox's logged shells since ``begun`` (its `uptime`).

    Raises LinkspanError if the sandbox is gone.
    """
    ((_, log),) = box.results([f"cat {sandbox.TYPED}"])
    return tuple(_entries(log, begun))


def _entries(log: str, begun: float) -> Iterator[Typed]:
    """Yield the lines of a log, as far as a result file has room. The student's programs may have written there."""
    found = []
    for entry in log.split(sandbox.ENTRY)[:-1]:
        at, _, rest = entry.partition(sandbox.FIELD)
        shell, _, line = rest.partition(sandbox.FIELD)
        with contextlib.suppress(ValueError):
            after = max(float(at) - begun, 0.0)
            if after <= _LATEST and 0 <= int(shell) <= _PIDS:
                found.append(Typed(round(after, 2), int(shell), line.replace("\0", "")[:_LONGEST]))
    room = _ROOM
    for one in sorted(found, key=lambda one: one.at):
        room -= len(msgspec.json.encode(one)) + _LAYOUT
        if room >= 0:
            yield one


def stamp(seconds: float) -> str:
    """Return a time in seconds since the epoch as ISO 8601, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def allowed(*, trust: bool) -> None:
    """Raise Denied if this user is root, and does not trust the commands of a result: they are another person's."""
    if os.geteuid() == 0 and not trust:
        raise Denied(
            "the commands of a result are another person's, and this is root",
            "verify as an ordinary user; lessons that need root only with --trust, on a machine for it",
        )


def verify(path: Path, minutes: int, *, trust: bool = False) -> Verification:
    """Replay what the lines of a result file lead to, each lesson in a new sandbox; ``minutes`` is the exam's time.

    A student's commands run with this user's rights. Unless they are trusted, all files are read-only for them, and
    homes and sockets are hidden; root cannot be shut in so. A file that is no result, or cannot be replayed, is told of
    in ``why``, because others follow it.
    """
    file = _text(str(path))
    try:
        result = read(path)
    except LinkspanError as error:
        return Verification(file, why=_text(error.message))
    found: list[Verified] = []
    why = ""
    try:
        if result.minutes > minutes:
            raise Invalid(f"its exam had {result.minutes} minutes, and {minutes} were given")
        with _limited(3 * 60.0 * result.minutes + _SPARE):
            found.extend(_lessons(result, closed=not trust))
    except _Late:
        why = "its replay takes much longer than its exam"
    except OSError as error:  # its programs may have used up what this user may have
        why = f"this machine cannot replay it: {reason(error)}"
    except LinkspanError as error:
        why = f"{error.message} ({error.hint})" if error.hint else error.message
    given = result.begun, result.minutes, result.asked, result.seconds
    return Verification(file, result.who, *given, tuple(found), why)


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise _Late if the block does not end in time, whatever it does: its input is another person's.

    Also a search for a pattern is interrupted, in which no other code of this process runs. Needs the main thread.
    """

    def interrupt(*_: object) -> NoReturn:
        raise _Late

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)  # again, because Python drops what a destructor raises
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def _lessons(result: Result, *, closed: bool) -> Iterator[Verified]:
    """Yield the outcome of each lesson: the lessons follow each other, so their times add up."""
    seen: set[int] = set()
    spent, limit = 0.0, 60.0 * result.minutes
    for one in result.lessons:
        claimed = one.passed_after is not None
        end = max((typed.at for typed in one.commands), default=0.0) if one.passed_after is None else one.passed_after
        if one.number not in result.asked or one.number in seen:
            yield Verified(one.number, one.name, claimed, False, "it was not asked, or is there twice")
        elif spent + end > limit:
            why = f"it was passed after {spent + end:.0f} s, and the exam had {limit:.0f} s" if claimed else ""
            yield Verified(one.number, one.name, claimed, False if claimed else None, why)
        else:
            yield _verified(one, end, closed=closed)
        spent += end if claimed else 0.0
        seen.add(one.number)
    for number in dict.fromkeys(result.asked):
        if number not in seen:
            yield Verified(number, _name(number), False, None, "it was not begun")


def _text(name: str) -> str:
    """Return text of what may be the name of a file: some names have bytes that are no text."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _name(number: int) -> str:
    return next((one.name for one in lesson_files.lessons().values() if one.number == number), "")


def _verified(sat: Sat, end: float, *, closed: bool) -> Verified:
    """Replay a lesson's lines until ``end``, also if it is not claimed: the exam may have missed its last state."""
    claimed = sat.passed_after is not None
    wrong = False if claimed else None
    lines = [(one.at, one.shell, one.line) for one in sat.commands if one.at <= end]

    def found(verified: bool | None, why: str = "") -> Verified:
        return Verified(sat.number, sat.name, claimed, verified, why)

    lesson = lesson_files.lessons().get(sat.name)
    if lesson is None or lesson.number != sat.number:
        return found(False, "there is no such lesson")
    if not claimed and not replay.work(lines):
        return found(None)
    if sat.version != version(lesson):
        return found(wrong, "it is another version of this lesson: verify with the version of linkspan that was used")
    asked = msgspec.structs.replace(lesson, data=msgspec.structs.replace(lesson.data, wrong=(), also=()))
    why = ""
    for slower, seconds in TRIES:
        with sandbox.passing(play.name(), closed=closed) as box:
            if lacking := needs.lacking(box, (*lesson.data.needs, *NEEDS)):
                return found(None, f"this machine lacks {', '.join(one.what for one in lacking)}")
            try:
                given = play.begin(box, lesson)
                with replay.typed(box, lines, end, slower):
                    judged, stays = play.lasting(Beside(box), asked, seconds, given)
                    misled = judged.passed and given_text.misleads(Beside(box), named_namespaces.names(lesson, given))
            except LinkspanError as error:
                why = error.message
                continue
        if judged.passed and stays and not misled:
            return found(True, "" if claimed else "its commands pass it, and the exam missed that")
        why = f"its commands do not pass it: {play.told(judged)}"
        if misled:
            why = "a name, an alias or a comment has a line break, a quote or a backslash: it could mislead a check"
        elif judged.passed:
            why = "its commands pass it, and that does not last"
        elif judged.replaced:
            why = f"its commands delete or replace namespaces, or have one twice: {', '.join(judged.replaced)}"
        elif not judged.arrived:
            why = f"its commands have something else answer than {lesson.data.reaches}"
    return found(wrong, why if claimed else "")
