"""Lessons played on the real kernel."""

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
