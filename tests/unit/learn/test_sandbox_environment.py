"""The environment of commands in a sandbox and beside it."""

from __future__ import annotations

import pytest

from linkspan.learn.beside import Beside
from linkspan.learn.sandbox import RUN, Sandbox

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
