"""Finished English sentences in the reader's language: of traces and checks, and of the lessons' errors."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from linkspan.core.translation import parsed

LOCALE = Path(__file__).with_name("locale")
LONGEST = 1000
"""Characters of a sentence, at most: a longer one has somebody's text in it, and patterns would take long."""
REMEMBERED = 4096
"""Translations that are kept: a page's server translates the same problems at each reading."""
_VALUE = re.compile(r"\{(\w+)\}")


class Sentences:
    """Finished sentences in one language: a call translates one, and leaves what it does not know in English."""

    def __init__(self, language: str) -> None:
        self._language = language

    def __call__(self, text: str) -> str:
        """Return a sentence in this language."""
        return text if self._language == "en" or len(text) > LONGEST else _translated(self._language, text)


@functools.lru_cache(REMEMBERED)
def _translated(language: str, text: str) -> str:
    """Return a sentence in a language. It is compared with hundreds of patterns, so the last ones are remembered."""
    for pattern, translated in _patterns(LOCALE / f"{language}.po"):
        if found := pattern.fullmatch(text):
            values = found.groupdict().items()
            told = {name: _translated(language, value) if name.startswith("why") else value for name, value in values}
            return translated.format(**told)
    return text


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
