"""Words of a tour: they are complete, however narrow the terminal is."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from linkspan.backends import BACKENDS, CROSSING
from linkspan.demo import across, screen


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("backend", CROSSING)
def test_a_headline_is_not_cut(monkeypatch: pytest.MonkeyPatch, backend: str, width: int) -> None:
    """In the rule if it fits, else under it."""
    printed = io.StringIO()
    monkeypatch.setattr(screen, "console", Console(file=printed, width=width, soft_wrap=True))
    screen.headline(BACKENDS[backend].summary)
    assert BACKENDS[backend].summary in printed.getvalue()


def test_output_has_no_blanks_where_it_has_no_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty line of a command's is one."""
    printed = io.StringIO()
    monkeypatch.setattr(screen, "console", Console(file=printed, width=80, soft_wrap=True))
    screen.Screen().output(["one", "", "two"])
    assert printed.getvalue() == "    one\n\n    two\n"


@pytest.mark.parametrize(
    ("path", "switched", "said"),
    [
        ("kernel", False, ""),
        ("in user space: this kernel has no ipip", False, "in user space: this kernel has no ipip; "),
        ("kernel", True, "in user space: the lab's switches"),
    ],
)
def test_a_figure_that_a_program_makes_small_is_explained(path: str, switched: bool, said: str) -> None:
    """Nobody takes three per cent of the underlay for what a backend costs."""
    assert across.slower(path, switched=switched).startswith(said)
    assert bool(across.slower(path, switched=switched)) == bool(said)
