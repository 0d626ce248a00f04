"""Extensions: what installed packages add to linkspan, found by their entry points.

A package that cannot be loaded, or that brings what cannot be used, is left out and named: the rest must work.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def extended(group: str, own: T, extend: Callable[[T, Any], T]) -> tuple[T, dict[str, str]]:
    """Return linkspan's ``own`` with what each package adds, and the packages left out, each with the reason.

    ``extend`` returns the first with what one entry point of the group leads to.
    """
    left_out: dict[str, str] = {}
    for point in importlib.metadata.entry_points(group=group):
        try:
            own = extend(own, point.load())
        except Exception as error:  # noqa: BLE001 - whatever a package does wrong, linkspan goes on without it
            left_out[point.dist.name if point.dist is not None else point.name] = str(error)
    return own, left_out
