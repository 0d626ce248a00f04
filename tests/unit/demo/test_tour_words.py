"""Words of a tour: they are complete, in each language, however narrow the terminal is."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from linkspan.backends import BACKENDS, CROSSING
from linkspan.cli import demo as command
from linkspan.demo import across, screen
from linkspan.demo.language import LOCALE, Words
from support.catalogue import check, strings

ENGLISH = Words("en")


def test_every_string_is_translated_and_no_translation_is_stale() -> None:
    """The headlines are the backends' own sentences."""
    paths = [*Path(screen.__file__).parent.glob("*.py"), Path(command.__file__)]
    summaries = {BACKENDS[backend].summary for backend in CROSSING}
    check(LOCALE, strings(paths, "BACKENDS[backend].summary or backend") | summaries)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("backend", CROSSING)
def test_a_headline_is_not_cut(
    monkeypatch: pytest.MonkeyPatch, backend: str, width: int, language: str
) -> None:
    """In the rule if it fits, else under it."""
    headline = Words(language)(BACKENDS[backend].summary)
    printed = io.StringIO()
    monkeypatch.setattr(screen, "console", Console(file=printed, width=width, soft_wrap=True))
    screen.headline(headline)
    assert headline in printed.getvalue()


def test_output_has_no_blanks_where_it_has_no_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty line of a command's is one."""
    printed = io.StringIO()
    monkeypatch.setattr(screen, "console", Console(file=printed, width=80, soft_wrap=True))
    screen.Screen(ENGLISH).output(["one", "", "two"])
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
    assert across.slower(path, ENGLISH, switched=switched).startswith(said)
    assert bool(across.slower(path, ENGLISH, switched=switched)) == bool(said)
