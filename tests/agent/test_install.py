"""`install systemd`: the files, the group, what is said, and that `uninstall` takes all of it away."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import linkspan
from linkspan.kernel.io.private_files import writers

LINKSPAN = f"{sys.executable} -m linkspan.cli.main"
MACHINE = """
set -e
mount -t tmpfs tmpfs {folder}
for name in etc opt var/lib; do
    mkdir -p {folder}/$name/upper {folder}/$name/work
    mount -t overlay overlay -o "lowerdir=/$name,upperdir={folder}/$name/upper,workdir={folder}/$name/work" /$name
done
mount -t tmpfs tmpfs /run
"""
"""A machine of our own that looks like this one, in which systemd does not run."""


def on_a_machine(folder: Path, script: str) -> str:
    """Run a script on such a machine and return all that it says."""
    folder.mkdir(exist_ok=True)
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
        f"{LINKSPAN} install systemd; ls /etc/systemd/system; {LINKSPAN} uninstall --yes -v; ls /etc/systemd/system",
    )
    before, removed, after = said.partition("removed File /etc/systemd/system/linkspan.service")
    assert "installed /etc/systemd/system/linkspan.service" in before
    assert "systemd does not run on this machine, so nothing was started" in before
    assert removed
    assert "nothing of linkspan is left" in after


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="no systemd-sysusers: apt-get install systemd")
def test_the_group_comes_by_sysusers_and_goes_with_uninstall(tmp_path: Path) -> None:
    """Systemd creates it from our file; linkspan does not remove a group that existed before."""
    make = f"{LINKSPAN} install systemd; systemd-sysusers /etc/sysusers.d/linkspan.conf; getent group linkspan"
    uninstall = f"{LINKSPAN} uninstall --yes -v; getent group linkspan || echo no group"
    said = on_a_machine(tmp_path, f"{make}; {uninstall}")
    assert "linkspan:x:" in said
    assert "removed Group linkspan" in said
    assert said.splitlines()[-1] == "no group"
    said = on_a_machine(tmp_path, f"groupadd --system linkspan; {LINKSPAN} install systemd; {uninstall}")
    assert "sysusers" not in said
    assert said.splitlines()[-1].startswith("linkspan:x:")


def test_what_an_operator_made_stays_and_is_named(tmp_path: Path) -> None:
    """Settings and passwords below /etc/linkspan are the operator's; each is reported with the command to remove it."""
    made = "mkdir -p /etc/linkspan; touch /etc/linkspan/password /etc/linkspan/agent.toml"
    said = on_a_machine(tmp_path, f"{made}; {LINKSPAN} install systemd; {LINKSPAN} uninstall --yes; ls /etc/linkspan")
    for name in ("password", "agent.toml"):
        assert f"stays: /etc/linkspan/{name}: you made this file" in said
    assert "nothing of linkspan is left on this machine except what stays on purpose" in said
    assert said.splitlines()[-2:] == ["agent.toml", "password"]


def test_root_runs_no_file_that_others_may_write(tmp_path: Path) -> None:
    """From another user's checkout the service gets a copy that root owns; `uninstall` removes the copy."""
    theirs, packages = tmp_path / "theirs", f"{sys.prefix}/lib/python{sys.version_info[0]}.{sys.version_info[1]}"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", theirs], check=True)
    (site,) = (theirs / "lib").glob("python*/site-packages")
    (site / "here.pth").write_text(f"{Path(linkspan.__file__).parents[1]}\n{packages}/site-packages\n")
    subprocess.run(["chown", "-R", "12345:12345", theirs], check=True)
    said = on_a_machine(
        tmp_path / "machine",
        f"""
        {theirs}/bin/python -m linkspan.cli.main install systemd
        grep ExecStart /etc/systemd/system/linkspan.service
        find /opt/linkspan '(' -not -user 0 -o -perm /022 -not -type l ')' -print
        mv {theirs} {theirs}.away
        /opt/linkspan/bin/linkspan version
        /opt/linkspan/bin/linkspan agent --print-config >/dev/null && echo runs
        ls /opt/linkspan/lib/python*/site-packages | tr '\\n' ' '
        /opt/linkspan/bin/linkspan uninstall --yes -v
        test -e /opt/linkspan || echo gone
        """,
    )
    assert f"note: users other than root may change this linkspan's files ({theirs}" in said
    assert "is owned by user 12345" in said
    assert "ExecStart=/opt/linkspan/bin/linkspan agent\n" in said
    assert "\nruns\n" in said
    assert " pytest " not in said
    assert "removed /opt/linkspan\n" in said
    assert said.rstrip().endswith("nothing of linkspan is left on this machine\ngone")


@pytest.mark.parametrize("mode", [0o666, 0o664])
def test_one_file_that_others_may_write_is_named(tmp_path: Path, mode: int) -> None:
    """A file deep in a package, a link to it, a folder above it: each is found, and who may write it."""

    def found(start: Path) -> list[str]:
        """Return what is found, a place by its own path, whatever link led to it."""
        return [one.replace("/link/", "/a/b/") for one in writers([start])]

    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True, mode=0o755)
    file = deep / "module.py"
    file.touch(mode=0o644)
    os.chown(file, 0, 12346)
    (tmp_path / "link").symlink_to(deep)
    for start in (tmp_path / "a", tmp_path / "link", file):
        assert found(start) == []
        file.chmod(mode)
        who = "everybody" if mode & 2 else "group 12346"
        assert found(start) == [f"{file} may be written by {who}"]
        file.chmod(0o644)
        deep.chmod(0o777)
        assert found(start) == [f"{deep} may be written by everybody"]
        deep.chmod(0o755)
        os.chown(tmp_path / "a", 12346, 0)
        assert found(start) == [f"{tmp_path / 'a'} is owned by user 12346"]
        os.chown(tmp_path / "a", 0, 0)


def test_below_a_root_all_files_are_written(tmp_path: Path) -> None:
    """For an image that is being made: nothing is started, whatever runs here."""
    done = subprocess.run(
        [*LINKSPAN.split(), "install", "systemd", "--root", str(tmp_path)], capture_output=True, text=True, check=True
    )
    files = {"etc/systemd/system/linkspan.service", "etc/sysusers.d/linkspan.conf"}
    files |= {"etc/iproute2/rt_protos.d/linkspan.conf"}
    assert set(done.stdout.splitlines()) == {f"installed {tmp_path / file}" for file in files}
    assert (tmp_path / "etc/sysusers.d/linkspan.conf").read_text() == "g linkspan -\n"
