"""The interface's languages: which is chosen, and how a catalogue is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from linkspan.core.errors import Invalid
from linkspan.core.translation import Translation, chosen, parsed


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


def test_words_are_filled_in_and_stay_english_without_a_translation(tmp_path: Path) -> None:
    """A string that is new in the code is better than none."""
    (tmp_path / "zh.po").write_text('msgid "Lesson {number}: {title}"\nmsgstr "第 {number} 课\uff1a{title}"\n')
    words = Translation("zh", tmp_path)
    assert words("Lesson {number}: {title}", number=3, title="x") == "第 3 课\uff1ax"
    assert words("brand new {x}", x=1) == "brand new 1"
