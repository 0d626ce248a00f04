"""`install systemd`: the files, the group, what is said, and that `uninstall` takes all of it away."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LINKSPAN = f"{sys.executable} -m linkspan.cli.main"
MACHINE = """
set -e
mount -t tmpfs tmpfs {folder}
for name in etc var/lib; do
    mkdir -p {folder}/$name/upper {folder}/$name/work
    mount -t overlay overlay -o "lowerdir=/$name,upperdir={folder}/$name/upper,workdir={folder}/$name/work" /$name
done
mount -t tmpfs tmpfs /run
"""
"""A machine of our own that looks like this one, in which systemd does not run."""


def on_a_machine(folder: Path, script: str) -> str:
    """Run a script on such a machine and return all that it says."""
    apart = ("unshare", "--net", "--mount", "--propagation", "private")
    done = subprocess.run(
        [*apart, "bash", "-c", MACHINE.format(folder=folder) + script],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=False,
        env=os.environ | {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_without_systemd_nothing_is_started_and_that_is_said(tmp_path: Path) -> None:
    """The files are there, the note says what to do, and uninstall takes them away."""
    said = on_a_machine(
        tmp_path,
        f"{LINKSPAN} install systemd; ls /etc/systemd/system; {LINKSPAN} uninstall --yes; ls /etc/systemd/system",
    )
    before, removed, after = said.partition("removed File /etc/systemd/system/linkspan.service")
    assert "installed /etc/systemd/system/linkspan.service" in before
    assert "systemd does not run on this machine, so nothing was started" in before
    assert removed
    assert "nothing of linkspan is left" in after


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="no systemd-sysusers: apt-get install systemd")
def test_the_group_comes_by_sysusers_and_goes_with_uninstall(tmp_path: Path) -> None:
    """Systemd makes it from our file; a group that was there before is nobody's to take away."""
    make = f"{LINKSPAN} install systemd; systemd-sysusers /etc/sysusers.d/linkspan.conf; getent group linkspan"
    uninstall = f"{LINKSPAN} uninstall --yes; getent group linkspan || echo no group"
    said = on_a_machine(tmp_path, f"{make}; {uninstall}")
    assert "linkspan:x:" in said
    assert "removed Group linkspan" in said
    assert said.splitlines()[-1] == "no group"
    said = on_a_machine(tmp_path, f"groupadd --system linkspan; {LINKSPAN} install systemd; {uninstall}")
    assert "sysusers" not in said
    assert said.splitlines()[-1].startswith("linkspan:x:")


def test_below_a_root_all_files_are_written(tmp_path: Path) -> None:
    """For an image that is being made: nothing is started, whatever runs here."""
    done = subprocess.run(
        [*LINKSPAN.split(), "install", "systemd", "--root", str(tmp_path)], capture_output=True, text=True, check=True
    )
    files = {"etc/systemd/system/linkspan.service", "etc/sysusers.d/linkspan.conf"}
    files |= {"etc/iproute2/rt_protos.d/linkspan.conf"}
    assert set(done.stdout.splitlines()) == {f"installed {tmp_path / file}" for file in files}
    assert (tmp_path / "etc/sysusers.d/linkspan.conf").read_text() == "g linkspan -\n"
