"""scripts/retry.py: the second try of tests that failed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "retry.py"
ALONE = SCRIPT.with_name("alone.py")
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
    mark = pathlib.Path("measured")
    ran, _ = mark.exists(), mark.touch()
    assert ran
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
    ran(folder, ALONE, ".")
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


def test_the_steps_before_a_step_before_run_again_too(tmp_path: Path) -> None:
    """A step may need a fixture that the failed test does not use, and which earlier steps have changed."""
    steps = """
import pathlib, pytest
@pytest.fixture(scope="module")
def cluster(): return []
@pytest.fixture(scope="module")
def made(): return []
def test_builds(cluster): cluster.append(1)
def test_makes(cluster, made):
    assert cluster
    made.append(1)
def test_looks(made):
    mark = pathlib.Path("looked")
    ran, _ = mark.exists(), mark.touch()
    assert made and ran
"""
    done = whole_run(tmp_path, steps)
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout


def test_a_failed_test_that_is_not_found_again_fails_the_run(tmp_path: Path) -> None:
    """Its name is another one each time, so nobody knows whether it would pass."""
    nameless = """
@pytest.mark.parametrize("number", [1], ids=[f"by-{pathlib.Path('ran-0').exists()}"])
def test_fails(number): assert False
"""
    done = whole_run(tmp_path, FLAKY.format(count=1) + nameless)
    assert done.returncode == 1, done.stdout
    assert "1 passed" in done.stdout
    assert "passed alone" not in done.stdout
    assert done.stderr.splitlines()[-1] == "  test_it.py::test_fails[by-False]"


def test_all_tests_of_a_file_that_could_not_be_read_run_again(tmp_path: Path) -> None:
    """Its own name is what pytest calls failed."""
    unread = """
import pathlib
mark = pathlib.Path("read")
ran, _ = mark.exists(), mark.touch()
assert ran
def test_passes(): pass
def test_passes_too(): pass
"""
    (tmp_path / "test_it.py").write_text(unread)
    assert ran(tmp_path, "-m", "pytest", "--cache-clear").returncode == 2
    done = ran(tmp_path, SCRIPT)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout
    assert done.stdout.splitlines()[-1] == "  test_it.py"


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


def test_a_test_that_has_the_machine_to_itself_gets_a_second_try_too(tmp_path: Path) -> None:
    """Another machine on the same hardware may have been busy."""
    done = whole_run(tmp_path, FLAKY.format(count=1) + MEASURES)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout
    listed = ["  test_it.py::test_fails_at_first[0]", "  test_it.py::test_measures"]
    assert done.stdout.splitlines()[-2:] == listed


def test_a_run_that_failed_without_a_failed_test_is_no_success(tmp_path: Path) -> None:
    """The reason is in pytest's own output."""
    done = ran(tmp_path, SCRIPT)
    assert done.returncode == 1
    assert "names no failed test" in done.stderr
