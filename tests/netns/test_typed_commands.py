"""`linkspan` as pages type it beside other tests: a copy of a server, which ends and prints as a real start does."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.typed_commands import served


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give the program."""
    with served(tmp_path_factory.mktemp("typed")) as found:
        yield found


@pytest.mark.parametrize(
    ("words", "code"),
    [(["version", "-o", "json"], 0), (["statsu", ""], 2), (["status", "--socket", "/nowhere/agent.sock"], 1), ([], 2)],
)
def test_it_ends_and_prints_as_a_start_does(program: Path, words: list[str], code: int) -> None:
    """Exit code, output and errors are the same."""
    started, typed = (
        subprocess.run([*command, *words], capture_output=True, text=True, check=False)
        for command in ([sys.executable, "-m", "linkspan.cli.main"], [str(program)])
    )
    assert (started.returncode, typed.returncode) == (code, code)
    assert (typed.stdout, typed.stderr) == (started.stdout, started.stderr)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_is_where_it_was_called_and_ends_with_its_caller(program: Path, tmp_path: Path, number: int) -> None:
    """It reads a relative path as its caller does, and a signal ends it."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "agent.sock"))
        listening.listen()
        listening.settimeout(60)
        words = [str(program), "events", "--follow", "--socket", "agent.sock"]
        with subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.DEVNULL) as caller:
            asked = listening.accept()[0]
            with asked:
                asked.settimeout(60)
                assert asked.recv(1 << 16).startswith(b"GET /v1/events")
                caller.send_signal(number)
                assert caller.wait(60) != 0
                assert asked.recv(1) == b"", "the copy has ended"
