"""Lessons that begin with a fault, on the real kernel: found by `explain`, and repaired in every way."""

from __future__ import annotations

import pytest

from linkspan.learn.lesson import Lesson, numbered
from support.netns.played_lessons import ALL, explained, problems

BROKEN = [one for one in ALL if one.data.fault]


@pytest.mark.parametrize("one", BROKEN, ids=lambda one: one.name)
def test_solutions_pass_and_explain_finds_the_fault(one: Lesson) -> None:
    """Wrong answers do not pass; a trace at the beginning says what is broken."""
    assert problems(one) == []


@pytest.mark.parametrize("name", ["case-8", "case-9"])
def test_explain_finds_nothing_after_the_repair(name: str) -> None:
    """Its additions to a trace are gone, too: who else has the address, and why BIRD learns nothing."""
    assert explained(numbered(name))[1] == ""
