"""Width of text on a terminal, in cells: a Chinese character takes two, a combining mark none."""

from __future__ import annotations

import unicodedata


def cells(text: str) -> int:
    """Return how many cells a text takes (Unicode Standard Annex 11: wide and fullwidth characters take two)."""
    return len(text) if text.isascii() else sum(map(_cells_of, text))


def padded(text: str, width: int) -> str:
    """Return the text with spaces up to ``width`` cells, as str.ljust does for characters."""
    return text + " " * (width - cells(text))


def cut(text: str, room: int) -> int:
    """Return how many of the text's first characters fit into ``room`` cells, at least one."""
    used = 0
    for number, character in enumerate(text):
        used += _cells_of(character)
        if used > room:
            return max(number, 1)
    return len(text)


def _cells_of(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
