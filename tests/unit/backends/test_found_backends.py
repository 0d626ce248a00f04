"""Backends of installed packages: known by their entry point, and left out and named where they are of no use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SHOW = """
from linkspan.backends import BACKENDS, CROSSING, PROBLEMS
print(*BACKENDS, sep=" "); print(*CROSSING, sep=" "); print(*PROBLEMS, sep="; ")
"""
SPARE = """
from linkspan.backends.routed import RoutedBackend

class Spare(RoutedBackend):
    name = {name!r}

BACKEND = Spare()
"""


def _shown(folder: Path, text: str) -> list[str]:
    """Return what a Python says of its backends in which a package with this module is installed."""
    (folder / "lsx_spare.py").write_text(text)
    info = folder / "lsx_spare-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lsx-spare\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[linkspan.backends]\nspare = lsx_spare:BACKEND\n")
    path = os.pathsep.join([str(folder), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", SHOW], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path}
    )
    return done.stdout.splitlines()


def test_a_backend_of_an_installed_package_is_one_of_all(tmp_path: Path) -> None:
    """It is one class of a few lines, and networks can cross hosts by it."""
    names, crossing, problems = _shown(tmp_path, SPARE.format(name="spare"))
    assert "vxlan" in names.split()
    assert "spare" in names.split()
    assert "spare" in crossing.split()
    assert problems == ""


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("import lsx_nowhere", "No module named 'lsx_nowhere'"),
        (SPARE.format(name="vxlan"), "backend vxlan exists already"),
    ],
)
def test_a_package_whose_backend_is_of_no_use_is_left_out_and_named(tmp_path: Path, text: str, why: str) -> None:
    """The other backends are there."""
    names, _, problems = _shown(tmp_path, text)
    assert names.split().count("vxlan") == 1
    assert "spare" not in names.split()
    assert problems == f"the backend of package lsx-spare is not loaded: {why}"
