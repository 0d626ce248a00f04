"""Accounts of a run of scripts/test: skipped tests, and workers that died (tests/conftest.py)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[2] / "conftest.py"
SUITE = "import pytest\ndef test_runs(): pass\ndef test_skips(): pytest.skip('no such kernel')\n"


def in_ci(
    folder: Path, suite: str, expected: str, *words: str, of: str = "unit"
) -> subprocess.CompletedProcess[str]:
    """Run a suite, in a folder for which no root is needed, as CI does; ``of`` is what the command line names."""
    (folder / "unit").mkdir()
    (folder / "unit" / "test_it.py").write_text(suite)
    shutil.copy(CONFTEST, folder)
    (folder / "expected").write_text(expected)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words, of],
        cwd=folder,
        env={**os.environ, "CI": "true", "LINKSPAN_EXPECTED_SKIPS": str(folder / "expected")},
        capture_output=True,
        text=True,
        check=False,
    )


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
    done = in_ci(tmp_path, SUITE, expected)
    assert done.returncode == code, done.stdout
    assert ("listed" in done.stdout) is bool(code)
    assert "1 passed, 1 skipped" in done.stdout.splitlines()[-1]


def test_a_test_that_is_left_out_need_not_be_skipped(tmp_path: Path) -> None:
    """The part that has the machine to itself asks for the same list, and most of it is of the other tests' files."""
    expected = "unit/test_it.py::test_skips\nunit/test_other.py::test_skips\n"
    done = in_ci(tmp_path, SUITE, expected, "-k", "test_runs", of="unit/test_it.py")
    assert done.returncode == 0, done.stdout
    assert "1 passed, 1 deselected" in done.stdout.splitlines()[-1]


def test_unexpected_skips_count_in_a_run_with_failures(tmp_path: Path) -> None:
    """A failing test does not hide them: its second try alone would not notice them."""
    done = in_ci(tmp_path, SUITE + "def test_fails(): assert False\n", "")
    assert done.returncode == 10, done.stdout


def test_a_test_that_ends_its_worker_gets_no_second_try(tmp_path: Path) -> None:
    """The tests that the worker had left did not run; the run goes on in the other workers, and names the test."""
    suite = "import os\ndef test_dies(): os._exit(1)\ndef test_is_left(): pass\n"
    done = in_ci(tmp_path, suite, "", "-n1", "--dist=loadfile", "--max-worker-restart=0")
    assert done.returncode == 11, done.stdout
    assert "crashed while running 'unit/test_it.py::test_dies'" in done.stdout


def test_folders_take_turns_beside_each_other(tmp_path: Path) -> None:
    """Several workers begin with the long files, and then with the first ones of each folder."""
    for name in ("lab/test_a", "lab/test_b", "lab/test_voters", "unit/test_c", "unit/test_d"):
        file = tmp_path / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text("def test_it(): pass\n")
    shutil.copy(CONFTEST, tmp_path)
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", "--dist", "loadfile"]
    words += ["--no-loadscope-reorder", "-n", "1", "lab", "unit"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    ran = [line.split()[-1].partition(":")[0] for line in done.stdout.splitlines() if line.startswith("[gw0]")]
    assert [Path(name).stem for name in ran] == ["test_voters", "test_a", "test_c", "test_b", "test_d"], done.stdout
