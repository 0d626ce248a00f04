"""Lessons with several hosts, on the real kernel: every way through each of them."""

from __future__ import annotations

import pytest

from linkspan.learn.lesson import Lesson
from support.netns.played_lessons import ALL, problems


@pytest.mark.parametrize("one", [one for one in ALL if 12 <= one.number <= 23], ids=lambda one: one.name)
def test_solutions_pass_and_nothing_and_wrong_answers_do_not(one: Lesson) -> None:
    """Both solutions pass; a wrong answer is recognised by its own sign; `explain` sees the solution."""
    assert problems(one) == []
