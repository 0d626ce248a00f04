"""Table layout for narrow terminals: pure, from cells to lines.

It uses the first of three forms that fits: every cell on one line; long cells wrapped between words, in
columns of at least a readable width; or wide columns removed from the table, the last first, and written
below each row with their names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from linkspan.core.cells import cells as width_of
from linkspan.core.cells import cut, padded

GAP = 2
READABLE = 32
"""Cells: smallest readable width of a column of sentences."""
NARROW = 9
"""Cells: removing a narrower column gains little."""
LONGEST = 160
"""Characters of a word, and cells of padding: a key of the store may have thousands, and JSON shows it whole."""
_END = 40
"""Characters of a shortened word after the dots: the end of a key may tell it from others."""
INDENT = "    "
_BREAKS = "/,>-.:"
"""Characters after which a word longer than its column is preferably broken."""
_WIDE = "\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6"
_OPENING, _CLOSING = "\u300a\u300c\uff08\u201c", "\u3001\u3002\u300b\u300d\uff01\uff09\uff0c\uff1a\uff1b\uff1f\u201d"
_PIECE = re.compile(f"[{_OPENING}]*(?:[{_WIDE}]|[^{_WIDE}{_OPENING}{_CLOSING}]+)[{_CLOSING}]*|.")
"""A part of a word that is not broken. Chinese has no spaces: a line may end after each character, but no line begins
with a closing mark or ends with an opening one."""


def laid_out(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Return the table's lines, the header first, none longer than ``width`` cells if possible."""
    kept = list(range(len(columns)))
    cells = [list(columns), *rows]
    natural = [max(width_of(row[n]) for row in cells) for n in range(len(columns))]
    words = [_longest_word(row[n] for row in cells) for n in range(len(columns))]
    least = [min(natural[n], max(READABLE, words[n])) for n in range(len(columns))]
    least[0] = min(least[0], max(width, 1))  # it is kept, whatever is in it
    while len(kept) > 1 and _sum(least, kept) > width:
        kept.remove(max(kept[1:], key=lambda n: (least[n] > NARROW, n)))  # never the first column, which names the row
    widths = _shared(natural, least, kept, width)
    lines = _row(columns, kept, widths)
    below = [n for n in range(len(columns)) if n not in kept]
    names = max((width_of(columns[n]) for n in below), default=0)
    for row in rows:
        lines += _row(row, kept, widths)
        for n in below:
            if row[n] not in ("", "-"):
                start = f"{INDENT}{padded(columns[n], names)}{' ' * GAP}"
                lines += wrapped(row[n], width, start, " " * width_of(start))
    return lines


def plain(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the table's lines, the header first, one for each row; a cell of more than LONGEST cells sticks out."""
    cells = [[name.upper() for name in columns], *rows]
    widths = [min(max(width_of(row[n]) for row in cells), LONGEST) for n in range(len(columns))]
    lines = ([padded(cell, width) for cell, width in zip(row, widths, strict=True)] for row in cells)
    return [(" " * GAP).join(line).rstrip() for line in lines]


def shortened(text: str) -> str:
    """Return a text in which words of more than LONGEST characters have dots instead of their middle."""
    if len(text) <= LONGEST:
        return text
    start = LONGEST - _END - 3
    return " ".join(
        f"{word[:start]}...{word[-_END:]}" if len(word) > LONGEST else word for word in text.split(" ")
    )


def wrapped(text: str, width: int, first: str = "", later: str = "") -> list[str]:
    """Return a text as lines that break between words, each with its start; a longer word is broken itself."""
    room = max(width - max(width_of(first), width_of(later)), 1)
    parts = [part for word in text.split(" ") for part in _pieces(word, room)]
    lines, line = [], ""
    for part, glued in parts:
        joined = f"{line}{part}" if glued or not line else f"{line} {part}"
        if line and width_of(joined) > room:
            lines.append(line)
            line = part
        else:
            line = joined
    lines.append(line)
    return [f"{later if number else first}{text}".rstrip() for number, text in enumerate(lines)]


def _pieces(word: str, room: int) -> list[tuple[str, bool]]:
    """Return the parts between which a line may end; each with whether it continues the one before without a space."""
    if word.isascii():
        return _parts(word, room)
    pieces = [part for piece in _PIECE.findall(word) for part, _ in _parts(piece, room)]
    return [(piece, bool(number)) for number, piece in enumerate(pieces)]


def _parts(word: str, room: int) -> list[tuple[str, bool]]:
    """Return a word in parts of at most ``room`` cells; each with whether it continues the one before."""
    found: list[tuple[str, bool]] = []
    while width_of(word) > room:
        most = cut(word, room)
        end = max((word.rfind(mark, 0, most) for mark in _BREAKS), default=-1) + 1
        end = end if end > most // 2 else most
        found.append((word[:end], bool(found)))
        word = word[end:]
    return [*found, (word, bool(found))]


def _longest_word(cells: Iterable[str]) -> int:
    return max((width_of(word) for cell in cells for word in cell.split()), default=0)


def _sum(widths: Sequence[int], kept: Sequence[int]) -> int:
    return sum(widths[n] for n in kept) + GAP * (len(kept) - 1)


def _shared(natural: Sequence[int], least: Sequence[int], kept: Sequence[int], width: int) -> dict[int, int]:
    """Return each column's width: free space goes to the columns that are narrower than they need."""
    found = {n: least[n] for n in kept}
    over = width - _sum(least, kept)
    for n in sorted(kept, key=lambda n: natural[n] - least[n]):
        wanting = [m for m in kept if found[m] < natural[m]]
        if not wanting or over <= 0:
            break
        if n in wanting:
            more = min(natural[n] - found[n], over // len(wanting))
            found[n] += more
            over -= more
    return found


def _row(row: Sequence[str], kept: Sequence[int], widths: dict[int, int]) -> list[str]:
    columns = [wrapped(row[n], widths[n]) for n in kept]
    lines = []
    for number in range(max(map(len, columns))):
        cells = [
            padded(cell[number] if number < len(cell) else "", widths[n]) for n, cell in zip(kept, columns, strict=True)
        ]
        lines.append((" " * GAP).join(cells).rstrip())
    return lines


def filled(text: str, width: int) -> str:
    """Return a sentence wrapped between words; later lines are indented like the first, and two cells more."""
    indent = " " * (len(text) - len(text.lstrip()))
    return "\n".join(wrapped(text.strip(), width, indent, f"{indent}  "))
