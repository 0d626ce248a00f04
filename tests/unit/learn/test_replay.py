"""Replays: shells that others' lines have changed keep nobody waiting."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from linkspan.learn import replay
from linkspan.learn.sandbox import Sandbox


class Unread(Sandbox):
    """A sandbox whose shell says once that it waits for a line, and reads none."""

    def __init__(self) -> None:
        super().__init__(0)

    def entering(self) -> list[str]:
        """Return words that make such a shell, whatever follows."""
        return ["sh", "-c", "echo >&9; exec sleep 600"]

    def write(self, file: str, line: str) -> None:
        """Write nothing."""


@pytest.mark.timeout(30)
def test_a_shell_that_reads_no_line_is_taken_for_ended() -> None:
    """A line may write to the descriptor by which a shell says that it waits, and its terminal has little room."""
    shell = replay._Shell(Unread(), {})
    try:
        for _ in range(1000):
            shell.run("x" * 200, 0.0, 0.0)
        assert shell.ended
    finally:
        shell.close()


def test_a_shell_whose_terminal_has_nothing_to_read_has_not_ended() -> None:
    """A hang-up may be over when it is looked at: another program has opened the terminal meanwhile."""
    shell = replay._Shell(Unread(), {})
    try:
        shell.drain()
        assert not shell.ended
    finally:
        shell.close()


class Here(Sandbox):
    """A sandbox that is this machine; its files are in a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(0)
        self._folder = folder

    def entering(self) -> list[str]:
        """Return words that start bash with the file that was written as its rc."""
        return ["sh", "-c", f"exec bash --noediting --rcfile {self._folder}/replay-rc -i"]

    def write(self, file: str, line: str) -> None:
        """Write a file of this name in the folder."""
        (self._folder / Path(file).name).write_text(f"{line}\n")


RUNS = {
    "the last argument": (("ls -d / /usr", "echo $_"), "/usr"),
    "the last argument of an assignment": (("ls -d /usr", "x=1", 'echo "<$_>"'), "<>"),
    "an exit code": (("(exit 3)", "echo $?"), "3"),
    "an exit code of an empty line": (("(exit 3)", "# nothing", "echo $?"), "3"),
    "another prompt command": (("PROMPT_COMMAND='date +%T'", "PROMPT_COMMAND+=(true)", "echo well"), "well"),
    "a question among others": (("learn task; echo first", "linkspan learn hint && echo well"), "well"),
    "a function": (("next-hop() { echo $1; }", "next-hop there"), "there"),
}
"""By what they need: lines, and what the last one prints."""


@pytest.mark.timeout(60)
@pytest.mark.parametrize("need", RUNS)
def test_a_line_finds_what_the_line_before_left(tmp_path: Path, need: str) -> None:
    """As it did when it was typed, though it runs from a file; and each one is seen to end."""
    lines, printed = RUNS[need]
    box = Here(tmp_path)
    shell = replay._Shell(box, {})
    try:
        for number, line in zip(itertools.count(), lines):
            box.write(f"line-{number}", f"{{\n{line}\n}} >{tmp_path}/printed" if number + 1 == len(lines) else line)
            shell.run(f"{tmp_path}/line-{number}", 0.0, 20.0)
            assert shell.ended or not shell._busy
    finally:
        shell.close()
    assert (tmp_path / "printed").read_text().strip() == printed


@pytest.mark.parametrize(
    "line",
    ["learn task", "sudo linkspan learn hint 2", " next ;", "exit 3", "logout", "learn", "linkspan learn status"],
)
def test_a_line_that_only_asks_linkspan_is_no_work(line: str) -> None:
    """It needs no replay."""
    assert replay.work([(0.0, 1, line)]) == []


@pytest.mark.parametrize(
    "line", ["learn task; ip link set vethB up", "next-hop", "exit-up", "learn hint | cat", "exit_code=0; ip link"]
)
def test_a_line_that_does_more_is_work(line: str) -> None:
    """The rest of it counts."""
    assert replay.work([(0.0, 1, line)]) == [(0.0, 1, line)]
