"""A lesson on a narrow and on a wide terminal, in both languages: what the terminal itself shows, by tmux."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from linkspan.core.cells import cells
from linkspan.learn.lesson import numbered
from support.lab.reader import MAIN, state
from support.polling import SHARED, until

__all__ = ["state"]

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")


class Screen:
    """A terminal of some size, with a lesson in it."""

    def __init__(self, socket: Path, width: int, height: int, command: str) -> None:
        self._tmux = ("tmux", "-u", "-S", str(socket), "-f", "/dev/null")
        self._run("new-session", "-d", "-x", str(width), "-y", str(height), command)

    def _run(self, *words: str) -> str:
        env = {name: value for name, value in os.environ.items() if name != "TMUX"}
        return subprocess.run([*self._tmux, *words], check=True, capture_output=True, text=True, env=env).stdout

    def lines(self) -> list[str]:
        """Return all lines since the beginning; one that the terminal had to break is one line."""
        return self._run("capture-pane", "-p", "-J", "-S", "-").splitlines()

    def shows(self, text: str, times: int = 1) -> None:
        """Wait until a text has been shown so many times."""
        until(lambda: "\n".join(self.lines()).count(text) >= times, f"{text} is shown", 30.0 * SHARED)

    def type(self, line: str) -> None:
        """Type a line."""
        self._run("send-keys", "-l", line)
        self._run("send-keys", "Enter")

    def close(self) -> None:
        """End the terminal with what is in it."""
        subprocess.run([*self._tmux, "kill-server"], check=False, capture_output=True)


@pytest.fixture
def screen(state: Path, request: pytest.FixtureRequest) -> Iterator[Screen]:
    """Give a terminal (width, height, language) in which lesson 4 has begun."""
    width, height, language = request.param
    opened = Screen(state / "tmux", width, height, shlex.join([*MAIN, "start", "4", "--lang", language]))
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("screen", "width", "passed", "title"),
    [((w, h, language), w, *said) for w, h in ((80, 24), (200, 60)) for language, said in {
        "en": ("Passed:", "STATE"), "zh": ("通过\uff1a", "状态")}.items()],
    indirect=["screen"],
    ids=["80x24-en", "80x24-zh", "200x60-en", "200x60-zh"],
)  # fmt: skip
def test_every_line_fits_the_terminal(screen: Screen, width: int, passed: str, title: str) -> None:
    """Text, help, tables and the end of a lesson: no line is broken by the terminal, and columns are straight."""
    prompt = "[learn 4] #"
    screen.shows(prompt)
    for count, line in enumerate(("learn hint", "learn explain", "learn list"), 2):
        screen.type(line)
        screen.shows(prompt, count)
    for count, line in enumerate(numbered("container").data.solutions[1].strip().splitlines(), 4):
        screen.shows(prompt, count)  # what is typed before the prompt is there stands before it
        screen.type(line)
    screen.shows(passed)
    lines = screen.lines()
    assert [line for line in lines if cells(line) > width] == []
    assert [line for line in lines if re.match(r"\s*[\u3001\u3002\uff09\uff0c\uff1a\uff1b]", line)] == []
    head = next(number for number, line in enumerate(lines) if title in line.upper())
    rows = [line for line in lines[head:] if re.match(r"\d+ ", line)]
    assert (len(rows), len({cells(re.split(r"[a-z]+(?:-[a-z0-9]+)*$", row)[0]) for row in rows})) == (33, 1)
    screen.type("exit")
