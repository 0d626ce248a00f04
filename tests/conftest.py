"""Shared by all tests: root where it is needed, an account of skipped tests, and one of workers that died."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

TESTS = Path(__file__).parent

ROOTLESS = [TESTS / name for name in ("unit", "store")]
"""What needs root in them has the marker ``root``; in the other folders every test has it."""

KERNELS = "tests/kernels/"

UNEXPECTED_SKIPS = 10
"""Exit code of a whole run in CI that skipped other tests than expected (pytest itself uses 0 to 5)."""

LONG = {
    "runtimes/test_docs.py", "runtimes/test_package.py", "netns/test_lessons.py", "lab/test_trace_faults.py",
    "lab/test_voters.py", "lab/test_restore.py", "store/test_upkeep.py",
}  # fmt: skip
"""Files that take several minutes: the last one to begin would leave one worker alone with it."""

ENDS = {"runtimes": 0.65, "lab": 0.65, "agent": 0.7, "netns": 0.7, "cni": 0.8, "store": 0.8, "unit": 1.0}
"""By folder: the part of a whole run's files after which its last one begins. Short files fill up the end."""

WORKER_DIED = 11
"""Exit code of a run in which a test ended its worker's process: the tests that the worker had left did not run."""

_died = pytest.StashKey[bool]()
_tests = itertools.count(1)


def pytest_configure(config: pytest.Config) -> None:
    """Let processes be copied (tests/support/copies.py), and let examples of Hypothesis take their time.

    Python warns of copies from 3.12 on if there are threads: here they only move what tests report. A busy machine
    stops an example for longer than Hypothesis' deadline. What a user keeps (lessons, their language) is no matter of
    the tests: what programs keep between two starts is in a folder that goes at the end.
    """
    kept = tempfile.TemporaryDirectory(prefix="lks")
    config.add_cleanup(kept.cleanup)
    os.environ["XDG_STATE_HOME"] = kept.name
    hypothesis.settings.register_profile("shared", deadline=None)
    hypothesis.settings.load_profile("shared")
    config.addinivalue_line("filterwarnings", "ignore:.*multi-threaded, use of fork:DeprecationWarning")


@pytest.fixture(autouse=True)
def own_state() -> Iterator[None]:
    """Let no test find what another one kept.

    The fixture ``monkeypatch`` would be undone after all others then, and those may need what a test has replaced.
    """
    with pytest.MonkeyPatch.context() as replaced:
        replaced.setenv("XDG_STATE_HOME", f"{os.environ['XDG_STATE_HOME']}/{next(_tests)}")
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item], config: pytest.Config) -> None:
    """Mark what needs root, and skip it, with the reason, where there is none; let folders take turns."""
    if hasattr(config, "workerinput"):
        places = _in_turn([item.path for item in items])
        items.sort(key=lambda item: places[item.path])
    needs_root = pytest.mark.skip(reason="needs root: sudo scripts/test")
    for item in items:
        if not any(item.path.is_relative_to(folder) for folder in ROOTLESS):
            item.add_marker(pytest.mark.root)
        if os.geteuid() != 0 and item.get_closest_marker("root"):
            item.add_marker(needs_root)


def _in_turn(paths: Iterable[Path]) -> dict[Path, float]:
    """Return the files' places in a run of several workers.

    A test of a lab mostly waits, and a unit test computes. If files of all folders run at the same time, the machine
    does not wait, too.
    """
    folders: dict[str, dict[Path, None]] = {}
    for path in paths:
        folders.setdefault(path.relative_to(TESTS).parts[0], {})[path] = None
    places = {path: -1.0 for paths in folders.values() for path in paths if str(path.relative_to(TESTS)) in LONG}
    for folder, files in folders.items():
        for number, path in enumerate(files):
            places.setdefault(path, ENDS.get(folder, 0.0) * number / len(files))
    return places


def _expected() -> tuple[set[str], set[str]] | None:
    """Return the tests that are skipped and those that may be, or None where nobody asks.

    scripts/test asks, for whole runs. A line that begins with ? is of a test that some machines can run, or, where
    it ends with /, of all tests in that folder.
    """
    path = os.environ.get("LINKSPAN_EXPECTED_SKIPS")
    if not path:
        return None
    lines = [line.split("#", 1)[0].strip() for line in Path(path).read_text().splitlines()]
    certain = {line for line in lines if line and not line.startswith("?")}
    return certain, {line.removeprefix("?").strip() for line in lines if line.startswith("?")}


def _skipped(config: pytest.Config, possible: set[str]) -> set[str]:
    """Return the tests that were skipped, without those that may be."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    assert reporter is not None
    folders = tuple(line for line in possible if line.endswith("/"))
    skipped = {report.nodeid for report in reporter.stats.get("skipped", [])}
    return {test for test in skipped - possible if not test.startswith(folders)}


def _asked(config: pytest.Config, tests: set[str]) -> set[str]:
    """Return those of the tests that the command line names and does not leave out by a marker or a word."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    assert reporter is not None
    named = tests - {item.nodeid for item in reporter.stats.get("deselected", [])}
    places = [argument.partition("::")[0] for argument in config.args]
    return {test for test in named if any(Path(test.partition("::")[0]).is_relative_to(place) for place in places)}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where each file is one worker's, make the folder for the other kernel one worker's, too.

    All its tests run in one virtual machine. Whoever has one of its files waits for it, and runs nothing meanwhile.
    """
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]  # a plug-in that may be missing

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = str(super()._split_scope(nodeid))
            return KERNELS if file.startswith(KERNELS) else file

    return Scheduling(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(sched: Any) -> None:
    """Remember that a worker died; xdist names its test."""
    sched.config.stash[_died] = True


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail a run whose worker died, and a whole run in CI where other tests were skipped than the expected ones.

    The exit codes are their own, because no second try of failed tests (scripts/retry.py) makes up for it.
    """
    if session.config.stash.get(_died, False):
        session.exitstatus = WORKER_DIED
        return
    expected = _expected()
    if expected is None or not os.environ.get("CI") or hasattr(session.config, "workerinput"):
        return
    certain, possible = expected
    finished = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    if finished and _skipped(session.config, possible) != _asked(session.config, certain):
        session.exitstatus = UNEXPECTED_SKIPS


def _tell_longest_files(reporter: pytest.TerminalReporter, most: int) -> None:
    """Say which files took the longest: a file is one worker's, so LONG names those that must begin early."""
    seconds: dict[str, float] = {}
    for reports in reporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                file = report.nodeid.partition("::")[0]
                seconds[file] = seconds.get(file, 0.0) + report.duration
    reporter.section(f"slowest {most} files")
    for file, took in sorted(seconds.items(), key=lambda one: -one[1])[:most]:
        reporter.line(f"{took:.0f} s {file}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say which files took the longest, which skips were not expected, and which expected ones did not come."""
    if most := config.getoption("durations"):
        _tell_longest_files(terminalreporter, most)
    expected = _expected()
    if expected is None:
        return
    certain, possible = expected
    certain = _asked(config, certain)
    skipped = _skipped(config, possible)
    if skipped == certain:
        return
    terminalreporter.section(f"{len(skipped)} skipped, and tests/expected-skips lists {len(certain)}")
    for nodeid in sorted(skipped - certain):
        terminalreporter.line(f"skipped, but not listed: {nodeid}")
    for nodeid in sorted(certain - skipped):
        terminalreporter.line(f"listed, but not skipped: {nodeid}")
