"""Lessons played on the real kernel, and what linkspan's trace says of them."""

from __future__ import annotations

import os

import pytest

from linkspan.learn import needs, play, sandbox
from linkspan.learn.lesson import LESSONS, Lesson, lessons

ALL = list(lessons().values())


def problems(one: Lesson) -> list[str]:
    """Return what is wrong with a lesson by every way through it; skip one that this kernel cannot do."""
    with sandbox.passing(f"test-needs-{os.getpid()}") as box:
        if lacking := needs.lacking(box, one.data.needs):
            pytest.skip(f"this machine lacks {lacking[0].what}")
    return list(play.problems(LESSONS / f"{one.number:02}-{one.name}"))


def explained(one: Lesson) -> tuple[str, str]:
    """Return what the trace finds at a lesson's beginning, and after its solution; '' if all is well."""
    with sandbox.passing(f"test-trace-{os.getpid()}") as box:
        play.begin(box, one)
        before = play.explained(box, one)
        box.script(one.data.solutions[0])
        play.settled(box, one)
        return before, play.explained(box, one)
