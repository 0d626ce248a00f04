"""A clean Debian to install packages on: its files below what a test changes, in namespaces of its own, no network.

systemd does not run in `DebianRoot`. In `BootedRoot` it is the first process.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.polling import SHARED, until

CACHE = Path(sys.prefix, "cache", "debian-roots")
_INCLUDED = "nftables,iproute2,iputils-ping,kmod,procps,iptables,conntrack,dnsmasq-base,ethtool,rpm"
_BOOTS = "trixie"
"""The release that has systemd, too. To make it twice, with and without, would take as long as a test."""
_PATH = "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ENTER = """set -e
cd "$1"
[ "$3" = disk ] || mount -t tmpfs changes changes
cp -a given changes/upper
mkdir changes/work
mount -t overlay overlay -o "lowerdir=$2,upperdir=$1/changes/upper,workdir=$1/changes/work" root
cd root
mount -t proc proc proc
mount -t tmpfs run run
ip link set lo up
"""
_SCRIPT = f'mount --rbind /dev dev; exec env -i PATH={_PATH} HOME=/root LC_ALL=C.UTF-8 chroot . bash -e /tmp/script\n'
_MASKED = (
    "systemd-sysctl.service", "systemd-modules-load.service", "systemd-binfmt.service",
    "proc-sys-fs-binfmt_misc.automount", "getty.target", "tmp.mount",
)  # fmt: skip
"""Units that would change the machine's kernel, use its consoles, or hide what was put into /tmp."""
_DEVICES = {
    "null": "1 3", "zero": "1 5", "full": "1 7", "random": "1 8", "urandom": "1 9", "tty": "5 0", "net/tun": "10 200",
}  # fmt: skip
"""Nodes of its own, by the kernel's numbers: what runs in there may give them another owner."""
_BOOT = f"""
mount -t tmpfs -o mode=755 dev dev
mkdir dev/net dev/pts dev/shm
{"; ".join(f"mknod -m 666 dev/{name} c {number}" for name, number in _DEVICES.items())}
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx; ln -s /proc/self/fd dev/fd
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
exec env -i PATH={_PATH} container=linkspan chroot . /lib/systemd/systemd --show-status=no --log-target=console
"""
_UP = ("running", "degraded")
_CGROUPS = ("/sys/fs/cgroup/unified", "/sys/fs/cgroup")


class DebianRoot:
    """A Debian release, and what is put upon it: in memory, or in its folder where the time of a ``disk`` counts."""

    def __init__(self, suite: str, folder: Path, *, disk: bool = False) -> None:
        """Take a release, which is downloaded once. Skips the test if it cannot be had."""
        self._release = fetched(suite)
        self._where = "disk" if disk else "memory"
        self.folder = folder
        self.given = folder / "given"
        for one in (folder, folder / "changes", folder / "root", self.given, self.given / "tmp"):
            one.mkdir()
        self.given.chmod(0o755)
        (self.given / "tmp").chmod(0o1777)

    def put(self, file: Path) -> None:
        """Copy a file into /tmp."""
        shutil.copy(file, self.given / "tmp")

    @property
    def _entered(self) -> list[str]:
        return ["enter", str(self.folder), str(self._release), self._where]

    def run(self, script: str) -> str:
        """Run a script of bash in there as root, and return what it prints; it must succeed, and what it made goes."""
        (self.given / "tmp/script").write_text(script)
        # What the script leaves running ends with its process namespace.
        argv = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--propagation", "private"]
        return _printed([*argv, "bash", "-c", _ENTER + _SCRIPT, *self._entered])


class BootedRoot(DebianRoot):
    """A Debian whose systemd runs, in namespaces and a control group of its own."""

    def __init__(self, folder: Path) -> None:
        """Take the release that has it. Skips the test if it cannot be had."""
        super().__init__(_BOOTS, folder)
        units = self.given / "etc/systemd/system"
        units.mkdir(parents=True)
        for unit in _MASKED:
            (units / unit).symlink_to("/dev/null")

    @contextlib.contextmanager
    def booted(self) -> Iterator[None]:
        """Boot it, and end all its processes afterwards. Skips the test if there is no version 2 of control groups."""
        top = next((Path(one) for one in _CGROUPS if Path(one, "cgroup.procs").exists()), None)
        if top is None:
            pytest.skip("no control groups of version 2 here: systemd cannot be booted")
        group = top / f"linkspan-{self.folder.parent.name}-{os.getpid()}"
        group.mkdir()
        spaces = ["--mount", "--net", "--pid", "--cgroup", "--uts", "--ipc", "--fork", "--kill-child"]
        argv = ["unshare", *spaces, "--propagation", "private", "bash", "-c", _ENTER + _BOOT, *self._entered]
        into = ["sh", "-c", f'echo $$ >{group}/cgroup.procs; exec "$@"', "sh"]
        log = (self.folder.parent / "console").open("w")
        process = subprocess.Popen([*into, *argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            until(lambda: _only_child(process.pid), "the first process starts")
            self._init = _only_child(process.pid)
            until(lambda: self._said("systemctl is-system-running") in _UP, "systemd has started", 60 * SHARED)
            yield
        finally:
            process.send_signal(signal.SIGKILL)  # its child, the first process, and with that one all others
            process.wait(30)
            log.close()
            _remove_groups(group)

    def _inside(self, script: str) -> list[str]:
        spaces = ["--mount", "--net", "--pid", "--cgroup", "--uts", "--ipc", "--root", "--wd"]
        plain = ["env", "-i", f"PATH={_PATH}", "HOME=/root", "LC_ALL=C.UTF-8"]
        return ["nsenter", f"--target={self._init}", *spaces, *plain, "bash", "-ec", script]

    def _said(self, script: str) -> str:
        done = subprocess.run(self._inside(script), capture_output=True, text=True, timeout=60, check=False)
        return done.stdout.strip()

    def run(self, script: str) -> str:
        """Run a script beside systemd."""
        return _printed(self._inside(script))


def _only_child(pid: int) -> int:
    """Return the only child of a process, 0 while it has none."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else 0


def _remove_groups(top: Path) -> None:
    """Remove a control group and those below it, whose processes are about to be gone."""

    def removed() -> bool:
        with contextlib.suppress(OSError):  # a process has not ended yet
            for folder, _, _ in os.walk(top, topdown=False):
                Path(folder).rmdir()
        return not top.exists()

    until(removed, f"{top} can be removed")


def _printed(argv: list[str]) -> str:
    done = subprocess.run(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def fetched(suite: str) -> Path:
    """Return the folder with a release's files, which are downloaded once. Skips the test without them."""
    included = f"{_INCLUDED},systemd-sysv,dbus" if suite == _BOOTS else _INCLUDED
    folder = CACHE / f"{suite}-{zlib.crc32(included.encode()):08x}"
    if not folder.exists():
        _download(suite, included, folder)
    return folder


def _download(suite: str, included: str, folder: Path) -> None:
    if not shutil.which("mmdebstrap"):
        pytest.skip("no mmdebstrap: a clean Debian cannot be had")
    CACHE.mkdir(parents=True, exist_ok=True)
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    asked = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    known = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split()
    if not (archives := [one for one in known if one.rstrip("/").endswith("/debian")]):
        pytest.skip("apt knows no archive of Debian here")
    argv = ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--format=directory", f"--include={included}"]
    # Nobody needs the files of a run that broke off. mmdebstrap leaves the option in the release.
    argv += ["--dpkgopt=force-unsafe-io", '--customize-hook=rm "$1"/etc/dpkg/dpkg.cfg.d/99mmdebstrap', suite, str(part)]
    done = subprocess.run([*argv, archives[0]], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"Debian's {suite} cannot be had: {done.stderr[-300:]}")
    shutil.rmtree(part / "dev")
    (part / "dev").mkdir()
    part.rename(folder)
