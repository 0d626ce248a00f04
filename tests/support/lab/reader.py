"""A reader of lessons: a terminal to type in, a state folder of their own, and a user who is nobody."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import linkspan
from linkspan.learn import sandbox
from support.command_line import linkspan as typed
from support.polling import SHARED

MAIN = (sys.executable, "-m", "linkspan.cli.main", "learn")
NOBODY = 65534
SOURCE = Path(linkspan.__file__).parents[1]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give a state folder of this test's own; what a failed test left in it ends."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    yield tmp_path
    sandbox.end_all(str(tmp_path / "linkspan" / "learn"))


def learn(*words: str, code: int = 0) -> str:
    """Run a command; return what it printed."""
    done = typed("learn", *words)
    assert done.returncode == code, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def inside(state: Path, script: str) -> None:
    """Type commands in the sandbox of the open lesson, as in a second window."""
    code, output = sandbox.found(str(state / "linkspan" / "learn")).script(script)
    assert code == 0, output


def any_process(name: str) -> bool:
    """Return whether any process has the sandbox's mark."""
    mark = f"{sandbox.MARK}={name}".encode()
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                if mark in (process / "environ").read_bytes().split(b"\0"):
                    return True
            except OSError:
                continue
    return False


class Window:
    """A terminal in which a reader types."""

    def __init__(self, *words: str, columns: int = 80, main: tuple[str, ...] = MAIN) -> None:
        self.pid, self._fd = pty.fork()
        if not self.pid:
            os.environ |= {"TERM": "xterm", "COLUMNS": str(columns)}
            os.execv(main[0], [*main, *words])  # noqa: S606 - no shell is meant
        self.seen = ""

    def type(self, text: str) -> None:
        """Type a line."""
        os.write(self._fd, text.encode() + b"\r")

    def shows(self, text: str, seconds: float = 30.0 * SHARED) -> None:
        """Wait until the terminal has shown a text, after what earlier calls waited for."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            left = end - time.monotonic()
            assert left > 0, f"{text!r} is not shown within {seconds:g} s: {self.seen[-3000:]!r}"
            if select.select([self._fd], [], [], left)[0]:
                try:
                    self.seen += os.read(self._fd, 4096).decode(errors="replace")
                except OSError:
                    break
        assert text in self.seen, f"{text!r} is not shown: {self.seen[-3000:]!r}"
        self.seen = self.seen.partition(text)[2]

    def ends(self) -> int:
        """Wait for its end; return the exit code."""
        while True:
            try:
                if not os.read(self._fd, 4096):
                    break
            except OSError:
                break
        _, status = os.waitpid(self.pid, 0)
        os.close(self._fd)
        return os.waitstatus_to_exitcode(status)


USER = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
READS = (*USER, "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
"""User nobody, who may also read this interpreter, wherever it is: in a user namespace that counts nothing."""


def as_nobody(*words: str) -> str:
    """Run this interpreter as user nobody; return what it printed."""
    env = os.environ | {"PYTHONPATH": str(SOURCE), "HOME": "/", "XDG_STATE_HOME": "/nonexistent"}
    command = [*READS, sys.executable, *words]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd="/", timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def nobody() -> None:
    """Skip where users make no user namespaces."""
    tried = subprocess.run([*USER, "unshare", "-Umnpfr", "true"], check=False, capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no user namespaces here: {tried.stderr.strip()}")
