"""Languages of the interface: English strings in the code, and translations from gettext's .po files."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path

from linkspan.core.errors import Invalid

LANGUAGES = ("en", "zh")
_ENTRY = re.compile(r'(msgid|msgstr) ((?:"(?:[^"\\]|\\.)*"\s*)+)')
_PART = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ESCAPES = {"n": "\n", "t": "\t"}


class Translation:
    """One part of the interface in one language: a call translates a string and fills in its {names}.

    ``locale`` is the folder with the part's own .po files.
    """

    def __init__(self, language: str, locale: Path) -> None:
        self.language = language
        self._known = {} if language == "en" else _catalogue(locale / f"{language}.po")

    def __call__(self, text: str, /, **values: object) -> str:
        """Return the string in this language; in English if there is no translation."""
        return self._known.get(text, text).format(**values)


def chosen(wanted: str, kept: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return the language: the wanted one, else the one used before, else that of the locale, else English.

    Raises Invalid if the wanted one is unknown.
    """
    if wanted:
        if wanted not in LANGUAGES:
            raise Invalid(f"there is no language {wanted!r}", f"choose {' or '.join(LANGUAGES)}")
        return wanted
    if kept in LANGUAGES:
        return kept
    locale = next((environment[name] for name in ("LC_ALL", "LC_MESSAGES", "LANG") if environment.get(name)), "")
    return next((one for one in LANGUAGES if locale.startswith(one)), "en")


@functools.cache
def _catalogue(path: Path) -> dict[str, str]:
    return parsed(path.read_text(encoding="utf-8"))


def parsed(text: str) -> dict[str, str]:
    """Return the translations of a .po file by the English string; the empty ones are left out.

    Plural forms and contexts are not read, because the interface has none.
    """
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    found, key = {}, ""
    for word, quoted in _ENTRY.findall(lines):
        value = "".join(map(_unescaped, _PART.findall(quoted)))
        if word == "msgid":
            key = value
        elif key and value:  # the one with an empty key is the file's head
            found[key] = value
    return found


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", lambda found: _ESCAPES.get(found[1], found[1]), text)
