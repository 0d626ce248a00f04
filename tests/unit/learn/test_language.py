"""The strings of the lessons' interface: the translations are complete and current."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import linkspan
from linkspan.cli.main import commands
from linkspan.learn.language import LOCALE
from support.catalogue import check, strings

SOURCE = Path(linkspan.__file__).parent
CLI = ("learn", "lesson_session", "exam", "reader_language")


def helps(command: Any) -> set[str]:
    """Return the texts of the help of a command, and of all below it."""
    own = {str(text) for one in (command, *command.params) if (text := one.help)}
    return own.union(*map(helps, getattr(command, "commands", {}).values()))


def test_every_string_is_translated_and_no_translation_is_stale() -> None:
    """With the same names in braces, or a sentence would lack a value."""
    paths = [*(SOURCE / "learn").glob("*.py"), *(SOURCE / "cli" / f"{name}.py" for name in CLI)]
    told = helps(commands("learn").commands["learn"])
    assert len(told) > 20
    check(LOCALE, strings(paths, dynamic="text") | told)
