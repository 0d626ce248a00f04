"""Extensions of linkspan by installed packages, found by their entry points.

A package that cannot be loaded, or whose extension is invalid, is left out and named: everything else must
work.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def extended(group: str, own: T, extend: Callable[[T, Any], T]) -> tuple[T, dict[str, str]]:
    """Return linkspan's ``own`` with each package's extension, and the packages left out, each with the reason.

    ``extend`` adds what one entry point of the group leads to, and returns the result.
    """
    left_out: dict[str, str] = {}
    for point in importlib.metadata.entry_points(group=group):
        try:
            own = extend(own, point.load())
        except Exception as error:  # noqa: BLE001 - whatever a package does wrong, linkspan continues without it
            left_out[point.dist.name if point.dist is not None else point.name] = str(error)
    return own, left_out
