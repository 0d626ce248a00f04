"""Command of the user-space IPIP helper: an upgrade must not restart a running one."""

from __future__ import annotations

import sys
from pathlib import Path

import linkspan
from linkspan.kernel.drivers.ipip_table import TABLE, helper


def test_the_ipip_helper_is_started_as_by_every_release_before() -> None:
    """The program and its table are the same files, whatever else moves: another argv would be another process."""
    program = Path(linkspan.__file__).with_name("ipip_endpoint.py")
    assert program.is_file()
    assert TABLE == "ipip/table"
    argv = (sys.executable, "-IS", str(program), "--table", "/state/ipip/table")
    assert helper(Path("/state", TABLE)).argv == argv
