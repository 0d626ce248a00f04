"""Imports of the agent's process: every host has them in its memory all the time."""

from __future__ import annotations

import subprocess
import sys

RARE = {
    "configparser",
    "cryptography",
    "difflib",
    "http.server",
    "importlib.metadata",
    "linkspan.diagnose.doctor.doctor",
    "linkspan.diagnose.trace.kernel_answers",
    "linkspan.diagnose.trace.netfilter_hooks",
    "linkspan.diagnose.trace.walk",
    "prometheus_client",
    "rich",
    "typer",
}
"""What only the command line or a rare request needs: 0.2 to 4 MB each."""


def test_the_agent_loads_nothing_that_only_rare_requests_need() -> None:
    """Its drivers and runtimes are loaded as well, because it needs them at its start."""
    code = (
        "import sys, linkspan.daemon; from linkspan.kernel.kinds import kinds; from linkspan.runtimes import runtimes; "
        f"kinds(); runtimes(); print({RARE!r} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
