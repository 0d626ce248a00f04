"""Lessons played by a machine: each solution passes, and neither doing nothing nor a wrong answer does."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from linkspan.core.errors import LinkspanError
from linkspan.lab.commands import await_
from linkspan.learn import comparison, named_namespaces, needs, sandbox
from linkspan.learn import lesson as lesson_files
from linkspan.learn.lesson import Lesson
from linkspan.learn.sandbox import Sandbox
from linkspan.learn.watcher import Judgement, judge, remember, settings, tried

SETTLED = 5.0
"""Seconds in which a played solution must pass: a busy machine delays carriers and neighbour entries."""
_TRIES = 3
"""How often a state may be seen to change after it passed: a program that the last line has started may do so."""
_PAUSES = (0.03, 0.11, 0.07, 0.19, 0.05, 0.13)
"""Seconds between looks at a state that must stay: a loop that changes it and back hardly keeps pace."""


class Played(msgspec.Struct, frozen=True):
    """The result of a lesson played by its printed solution, and by doing nothing."""

    number: int
    passed_by_solution: bool
    passed_by_nothing: bool

    @property
    def well(self) -> bool:
        """Return whether the lesson is as it should be."""
        return self.passed_by_solution and not self.passed_by_nothing


class Unavailable(msgspec.Struct, frozen=True):
    """A lesson that this machine cannot play, with the reason."""

    number: int
    unavailable: str


def name() -> str:
    """Return the name of this process's sandboxes for playing."""
    return f"play-{os.getpid()}"


def begin(box: Sandbox, lesson: Lesson) -> Mapping[str, str]:
    """Make a lesson's beginning in a new sandbox; return its namespaces, as `judge` needs them.

    Raises LinkspanError with the command's output if that fails.
    """
    for script in lesson_files.opening(lesson):
        _typed(box, script, f"the beginning of lesson {lesson.name}")
    if lesson.data.fault:
        remember(box, lesson)
    return named_namespaces.remember(box)


def play(lesson: Lesson) -> Played | Unavailable:
    """Play a lesson's first solution in a sandbox. Raises Denied if the machine makes no sandbox."""
    with sandbox.passing(name()) as box:
        if lacking := needs.lacking(box, lesson.data.needs):
            return Unavailable(lesson.number, "; ".join(f"{one.what} is missing ({one.fix})" for one in lacking))
        begin(box, lesson)
        nothing = judge(box, lesson).passed
        _typed(box, lesson.data.solutions[0], "solution 1")
        return Played(lesson.number, settled(box, lesson).passed, nothing)


def settled(
    box: Sandbox, lesson: Lesson, seconds: float = SETTLED, given: Mapping[str, str] | None = None
) -> Judgement:
    """Return the judgement as soon as the lesson is passed, or the last one if that does not happen in time."""
    return _judged(box, lesson, lambda judged, _: judged.passed, seconds=seconds, given=given)


def lasting(
    box: Sandbox, lesson: Lesson, seconds: float, given: Mapping[str, str] | None = None
) -> tuple[Judgement, bool]:
    """Return the judgement as `settled` does, and whether it stays: a program may change the state between checks.

    ``given``: what `begin` has returned, for the lines of others, who may change what the sandbox remembers.
    """
    judged = settled(box, lesson, seconds, given)
    return judged, judged.passed and any(_stays(box, lesson, given) for _ in range(_TRIES))


def _stays(box: Sandbox, lesson: Lesson, given: Mapping[str, str] | None) -> bool:
    before = settings(box, lesson)
    if not judge(box, lesson, given).passed:
        return False
    for pause in _PAUSES:
        time.sleep(pause)
        if settings(box, lesson) != before:
            return False
    return True


def _judged(
    box: Sandbox,
    lesson: Lesson,
    well: Callable[[Judgement, int], bool],
    number: int = 0,
    seconds: float = SETTLED,
    given: Mapping[str, str] | None = None,
) -> Judgement:
    """Return the first judgement that is ``well`` for an answer, or the last one in time: each costs many commands."""
    found: list[Judgement] = []

    def is_well() -> bool:
        found.append(judge(box, lesson, given))
        return well(found[-1], number)

    await_(is_well, seconds)
    return found[-1]


def problems(folder: Path) -> Iterator[str]:
    """Yield what is wrong with a lesson: every way through it is played, each in a new sandbox.

    Raises LinkspanError if the lesson cannot be read, or this machine cannot play it.
    """
    lesson = lesson_files.load(folder)
    data = lesson.data
    if data.plan and not comparison.commands(data.plan):
        yield "linkspan's plan of the tutorial's network has no command of those that plan names"
    with _begun(lesson) as box:
        judged = judge(box, lesson)
        if judged.passed:
            yield "it is passed by doing nothing"
        if not all(judged.keeps):
            yield "a keep does not hold at the beginning"
        ((code, output),) = box.results([data.probe])
        if lesson.probe.holds(code, output):
            yield "the probe works at the beginning: it must fail there"
        before = explained(box, lesson)
        if data.fault and not re.search(data.finds, before.finding):
            yield f"explain does not find the fault: {before.finding}"
        if judged.wrong or judged.also:
            yield f"doing nothing is recognised as wrong {judged.wrong} or also {judged.also}"
    for number, solution in enumerate(data.solutions, 1):
        with _begun(lesson) as box:
            _typed(box, solution, f"solution {number}")
            judged = settled(box, lesson)
            if not judged.passed:
                yield f"solution {number} does not pass: {told(judged)}"
            elif judged.also:
                yield f"solution {number} is recognised as also {judged.also}"
            if number == 1 and data.trace:
                after = explained(box, lesson)
                same = re.search(data.finds, after.finding) if data.fault else after.arrives == before.arrives
                if same:
                    yield f"explain does not see the solution: before {before.finding!r}, after {after.finding!r}"
    for number, attempt in enumerate(data.wrong, 1):
        with _begun(lesson) as box:
            _typed(box, attempt.attempt, f"wrong {number}")
            judged = _judged(box, lesson, lambda judged, wrong: wrong in judged.wrong, number)
            if judged.passed:
                yield f"wrong {number} passes the lesson"
            if number not in judged.wrong:
                yield f"wrong {number} is not recognised by its own sign"
            if data.fault and not tried(box, lesson):
                yield f"wrong {number} is no change that opens `learn explain`: name it in look"
            if attempt.finds and not re.search(attempt.finds, found := explained(box, lesson).finding):
                yield f"explain does not find wrong {number}: {found}"
    for number, attempt in enumerate(data.also, 1):
        with _begun(lesson) as box:
            _typed(box, attempt.attempt, f"also {number}")
            judged = _judged(box, lesson, lambda judged, also: judged.passed and also in judged.also, number)
            if not judged.passed or number not in judged.also:
                yield f"also {number} does not pass, or is not recognised: {told(judged)}"


class Explained(NamedTuple):
    """What linkspan's trace says of a lesson's packet: whether it arrives, and what is wrong, '' if nothing is."""

    arrives: bool
    finding: str


def explained(box: Sandbox, lesson: Lesson) -> Explained:
    """Trace a lesson's packet, in a process of the sandbox."""
    data = lesson.data
    if not data.trace:
        return Explained(True, "")
    traced = f"found = walked({data.trace!r}, {data.hosts!r}); print(arrives(found)); print(finding(found))"
    code = f"from linkspan.learn.explanation import arrives, finding, walked; {traced}"
    _, output = box.script(shlex.join([sys.executable, "-P", "-c", code]))
    first, _, found = output.partition("\n")
    return Explained(first == str(True), found if first in (str(True), str(False)) else output)


@contextlib.contextmanager
def _begun(lesson: Lesson) -> Iterator[Sandbox]:
    """Make a sandbox at the beginning of a lesson, for a while."""
    with sandbox.passing(name()) as box:
        if lacking := needs.lacking(box, lesson.data.needs):
            raise LinkspanError(f"this machine cannot play it: {lacking[0].what} is missing", lacking[0].fix)
        begin(box, lesson)
        yield box


def _typed(box: Sandbox, script: str, what: str) -> None:
    code, output = box.script(script)
    if code:
        raise LinkspanError(f"{what} fails: {output or f'exit code {code}'}")


def told(judged: Judgement) -> str:
    """Return a judgement in words for authors."""
    missing = [f"check {n}" for n, one in enumerate(judged.checks, 1) if not one]
    missing += [f"keep {n}" for n, one in enumerate(judged.keeps, 1) if not one]
    missing += ["the probe"] if judged.probe is False else []
    missing += [] if judged.arrived else ["the arrival of the probe"]
    missing += [f"the namespace {name}" for name in judged.replaced]
    return ", ".join(missing) or "nothing is missing"
