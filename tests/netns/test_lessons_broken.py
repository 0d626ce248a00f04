"""Lessons that begin with a fault, on the real kernel: found by `explain`, and repaired in every way."""

from __future__ import annotations

import pytest

from linkspan.learn.lesson import Lesson
from support.netns.played_lessons import ALL, problems

BROKEN = [one for one in ALL if one.data.fault]


@pytest.mark.parametrize("one", BROKEN, ids=lambda one: one.name)
def test_solutions_pass_and_explain_finds_the_fault(one: Lesson) -> None:
    """Wrong answers do not pass; a trace says at the beginning what is broken, and after the repair that nothing is."""
    assert problems(one) == []
