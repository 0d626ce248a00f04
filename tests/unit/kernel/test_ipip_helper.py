"""Command of the user-space IPIP helper: an upgrade must not restart a running one."""

from __future__ import annotations

import sys
from pathlib import Path

import linkspan
from linkspan.core.addresses import prefix
from linkspan.core.states.host import TunnelExit, TunnelPrefix
from linkspan.kernel.drivers.ipip_table import EXITS, TABLE, TunnelTableDriver, helper


def test_the_ipip_helper_is_started_as_by_every_release_before() -> None:
    """The program and its table are the same files, whatever else moves: another argv would be another process."""
    program = Path(linkspan.__file__).with_name("ipip_endpoint.py")
    assert program.is_file()
    assert TABLE == "ipip/table"
    argv = (sys.executable, "-IS", str(program), "--table", "/state/ipip/table")
    assert helper(Path("/state", TABLE)).argv == argv
    assert helper(Path("/state", TABLE)).exits == ("--exits", "/state/ipip/exits")


def test_each_kind_of_row_has_its_own_file(tmp_path: Path) -> None:
    """One prefix may be in both; a file without rows is removed."""
    driver = TunnelTableDriver(tmp_path / TABLE, tmp_path / EXITS)
    pool, far = prefix("10.77.0.0/16"), prefix("192.0.2.2").packed
    row, exit_ = TunnelPrefix(pool, far), TunnelExit(pool, far)
    assert driver.apply([row, exit_], []) == {}
    assert list(driver.observe(0)) == [row, exit_]
    assert (tmp_path / EXITS).read_text() == "10.77.0.0/16 192.0.2.2\n"
    assert driver.apply([], [row]) == {}
    assert list(driver.observe(0)) == [exit_]
    assert not (tmp_path / TABLE).exists()
