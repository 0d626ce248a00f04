"""Fixtures of the tests in labs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.lab.lab_runs import LabRun


@pytest.fixture
def lab() -> Iterator[LabRun]:
    """Give the name of a lab, which is taken down at the end."""
    found = LabRun()
    yield found
    found.run("down")


@pytest.fixture(scope="module")
def hosts() -> Iterator[LabRun]:
    """Give a lab of three hosts on two segments that share nothing, with two stacks and four containers."""
    found = LabRun()
    try:
        found.run("up", "--backend bridge --hosts 3 --segments 2 --underlay dual --containers-per-host 1")
        yield found
    finally:
        found.run("down")
