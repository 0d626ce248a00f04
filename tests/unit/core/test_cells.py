"""Cells: text takes the room that a terminal gives it."""

from __future__ import annotations

import pytest

from linkspan.cli import layout
from linkspan.core.cells import cells, cut, padded


@pytest.mark.parametrize(
    ("text", "width"),
    [("", 0), ("mybr0", 5), ("网桥", 4), ("网桥 mybr0", 10), ("e\u0301", 1), ("\uff0c", 2), ("✓", 1)],
)
def test_a_wide_character_takes_two_cells_and_a_mark_none(text: str, width: int) -> None:
    """Padding counts the same."""
    assert cells(text) == width
    assert cells(padded(text, 12)) == 12


@pytest.mark.parametrize(("room", "characters"), [(1, 1), (2, 1), (3, 1), (4, 2), (99, 3)])
def test_a_cut_keeps_what_fits_and_at_least_one_character(room: int, characters: int) -> None:
    """Half a character cannot be shown."""
    assert cut("网桥a"[:3], room) == characters


def test_columns_after_chinese_ones_begin_in_one_cell() -> None:
    """In a plain table and in one that fits a terminal."""
    rows = [["网桥", "x"], ["ab", "x"]]
    for lines in (layout.plain(["名称", "y"], rows), layout.laid_out(["名称", "y"], rows, 40)):
        assert len({cells(line[: line.lower().rindex(end)]) for line, end in zip(lines, "yxx", strict=True)}) == 1


@pytest.mark.parametrize("width", [10, 11, 24])
def test_a_chinese_sentence_has_no_spaces_and_is_wrapped_all_the_same(width: int) -> None:
    """No line is wider than the terminal, and nothing is lost."""
    text = "网桥默认会转发\uff0c教程给出的原因并不准确。"
    lines = layout.wrapped(text, width)
    assert max(map(cells, lines)) <= width
    assert "".join(lines) == text
