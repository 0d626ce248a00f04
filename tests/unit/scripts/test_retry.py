"""scripts/retry.py: the second try of tests that failed in the parallel run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "retry.py"
FLAKY = """
import pathlib, pytest
@pytest.mark.parametrize("number", range({count}))
def test_fails_at_first(number):
    mark = pathlib.Path(f"ran-{{number}}")
    ran, _ = mark.exists(), mark.touch()
    assert ran
"""
MEASURES = """
@pytest.mark.alone
def test_measures():
    pathlib.Path("measured").touch(exist_ok=False)
    assert False
"""


def ran(folder: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a Python program in a folder; pytest without its plugins, whose imports take longer than the tests."""
    few = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=folder, env=few, capture_output=True, text=True, check=False)


def whole_run(folder: Path, suite: str) -> subprocess.CompletedProcess[str]:
    """Run a suite that fails, in the two parts of scripts/test, and return the second try."""
    (folder / "test_it.py").write_text(suite)
    beside = ("-p", "xdist", "-n", "2", "--dist", "loadfile", "-m", "not alone", "--cache-clear")
    first = ran(folder, "-m", "pytest", *beside, "-q")
    assert first.returncode == 1, first.stdout
    ran(folder, "-m", "pytest", "-p", "no:cacheprovider", "-m", "alone", "test_it.py")
    return ran(folder, SCRIPT)


@pytest.mark.parametrize("count", [1, 3])
def test_tests_that_pass_alone_pass_the_run_and_are_listed(tmp_path: Path, count: int) -> None:
    """The run's last lines name each of them, and tests that passed are not run again, in the same file or others."""
    (tmp_path / "test_other.py").write_text("def test_passes(): pass\n")
    done = whole_run(tmp_path, FLAKY.format(count=count) + "def test_passes(): pass\n")
    assert done.returncode == 0, done.stdout
    assert f"{count} passed" in done.stdout
    listed = [f"  test_it.py::test_fails_at_first[{number}]" for number in range(count)]
    assert done.stdout.splitlines()[-count:] == listed


def test_a_step_is_tried_again_after_the_steps_before_it(tmp_path: Path) -> None:
    """Tests of a file may look at one lab in their order: alone, the second would find nothing."""
    steps = """
import pathlib, pytest
@pytest.fixture(scope="module", params=["one", "two"])
def made(request): return []
def test_makes(made): made.append(1)
def test_looks(made, request):
    mark = pathlib.Path(request.node.name)
    ran, _ = mark.exists(), mark.touch()
    assert made and (ran or "two" in request.node.name)
def test_comes_later(made): pass
def test_is_for_itself(): pass
"""
    done = whole_run(tmp_path, steps)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout
    assert done.stdout.splitlines()[-1] == "  test_it.py::test_looks[one]"


def test_a_test_that_fails_again_fails_the_run(tmp_path: Path) -> None:
    """A real failure beside a flaky test."""
    done = whole_run(tmp_path, FLAKY.format(count=1) + "def test_fails(): assert False\n")
    assert done.returncode == 1
    assert "1 failed, 1 passed" in done.stdout
    assert "passed alone" not in done.stdout


def test_four_failed_tests_fail_the_run_without_a_second_try(tmp_path: Path) -> None:
    """Four failures at a time are no accident of a busy machine."""
    done = whole_run(tmp_path, FLAKY.format(count=4))
    assert done.returncode == 1
    assert "4 tests failed; no second try" in done.stderr
    assert "passed" not in done.stdout


def test_a_test_that_has_the_machine_to_itself_gets_no_second_try(tmp_path: Path) -> None:
    """It failed without any other test beside it, which is its result."""
    done = whole_run(tmp_path, FLAKY.format(count=1) + MEASURES)
    assert (tmp_path / "measured").exists()
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
    assert "test_measures" not in done.stdout


def test_a_run_that_failed_without_a_failed_test_is_no_success(tmp_path: Path) -> None:
    """The reason is in pytest's own output."""
    done = ran(tmp_path, SCRIPT)
    assert done.returncode == 1
    assert "names no failed test" in done.stderr
