"""A real firewalld that rules over the test's namespace: its own bus, its own folders, nothing of the machine's."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from linkspan.core.errors import LinkspanError
from linkspan.kernel.drivers.firewalld import NAME
from linkspan.kernel.io.dbus import Bus
from support.netns.machine_fixtures import needs, run
from support.polling import until

BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/><allow own="*"/><allow send_type="method_call"/><allow send_type="signal"/>
    <allow send_requested_reply="true"/><allow receive_type="method_call"/><allow receive_requested_reply="true"/>
    <allow receive_type="signal"/>
  </policy>
</busconfig>
"""
# A mount namespace of its own: firewalld writes below /etc, /run and /var/log, whatever it is told.
PRIVATE = 'mount -t tmpfs t /run && mount -t tmpfs t /var/log && mount -t tmpfs t /etc/firewalld && exec "$@"'


@contextlib.contextmanager
def _started(*argv: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _answers() -> bool:
    try:
        with Bus() as bus:
            return bus.owned(NAME) and run("firewall-cmd", "--state", check=False).strip() == "running"
    except LinkspanError:
        return False


@contextlib.contextmanager
def firewalld_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """Run a bus and firewalld in the present network namespace; DBUS_SYSTEM_BUS_ADDRESS leads to them."""
    needs("firewalld", "firewall-cmd", "dbus-daemon")
    (folder / "bus.conf").write_text(BUS.format(folder / "bus"))
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={folder / 'bus'}")
    log = folder / "firewalld.log"
    with _started("dbus-daemon", f"--config-file={folder / 'bus.conf'}", "--nofork", log=folder / "bus.log"):
        until((folder / "bus").exists, f"the bus: {(folder / 'bus.log').read_text()}", 40)
        private = ("unshare", "-m", "--propagation", "private", "sh", "-c", PRIVATE, "sh")
        with _started(*private, "firewalld", "--nofork", "--nopid", log=log) as daemon:
            try:
                until(_answers, "firewalld's answer", 30)
            except AssertionError as error:
                raise AssertionError(f"{error}: {log.read_text()}") from error
            yield daemon


def firewall_cmd(*arguments: str) -> list[str]:
    """Call firewalld's own command and return the words of its answer."""
    assert os.environ.get("DBUS_SYSTEM_BUS_ADDRESS", "").startswith("unix:path=/tmp"), (
        "never the machine's own"
    )
    return run("firewall-cmd", *arguments).split()
