"""The command line as most tests run it: a copy of this process, which ends and prints as a real start does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from linkspan.api.client import Client
from support.command_line import linkspan


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["version", "-o", "json"], 0),
        (["--version"], 0),
        (["statsu"], 2),
        (["status", "--socket", "/nowhere/agent.sock"], 1),
        (["status", "--socket", "/nowhere/agent.sock", "-o", "json"], 1),
        ([], 2),
    ],
)
def test_a_copy_ends_and_prints_as_a_start_does(words: list[str], code: int) -> None:
    """Exit code, output and errors are those of a process of its own."""
    started = subprocess.run(
        [sys.executable, "-m", "linkspan.cli.main", *words], capture_output=True, text=True, check=False
    )
    copied = linkspan(*words)
    assert (started.returncode, copied.returncode) == (code, code)
    assert (copied.stdout, copied.stderr) == (started.stdout, started.stderr)


def test_a_copy_leaves_nothing_in_this_process() -> None:
    """Neither what it set for its own output nor a file."""
    before, shown = set(os.listdir("/proc/self/fd")), Client.shown
    linkspan("status", "--socket", "/nowhere/agent.sock")
    assert set(os.listdir("/proc/self/fd")) == before
    assert Client.shown is shown


def test_a_copy_that_does_not_end_is_ended(tmp_path: Path) -> None:
    """A test whose command asks an agent that never answers fails with the command's words."""
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        with pytest.raises(AssertionError, match=r"linkspan events --follow.*: no end within 0.5 s"):
            linkspan("events", "--follow", "--socket", str(path), seconds=0.5)
