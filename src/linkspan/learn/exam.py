"""Exams: the result file, and what a replay of its commands says."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from linkspan.core.errors import Denied, Invalid, LinkspanError, Unavailable, of_validation
from linkspan.core.remedies import reason, remedy
from linkspan.kernel.io import durable_files
from linkspan.learn import lesson as lesson_files
from linkspan.learn import needs, play, replay, sandbox
from linkspan.learn.lesson import Lesson
from linkspan.learn.sandbox import Sandbox

NEEDS = ("bash",)
"""Needs of every exam besides its lessons': the shell that writes the log."""
DAY = 1440
"""Minutes of an exam, at most."""
_LARGEST = 4_000_000
"""Bytes of a result file, at most: it is another person's."""

_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e6)]
_Short = Annotated[str, msgspec.Meta(max_length=200)]


class Typed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A command line: ``at`` seconds after the lesson's beginning, in the shell with this number."""

    at: _Seconds
    shell: Annotated[int, msgspec.Meta(ge=0)]
    line: Annotated[str, msgspec.Meta(max_length=20_000, pattern=r"\A[^\x00]*\Z")]


class Sat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One lesson of an exam; ``passed_after`` seconds, None if it was not passed. ``version`` is of its data."""

    number: int
    name: _Short
    version: _Short
    passed_after: _Seconds | None = None
    commands: Annotated[tuple[Typed, ...], msgspec.Meta(max_length=5_000)] = ()


class Result(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A result file; ``begun`` is a time in ISO 8601, ``asked`` the numbers of the chosen lessons."""

    who: _Short
    begun: _Short
    minutes: Annotated[int, msgspec.Meta(ge=1, le=DAY)]
    asked: Annotated[tuple[int, ...], msgspec.Meta(max_length=200)]
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
    """A result file, and what became of its lessons."""

    file: str
    who: str
    begun: str
    minutes: int
    asked: tuple[int, ...]
    seconds: float
    lessons: list[Verified]


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
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise Unavailable(f"{path} cannot be read: {reason(error)}") from error
    if len(content) > _LARGEST:
        raise Invalid(f"{path} is no result of an exam: it has more than {_LARGEST // 1_000_000} MB")
    try:
        return msgspec.json.decode(content, type=Result)
    except msgspec.ValidationError as error:
        raise of_validation(error, Result).within(str(path)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Invalid(f"{path} is no result of an exam: {error}", "`learn exam start` writes one") from error


def commands(box: Sandbox, begun: float) -> tuple[Typed, ...]:
    """Return what was typed in a sandbox's logged shells since ``begun`` (seconds since the epoch).

    Raises LinkspanError if the sandbox is gone.
    """
    ((_, log),) = box.results([f"cat {sandbox.TYPED}"])
    found = []
    for entry in log.split(sandbox.ENTRY)[:-1]:
        at, _, rest = entry.partition(sandbox.FIELD)
        shell, _, line = rest.partition(sandbox.FIELD)
        found.append(Typed(round(max(float(at) - begun, 0.0), 2), int(shell), line))
    return tuple(sorted(found, key=lambda one: one.at))


def stamp(seconds: float) -> str:
    """Return a time in seconds since the epoch as ISO 8601, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def verify(result: Result, *, trust: bool = False) -> Iterator[Verified]:
    """Replay each lesson that a result claims as passed, in a new sandbox.

    A student's commands run with this user's rights. Unless they are trusted, all files are read-only for them, and
    homes are hidden; root cannot be shut in so. Raises Denied for root, or if this machine makes no such sandbox.
    """
    if os.geteuid() == 0 and not trust:
        raise Denied(
            "the commands of a result are another person's, and this is root",
            "verify as an ordinary user; lessons that need root only with --trust, on a machine for it",
        )
    for one in result.lessons:
        yield _verified(one, 60.0 * result.minutes, closed=not trust)


def _verified(sat: Sat, limit: float, *, closed: bool) -> Verified:
    lesson = lesson_files.lessons().get(sat.name)
    if lesson is None or lesson.number != sat.number:
        return Verified(sat.number, sat.name, False, False, "there is no such lesson")
    after = sat.passed_after
    if after is None:
        return Verified(sat.number, sat.name, False, None)

    def found(verified: bool | None, why: str = "") -> Verified:
        return Verified(sat.number, sat.name, True, verified, why)

    if after > limit:
        return found(False, f"it was passed after {after:.0f} s, and the exam had {limit:.0f} s")
    if sat.version != version(lesson):
        return found(False, "it is another version of this lesson: verify with the version of linkspan that was used")
    with sandbox.passing(play.name(), closed=closed) as box:
        if lacking := needs.lacking(box, (*lesson.data.needs, *NEEDS)):
            return found(None, f"this machine lacks {', '.join(one.what for one in lacking)}")
        try:
            play.begin(box, lesson)
            replay.typed(box, [(one.at, one.shell, one.line) for one in sat.commands if one.at <= after], after)
            judged = play.settled(box, lesson)
        except LinkspanError as error:
            return found(False, error.message)
    return found(True) if judged.passed else found(False, f"its commands do not pass it: {play.told(judged)}")
