"""The account of skipped tests that scripts/test asks for (tests/conftest.py)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[2] / "conftest.py"
SUITE = "import pytest\ndef test_runs(): pass\ndef test_skips(): pytest.skip('no such kernel')\n"


@pytest.mark.parametrize(
    ("expected", "code"),
    [
        ("# nothing\n", 10),
        ("unit/test_it.py::test_skips  # the kernel lacks it\n", 0),
        ("unit/test_it.py::test_skips\nunit/test_it.py::test_runs\n", 10),
        ("? unit/test_it.py::test_skips\n? unit/test_it.py::test_runs  # where the machine can\n", 0),
        ("? unit/  # all of the folder\n", 0),
        ("? other/\n", 10),
    ],
)
def test_a_whole_run_in_ci_fails_where_other_tests_are_skipped(tmp_path: Path, expected: str, code: int) -> None:
    """A skip that is not listed fails the run, and so does a listed one that did not come; both are named."""
    (tmp_path / "unit").mkdir()
    (tmp_path / "unit" / "test_it.py").write_text(SUITE)
    shutil.copy(CONFTEST, tmp_path)
    (tmp_path / "expected").write_text(expected)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "unit"],
        cwd=tmp_path,
        env={**os.environ, "CI": "true", "LINKSPAN_EXPECTED_SKIPS": str(tmp_path / "expected")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout
    assert ("listed" in done.stdout) is bool(code)
    assert "1 passed, 1 skipped" in done.stdout.splitlines()[-1]


def test_unexpected_skips_count_in_a_run_with_failures(tmp_path: Path) -> None:
    """A test that fails as well does not hide them: its second try alone would not notice them."""
    shutil.copy(CONFTEST, tmp_path)
    (tmp_path / "test_it.py").write_text(SUITE + "def test_fails(): assert False\n")
    (tmp_path / "expected").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "."],
        cwd=tmp_path,
        env={**os.environ, "CI": "true", "LINKSPAN_EXPECTED_SKIPS": str(tmp_path / "expected")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 10, done.stdout
