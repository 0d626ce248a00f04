"""scripts/alone.py: the tests that have the machine to themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "scripts" / "alone.py"
MEETS = """
import pathlib, time, pytest
@pytest.mark.alone
def test_meets():
    pathlib.Path({own!r}).touch()
    while not all(map(pathlib.Path.exists, map(pathlib.Path, {others!r}))):
        time.sleep(0.01)
def test_is_for_the_parallel_run(): assert False
"""
IN_TURN = """
import pathlib, pytest
@pytest.mark.alone
def test_runs_after_the_one_before():
    assert pathlib.Path({before!r}).exists()
    pathlib.Path({own!r}).touch(exist_ok=False)
"""


def ran(folder: Path, suites: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the script on these files; pytest without its plugins, whose imports take longer than the tests."""
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = alone")
    for name, text in suites.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    few = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    argv = [sys.executable, str(SCRIPT), "tests/agent", "tests/lab"]
    return subprocess.run(argv, cwd=folder, env=few, capture_output=True, text=True, check=False, timeout=60)


def test_files_that_wait_run_beside_the_others_and_those_one_after_the_other(tmp_path: Path) -> None:
    """Each file of the first three waits for the other two; tests without the marker do not run."""
    names = ("idle", "deaths", "healing")
    meets = {name: MEETS.format(own=name, others=names) for name in names}
    done = ran(
        tmp_path,
        {
            "tests/agent/test_idle.py": meets["idle"],
            "tests/lab/test_deaths.py": meets["deaths"],
            "tests/lab/test_soak.py": IN_TURN.format(before="deaths", own="soak"),
            "tests/agent/test_healing.py": meets["healing"],
            "tests/lab/test_lab_healing.py": IN_TURN.format(before="healing", own="lab"),
            "tests/lab/test_unmarked.py": "raise AssertionError('it need not be read')",
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("2 passed") == 2
    assert done.stdout.count("1 passed") == 1


def test_one_that_fails_beside_the_others_fails_the_run_and_says_why(tmp_path: Path) -> None:
    """Though all others pass."""
    fails = IN_TURN.format(before="nothing", own="it")
    passes = IN_TURN.format(before="pytest.ini", own="passed")
    done = ran(tmp_path, {"tests/agent/test_idle.py": fails, "tests/agent/test_healing.py": passes})
    assert done.returncode == 1
    assert "1 passed" in done.stdout
    assert "test_runs_after_the_one_before" in done.stdout
    assert "assert False" in done.stdout


def test_one_that_fails_among_the_others_fails_the_run(tmp_path: Path) -> None:
    """Though the files beside it pass."""
    fails = IN_TURN.format(before="nothing", own="it")
    passes = IN_TURN.format(before="pytest.ini", own="passed")
    done = ran(tmp_path, {"tests/agent/test_idle.py": passes, "tests/agent/test_healing.py": fails})
    assert done.returncode == 1
    assert "1 passed" in done.stdout
