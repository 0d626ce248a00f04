"""The package of one version in a folder, from where an agent can run instead of from what is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

import linkspan

ROOT = Path(__file__).parents[2]
BEFORE = "b7a1b2c883e2e1b0d8d980462b0980b950750d58"
"""The release before this one, 0.1.0: its package has no folders, and each kind of state many places."""
FLAT = "machine.py"
"""A file of that version's package that this version's lacks."""


def _archive(commit: str) -> bytes:
    """Return the package of a commit as a tar file, or skip the test where the checkout has no history."""
    if not shutil.which("git"):
        pytest.skip("no git: the version before cannot be had")
    command = ["git", "-C", str(ROOT), "archive", commit, "src/linkspan"]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"no history: the version before cannot be had: {done.stderr.decode().strip()}")
    return done.stdout


class Installed:
    """A folder that has the package of one version: named in PYTHONPATH, it comes before what is installed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.package = folder / "linkspan"

    def command(self) -> tuple[str, ...]:
        """Return how to start this version's command line."""
        return "env", f"PYTHONPATH={self.folder}", sys.executable, "-P", "-m", "linkspan.cli.main"

    def before(self) -> None:
        """Have the version before this one."""
        shutil.rmtree(self.package, ignore_errors=True)
        with tarfile.open(fileobj=BytesIO(_archive(BEFORE))) as files:
            files.extractall(self.folder, filter="data")
        (self.folder / "src" / "linkspan").rename(self.package)
        assert (self.package / FLAT).exists()

    def now(self) -> None:
        """Have this version, at the same place."""
        shutil.rmtree(self.package)
        shutil.copytree(Path(linkspan.__file__).parent, self.package)
        assert not (self.package / FLAT).exists()
