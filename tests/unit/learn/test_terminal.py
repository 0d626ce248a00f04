"""Programs in a terminal of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

CODE = """
import os, signal
from linkspan.learn.terminal import become
for key in (signal.SIGINT, signal.SIGQUIT):
    signal.signal(key, signal.SIG_IGN)
become(["sh", "-c", "kill -%s $$; echo it goes on"], dict(os.environ))
"""


def test_keys_end_a_program_though_linkspan_was_started_in_the_background() -> None:
    """A script's background programs ignore SIGINT and SIGQUIT, and so would every command of the reader.

    Python itself ignores SIGPIPE, by which the programs before `head` end.
    """
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGPIPE, signal.SIGXFSZ):
        name = number.name.removeprefix("SIG")
        done = subprocess.run([sys.executable, "-c", CODE % name], capture_output=True, text=True, env=os.environ)
        assert (done.returncode, done.stdout) == (-number, ""), name


KEPT = """
import os
from linkspan.learn.terminal import become
become(["sh", "-c", "ls /proc/$$/fd"], dict(os.environ), {kept})
"""


def test_a_program_gets_no_descriptors_of_the_shell_that_started_linkspan() -> None:
    """One of a folder would lead out of a sandbox: only one that is meant for the program is left."""
    lost, kept = os.open("/", os.O_RDONLY), os.open("/", os.O_RDONLY)
    try:
        command = [sys.executable, "-c", KEPT.format(kept=kept)]
        done = subprocess.run(command, capture_output=True, text=True, pass_fds=(lost, kept))
        assert set(map(int, done.stdout.split())) == {0, 1, 2, kept}
    finally:
        os.close(lost)
        os.close(kept)
