"""The driver of learnt routes: when it looks for some although no speaker is wanted."""

from __future__ import annotations

import time
from typing import Any, cast

import pytest

from linkspan.core.states.host import HOST, LEARNT_METRIC
from linkspan.core.states.programs import LearntRoutes
from linkspan.kernel.drivers import learnt_routes
from linkspan.kernel.drivers.learnt_routes import ENDING, SELDOM, LearntDriver


def test_a_route_that_an_ending_speaker_adds_is_found_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only later does the driver look seldom: nobody is left who could add one."""
    now, there, looks = [100.0], list[str](), list[float]()

    def look(_sockets: object, _metric: int) -> list[str]:
        looks.append(now[0])
        return there

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(learnt_routes, "learnt_routes", look)
    monkeypatch.setattr(learnt_routes, "sweep", lambda _sockets, _routes: there.clear())
    driver = LearntDriver(cast("Any", None), lambda _process: None)
    wanted = LearntRoutes(LEARNT_METRIC, "bird", 60)
    driver.apply([wanted], [])
    driver.apply([], [wanted])
    assert list(driver.observe(HOST)) == []
    now[0] += 1
    there.append("a late route")
    (late,) = driver.observe(HOST)
    driver.apply([], [late])
    now[0] += ENDING + 1
    assert list(driver.observe(HOST)) == []
    looks.clear()
    now[0] += SELDOM - 1
    assert list(driver.observe(HOST)) == []
    assert looks == []
