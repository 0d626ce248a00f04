"""Finished English sentences in the reader's language: of traces and checks, and of the lessons' errors."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from linkspan.core.translation import parsed

LOCALE = Path(__file__).with_name("locale")
LONGEST = 1000
"""Characters of a sentence, at most: a longer one has somebody's text in it, and patterns would take long."""
_VALUE = re.compile(r"\{(\w+)\}")


class Sentences:
    """Finished sentences in one language: a call translates one, and leaves what it does not know in English."""

    def __init__(self, language: str) -> None:
        self._patterns = () if language == "en" else _patterns(LOCALE / f"{language}.po")

    def __call__(self, text: str) -> str:
        """Return a sentence in this language."""
        if len(text) > LONGEST:
            return text
        for pattern, translated in self._patterns:
            if found := pattern.fullmatch(text):
                values = found.groupdict()
                return translated.format(**{name: self._value(name, value) for name, value in values.items()})
        return text

    def _value(self, name: str, value: str) -> str:
        return self(value) if name.startswith("why") else value


@functools.cache
def _patterns(path: Path) -> tuple[tuple[re.Pattern[str], str], ...]:
    """Return the sentences of a .po file as patterns, in the file's order; {names} are values."""
    known = parsed(path.read_text(encoding="utf-8"))
    return tuple((re.compile(_pattern(text)), translated) for text, translated in known.items())


def _pattern(text: str) -> str:
    pieces = _VALUE.split(text)
    return "".join(
        f"(?P<{piece}>{_wide(piece)})" if place % 2 else re.escape(piece) for place, piece in enumerate(pieces)
    )


def _wide(name: str) -> str:
    return ".+?" if name.startswith(("why", "words")) else r"\S+?"
