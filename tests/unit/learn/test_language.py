"""The strings of the lessons' interface: the translations are complete and current."""

from __future__ import annotations

from pathlib import Path

import linkspan
from linkspan.learn.language import LOCALE
from support.catalogue import check, strings

SOURCE = Path(linkspan.__file__).parent
CLI = ("learn", "lesson_session", "exam")


def test_every_string_is_translated_and_no_translation_is_stale() -> None:
    """With the same names in braces, or a sentence would lack a value."""
    wanted = strings([*(SOURCE / "learn").glob("*.py"), *(SOURCE / "cli" / f"{name}.py" for name in CLI)])
    assert len(wanted) > 20
    check(LOCALE, wanted)
