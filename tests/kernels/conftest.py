"""Every test in this folder runs on Debian's kernel, inside a virtual machine that is booted once for all of them.

They are ordinary tests. Outside, pytest only collects them; at the first one's turn the machine boots and runs
pytest once more, inside, on all that were collected; each test's reports are then given out as they came
from there. A fork costs much inside (a third of a second for a command): what can be done in this process should be.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.kernels import virtual_machine
from support.kernels.virtual_machine import REPORTS, Told

HERE = Path(__file__).parent

_told = pytest.StashKey[Told]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the first test the time in which all of them run."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.timeout(virtual_machine.SECONDS + 60))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> object:
    """Give out what came from inside; where the kernel cannot be had, skip. Asked for each test of all folders."""
    if REPORTS in os.environ or not item.path.is_relative_to(HERE) or item.get_closest_marker("skip"):
        return None
    told = _from_inside(item.session)
    if told.missing:
        item.add_marker(pytest.mark.skip(reason=told.missing))
        return None
    found = [_restored(item.config, data) for data in told.reports.get(item.nodeid, [])]
    if not any(report.when == "teardown" for report in found):
        said = f"it did not end inside; the machine said:\n{told.said}"
        found.append(pytest.TestReport(item.nodeid, item.location, {}, "failed", said, "call"))
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in found:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _restored(config: pytest.Config, data: dict[str, Any]) -> pytest.TestReport:
    """Return a report from its serial form; JSON makes lists of tuples."""
    if isinstance(data["longrepr"], list):
        data["longrepr"] = tuple(data["longrepr"])
    report = config.hook.pytest_report_from_serializable(config=config, data=data)
    assert isinstance(report, pytest.TestReport)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Inside, write each report down."""
    report = yield
    if path := os.environ.get(REPORTS):
        data = item.config.hook.pytest_report_to_serializable(config=item.config, report=report)
        with open(path, "a") as file:
            file.write(json.dumps(data) + "\n")
    return report


def _from_inside(session: pytest.Session) -> Told:
    """Return what all tests told: the first one's question boots. Beside others one worker has all of them."""
    if _told not in session.stash:
        tests = [item.nodeid for item in session.items if item.path.is_relative_to(HERE)]
        session.stash[_told] = virtual_machine.run(session.config.rootpath, tests)
    return session.stash[_told]
