"""The environment of commands in a sandbox and beside it."""

from __future__ import annotations

import resource
import subprocess

import pytest

from linkspan.learn import sandbox
from linkspan.learn.beside import Beside
from linkspan.learn.sandbox import RUN, Sandbox
from support.polling import until

SYSTEM = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CLOSED = Sandbox(2, around=1)


def test_a_closed_sandbox_has_the_system_s_programs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of the teacher's own PATH is covered there, and what somebody puts into it would check the lesson."""
    monkeypatch.setenv("PATH", "/opt/own/bin:/usr/bin")
    assert CLOSED.environment()["PATH"] == f"{RUN}/bin:{SYSTEM}"
    assert Beside(CLOSED).environment()["PATH"] == SYSTEM
    assert Sandbox(2).environment()["PATH"] == f"{RUN}/bin:{SYSTEM}:/opt/own/bin:/usr/bin"


def test_lines_of_a_closed_sandbox_may_write_to_their_home() -> None:
    """As the student could; what looks from beside reads no settings there."""
    assert CLOSED.environment()["HOME"] == "/tmp"
    assert Beside(CLOSED).environment()["HOME"] == "/"


def test_a_command_in_a_sandbox_ends_with_its_maker() -> None:
    """It asks for that after it has entered the user namespace, which takes that away, and before all others."""
    words = Sandbox(2).entering()
    assert words.index("--pdeathsig=KILL") < words.index("--mount")
    assert "--user" not in words or words.index("--user") < words.index("--pdeathsig=KILL")


def test_a_command_of_others_writes_files_with_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its crash starts no handler of the machine; nothing is asked for that this user is not allowed."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (0, resource.RLIM_INFINITY))
    assert sandbox.limits() == ["prlimit", f"--fsize={64 * 2**20}", "--core=1"]
    monkeypatch.setattr(resource, "getrlimit", lambda _: (0, 0))
    assert sandbox.limits() == ["prlimit", "--fsize=0", "--core=0"]


def test_an_environment_without_an_end_is_not_read_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program may have any part of its memory shown as its environment."""
    environment = {"FIRST": "x" * 1000, sandbox.MARK: "own"}
    with subprocess.Popen(["sleep", "60"], env=environment, executable="/bin/sleep") as program:
        try:
            # Popen returns a moment before the kernel has the environment of the new program.
            until(lambda: sandbox._has_mark(program.pid, "own"), "its environment is there")
            monkeypatch.setattr(sandbox, "_ENVIRONMENT", 100)
            assert not sandbox._has_mark(program.pid, "own")
        finally:
            program.kill()
