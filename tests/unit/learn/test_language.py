"""The interface's languages: which is chosen, and whether the translations are complete and current."""

from __future__ import annotations

import ast
import string
from collections.abc import Iterator
from pathlib import Path

import pytest

import linkspan
from linkspan.core.errors import Invalid
from linkspan.learn.language import LANGUAGES, LOCALE, Words, chosen, parsed

SOURCE = Path(linkspan.__file__).parent
CLI = ("learn", "lesson_session", "exam")
TRANSLATED = [language for language in LANGUAGES if language != "en"]


def strings() -> Iterator[str]:
    """Yield the strings that the code passes to `words(...)`."""
    for path in (*(SOURCE / "learn").glob("*.py"), *(SOURCE / "cli" / f"{name}.py" for name in CLI)):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("words", "self._words"):
                first = node.args[0]
                assert isinstance(first, ast.Constant), f"{path}:{node.lineno}: not a string: nobody can translate it"
                yield str(first.value)


def fields(text: str) -> set[str]:
    """Return the names in braces."""
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


@pytest.mark.parametrize("language", TRANSLATED)
def test_every_string_is_translated_and_no_translation_is_stale(language: str) -> None:
    """With the same names in braces, or a sentence would lack a value."""
    known = parsed((LOCALE / f"{language}.po").read_text(encoding="utf-8"))
    wanted = set(strings())
    assert len(wanted) > 20
    assert known.keys() == wanted
    assert {text: fields(text) for text in known} == {text: fields(other) for text, other in known.items()}


def test_every_language_has_a_file_and_every_file_a_language() -> None:
    """English is in the code."""
    assert {path.stem for path in LOCALE.iterdir()} == set(TRANSLATED)


@pytest.mark.parametrize(
    ("wanted", "kept", "locale", "language"),
    [
        ("zh", "en", {}, "zh"),
        ("", "zh", {"LANG": "en_US.UTF-8"}, "zh"),
        ("", "", {"LANG": "zh_CN.UTF-8"}, "zh"),
        ("", "", {"LC_ALL": "C", "LANG": "zh_CN.UTF-8"}, "en"),
        ("", "", {"LANG": "de_DE.UTF-8"}, "en"),
        ("", "", {}, "en"),
    ],
)
def test_the_wanted_language_counts_first_then_the_last_one_then_the_locale(
    wanted: str, kept: str, locale: dict[str, str], language: str
) -> None:
    """English where nothing says another one."""
    assert chosen(wanted, kept, locale) == language


def test_an_unknown_language_is_refused_with_the_known_ones() -> None:
    """The message names both."""
    with pytest.raises(Invalid, match="no language 'fr'") as caught:
        chosen("fr", "")
    assert "en or zh" in caught.value.hint


def test_a_po_file_is_read_as_gettext_reads_it() -> None:
    """Long strings are in parts, escapes are undone, comments and untranslated strings are left out."""
    text = '# c\nmsgid ""\nmsgstr "head\\n"\n\n#: x.py\nmsgid "a "\n"b"\nmsgstr "\\"c\\"\\n"\n"d"\n'
    text += '\nmsgid "e"\nmsgstr ""\n'
    assert parsed(text) == {"a b": '"c"\nd'}


def test_words_are_filled_in_and_stay_english_without_a_translation() -> None:
    """A string that is new in the code is better than none."""
    words = Words("zh")
    assert words("Lesson {number}: {title}", number=3, title="x") == "第 3 课\uff1ax"
    assert words("brand new {x}", x=1) == "brand new 1"
