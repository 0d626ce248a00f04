"""ARCHITECTURE.md names what is in the project."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PLACES = (ROOT, ROOT / "src" / "linkspan", ROOT / "tests")
"""Where a path on a page may begin."""
PLACEHOLDERS = {"NAME", "KIND", "GROUP"}
"""Parts of a path that stand for a name of the reader's own."""


def _paths(page: str) -> set[str]:
    """Return the files and the folders that a page has in backticks, folders with a slash at their end."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"`((?:[\w.-]+/)+|(?:[\w.-]+/)*[\w-]+\.(?:py|md|c))`", text)
    return {path for path in found if not PLACEHOLDERS & set(re.split(r"\W|_", path))}


@pytest.mark.parametrize("page", ["ARCHITECTURE.md"])
def test_every_path_on_a_page_exists(page: str) -> None:
    """A path in backticks leads to a file or folder of the project, of its sources or of its tests."""
    paths = _paths(page)
    assert paths
    assert {path for path in paths if not any((place / path).exists() for place in PLACES)} == set()
