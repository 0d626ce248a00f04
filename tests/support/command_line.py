"""The command line in a process of its own that begins as a copy of this one: as a user's, without Python's start.

A user's command spends most of its time on Python's start and imports, which a run of all tests would pay thousands of
times. What is left out here has tests with a real start of their own (tests/lab/test_lab.py and tests/agent, for
example).
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import IO, NoReturn

from linkspan.cli import agent_start
from linkspan.cli.main import commands, main
from linkspan.lab import processes
from support import copies

_LOCAL = frozenset({"agent", "controller", "demo", "doctor", "install", "lab", "uninstall"})
_STARTING = tuple(("cluster", verb) for verb in ("init", "join", "restore", "recover"))


def is_local(words: Sequence[str]) -> bool:
    """Return whether a command looks at the machine, changes it or starts an agent.

    It must be in the host's namespaces. The others ask its agent, from wherever they run.
    """
    return words[0] in _LOCAL or tuple(words[:2]) in _STARTING


def linkspan(
    *words: str, variables: Mapping[str, str] | None = None, seconds: float = 120.0, netns: str = "", hostname: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a command, and return its exit code and what it printed; fail where it does not end within ``seconds``.

    Its environment has ``variables`` besides. It is in the namespace ``netns``, and on a machine called ``hostname``;
    '' stands for this process's.
    """
    prepare()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        pid = os.fork()
        if not pid:
            os.environ.update(variables or {})
            _become(words, out, errors, netns, hostname)
        watched = os.pidfd_open(pid)
        try:
            ended = bool(select.select([watched], [], [], seconds)[0])
            if not ended:
                os.kill(pid, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        finally:
            os.close(watched)
        said = [_text(file) for file in (out, errors)]
    assert ended, f"linkspan {' '.join(words)}: no end within {seconds:g} s: {said}"
    return subprocess.CompletedProcess(words, code, *said)


@functools.cache
def prepare() -> None:
    """Do once what every copy would do before it knows its command: the library imports at the first one."""
    with contextlib.redirect_stdout(io.StringIO()):
        commands()(["network", "list", "--help"], prog_name="linkspan", standalone_mode=False)


def _become(words: Sequence[str], out: IO[bytes], errors: IO[bytes], netns: str, hostname: str) -> NoReturn:
    """Be the command, and end."""
    with open(os.devnull, "rb") as nothing:
        for number, file in enumerate((nothing, out, errors)):
            os.dup2(file.fileno(), number)
    sys.argv = ["linkspan", *words]
    processes.start = copies.start_of_lab
    agent_start.begin = copies.start_by_command

    def program() -> None:
        copies.enter(netns, hostname)
        main()

    copies.lived(program)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()
