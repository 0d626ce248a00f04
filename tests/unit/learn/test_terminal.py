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
    """A script's background programs ignore SIGINT and SIGQUIT, and so would every command of the reader."""
    for name, number in (("INT", signal.SIGINT), ("QUIT", signal.SIGQUIT)):
        done = subprocess.run([sys.executable, "-c", CODE % name], capture_output=True, text=True, env=os.environ)
        assert (done.returncode, done.stdout) == (-number, ""), name
