"""The systemd unit and sd_notify."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from linkspan.core.errors import Invalid
from linkspan.runtimes.docker import runtime as docker
from linkspan.runtimes.systemd import UNIT_NAME, controller_unit, notify, sockets, unit, watchdog_interval


def _settings(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))


def test_unit_leaves_the_data_path_alone() -> None:
    """Stopping ends only the agent, and the socket's folder with its queue stays."""
    settings = _settings(unit("/usr/bin/linkspan"))
    assert settings["KillMode"] == "process"
    assert settings["RuntimeDirectoryPreserve"] == "yes"
    assert settings["Type"] == "notify"
    assert settings["Restart"] == "always"
    assert int(settings["WatchdogSec"]) > 0


@pytest.mark.parametrize(
    ("path", "command"),
    [
        ("/usr/bin/linkspan", "/usr/bin/linkspan agent"),
        ("/opt/my tools/linkspan", '"/opt/my tools/linkspan" agent'),
        ("/opt/100%/linkspan", "/opt/100%%/linkspan agent"),
        ("/opt/$x/linkspan", "/opt/$$x/linkspan agent"),
    ],
)
def test_unit_quotes_the_executable(path: str, command: str) -> None:
    """A path with white space or with systemd's own signs arrives as it is."""
    assert _settings(unit(path))["ExecStart"] == command


def test_unit_refuses_a_relative_path() -> None:
    """A relative path would be looked up in folders of systemd's own."""
    with pytest.raises(Invalid, match="not an absolute path"):
        unit("linkspan")


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    """systemd-analyze finds nothing wrong with agent, controller and Docker's socket, their quoting included."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    executable = tmp_path / "a folder" / "linkspan"
    executable.parent.mkdir()
    executable.write_text("#!/bin/sh\n")
    executable.chmod(0o755)
    units = {
        UNIT_NAME: unit(str(executable)),
        "linkspan-controller.service": controller_unit(str(executable)),
        docker.LISTENING.unit: docker.UNIT,
    }
    for name, text in units.items():
        (tmp_path / name).write_text(text)
    argv = [analyze, "verify", "--man=no", *(str(tmp_path / name) for name in units)]
    checked = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (checked.returncode, [line for line in checked.stderr.splitlines() if "linkspan" in line]) == (0, [])


@pytest.fixture(params=["path", "abstract"])
def manager(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    """Listen as systemd does, on either kind of address."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@linkspan-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name.replace("@", "\0", 1))
        listener.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield listener


def test_notify_reaches_the_manager(manager: socket.socket) -> None:
    """A message arrives as one datagram."""
    assert notify("READY=1\nSTATUS=3 networks") is True
    assert manager.recv(1000) == b"READY=1\nSTATUS=3 networks"


def test_notify_without_a_manager(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Started by hand, or with the manager gone, nothing is reported and nothing fails."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert notify("READY=1") is False
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    assert notify("READY=1") is False


@pytest.mark.parametrize(
    ("microseconds", "pid", "seconds"),
    [
        ("30000000", "", 30.0),
        ("500000", str(os.getpid()), 0.5),
        ("30000000", "1", None),
        ("0", "", None),
        ("soon", "", None),
        (None, None, None),
    ],
    ids=["meant for all", "for this process", "for another", "off", "no number", "not set"],
)
def test_watchdog_interval(
    microseconds: str | None, pid: str | None, seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interval applies only if it is set, is a number, and is meant for this process."""
    for name, value in (("WATCHDOG_USEC", microseconds), ("WATCHDOG_PID", pid)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert watchdog_interval() == seconds


def test_handed_over_sockets_are_those_of_their_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what systemd gave this very process, and under the name that is asked for."""
    monkeypatch.setenv("LISTEN_PID", "1")
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_FDNAMES", "docker")
    assert sockets("docker") == []
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    assert sockets("another") == []
