"""The package outside the tree, installed into a folder."""

from __future__ import annotations

import shutil
from pathlib import Path

PACKAGE = "lsy_overlay"


def install(folder: Path) -> None:
    """Put the package and what pip would write about it into a folder that is to be on a Python's path."""
    source = Path(__file__).parent / "outside" / PACKAGE
    shutil.copytree(source, folder / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    info = folder / f"{PACKAGE}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[linkspan.kinds]\noverlay = {PACKAGE}.drivers:KINDS\n\n"
        f"[linkspan.backends]\noverlay = {PACKAGE}.backend:BACKEND\n"
    )
