"""linkspan's own modules are run from any folder, also from one that a stranger fills."""

import re
import subprocess
from pathlib import Path

import pytest

import linkspan
from linkspan.core.own_command import own_command, own_environment


def test_a_stranger_s_folder_is_not_looked_in(tmp_path: Path) -> None:
    """`sudo linkspan` in /tmp does not run another user's /tmp/linkspan."""
    (tmp_path / "linkspan").mkdir()
    (tmp_path / "linkspan" / "__init__.py").write_text("raise SystemExit('STRANGER')")
    argv = [*own_command(), "version"]
    done = subprocess.run(argv, cwd=tmp_path, env=own_environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_module_is_run_that_way() -> None:
    """No other place writes down how Python finds linkspan; etcd's unit runs in the root folder."""
    source = Path(linkspan.__file__).parent
    again = re.compile(r"-m\W+linkspan\b|sys\.executable, \"-c\"")
    found = [file.name for file in source.rglob("*.py") if again.search(file.read_text(encoding="utf-8"))]
    assert found == []


def test_a_relative_pythonpath_still_leads_to_the_same_folders(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An empty part would be the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "src::/opt/x")
    assert own_environment()["PYTHONPATH"] == f"{tmp_path}/src:/opt/x"
