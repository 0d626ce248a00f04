"""Replays: shells that others' lines have changed keep nobody waiting."""

from __future__ import annotations

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
