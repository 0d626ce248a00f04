"""Extensions of linkspan by installed packages, found by their entry points.

A package that cannot be loaded, or whose extension is invalid, is left out and named: everything else must
work.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def extended(group: str, own: T, extend: Callable[[T, Any], T]) -> tuple[T, dict[str, str]]:
    """Return linkspan's ``own`` with each package's extension, and the packages left out, each with the reason.

    ``extend`` adds what one entry point of the group leads to, and returns the result.
    """
    left_out: dict[str, str] = {}
    if not _named(group):
        return own, left_out
    from importlib.metadata import entry_points  # 1 MB, which an agent without extensions need not have

    for point in entry_points(group=group):
        try:
            own = extend(own, point.load())
        except Exception as error:  # noqa: BLE001 - whatever a package does wrong, linkspan continues without it
            left_out[point.dist.name if point.dist is not None else point.name] = str(error)
    return own, left_out


def _named(group: str) -> bool:
    """Return whether the file of an installed package names the group (Python's entry points specification)."""
    folders = (folder for folder in map(Path, sys.path) if folder.is_dir())
    files = (
        info / "entry_points.txt"
        for folder in folders
        for info in folder.iterdir()
        if info.name.endswith("-info")
    )
    try:
        return any(group.encode() in file.read_bytes() for file in files if file.is_file())
    except OSError:  # Python's own search skips what cannot be read
        return True
