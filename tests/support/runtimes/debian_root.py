"""A clean Debian to install packages on: its files in a folder, in namespaces of its own, with no network.

systemd does not run in there.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CACHE = Path(sys.prefix, "cache", "debian-roots")
_INCLUDED = "nftables,iproute2,iputils-ping,kmod,procps,iptables,conntrack,dnsmasq-base,ethtool"
_ENTER = """set -e
cd "$1"
mount --bind . .
cd "$1"
mount -t proc proc proc
mount --rbind /dev dev
mount -t tmpfs run run
ip link set lo up
exec env -i PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 chroot . bash -e /tmp/script
"""


class DebianRoot:
    """The files of a Debian release in a folder."""

    def __init__(self, suite: str, folder: Path) -> None:
        """Unpack a release, which is downloaded once. Skips the test if it cannot be had."""
        archive = CACHE / f"{suite}.tar"
        if not archive.exists():
            _download(suite, archive)
        self.folder = folder
        folder.mkdir()
        subprocess.run(["tar", "-C", folder, "--exclude=./dev/*", "-xf", archive], check=True)

    def put(self, file: Path) -> None:
        """Copy a file into /tmp."""
        shutil.copy(file, self.folder / "tmp")

    def run(self, script: str) -> str:
        """Run a script of bash in there as root, and return what it prints; it must succeed."""
        (self.folder / "tmp/script").write_text(script)
        # What the script leaves running ends with its process namespace.
        argv = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--propagation", "private"]
        done = subprocess.run(
            [*argv, "bash", "-c", _ENTER, "enter", str(self.folder)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-4000:]
        return done.stdout


def _download(suite: str, archive: Path) -> None:
    if not shutil.which("mmdebstrap"):
        pytest.skip("no mmdebstrap: a clean Debian cannot be had")
    CACHE.mkdir(parents=True, exist_ok=True)
    part = archive.with_suffix(".part.tar")
    asked = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    known = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split()
    if not (archives := [one for one in known if one.rstrip("/").endswith("/debian")]):
        pytest.skip("apt knows no archive of Debian here")
    argv = ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", f"--include={_INCLUDED}", suite, str(part)]
    done = subprocess.run([*argv, archives[0]], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"Debian's {suite} cannot be had: {done.stderr[-300:]}")
    part.rename(archive)
