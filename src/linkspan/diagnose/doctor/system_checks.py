"""Checks of linkspan's surroundings: the tools it needs, systemd, disk and clock."""

from __future__ import annotations

import configparser
import ctypes
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from linkspan.diagnose.doctor.checks import Check, Checks, Surroundings
from linkspan.diagnose.trace.kernel_view import KernelView

NFT = (1, 0, 6)
"""The oldest nft with which linkspan's tables were tried (Debian 12's)."""
LITTLE, LEAST = 512 << 20, 64 << 20
"""Free bytes on the state folder's disk below which doctor warns, and below which an attach will fail."""
_EPOCH = 1_735_689_600  # 2025-01-01: a clock before this release is wrong
_UNSYNCHRONISED = 5  # TIME_ERROR, adjtimex(2)


def nft_version(_asked: KernelView, _around: Surroundings) -> Iterator[Check]:
    """Yield nft's version: the library does the work, but the command has the same version, and `plan` uses it."""
    fix = "apt install nftables"
    if not (command := shutil.which("nft")):
        yield Check("nft", "fail", "nft is not installed", fix)
        return
    said = subprocess.run(
        [command, "--version"], capture_output=True, text=True, timeout=10, check=False
    ).stdout
    found = re.search(r"v(\d+)\.(\d+)(?:\.(\d+))?", said)
    version = tuple(int(part or 0) for part in found.groups()) if found else (0,)
    text = found[0] if found else said.strip()
    if version < NFT:
        oldest = ".".join(map(str, NFT))
        yield Check("nft", "warn", f"{text} is older than {oldest}, the oldest tested version", fix)
    else:
        yield Check("nft", "ok", text)


def networkd(_asked: KernelView, around: Surroundings) -> Iterator[Check]:
    """Yield whether systemd-networkd removes routes and rules that it did not make (networkd.conf(5))."""
    if not around.file("/run/systemd/netif/state").exists():
        yield Check("systemd-networkd", "ok", "does not run")
        return
    settings = _networkd_settings(around)
    keys = ("ManageForeignRoutes", "ManageForeignRoutingPolicyRules")
    loose = [k for k in keys if settings.get(k.lower(), "yes").lower() not in ("no", "false", "off", "0")]
    if loose:
        lines = "\\n".join(f"{key}=no" for key in loose)
        target = "/etc/systemd/networkd.conf.d/linkspan.conf"
        fix = f"printf '[Network]\\n{lines}\\n' | install -D /dev/stdin {target}; systemctl restart systemd-networkd"
        detail = f"{' and '.join(loose)} are on: when it restarts it removes routes that it did not make"
        yield Check("systemd-networkd", "warn", f"{detail} (the agent restores them)", fix)
    else:
        yield Check("systemd-networkd", "ok", "does not touch foreign routes")
    links = around.file("/etc/systemd/network").glob("*.network")
    unmanaged = any("ls-" in p.read_text(errors="replace") for p in links)
    if not unmanaged and (wide := _wide(around)):
        detail = f"{wide} matches every link, linkspan's too: it may configure bridges and veths of ours"
        yield Check("systemd-networkd links", "warn", detail, "give it [Match] Name=en* or the uplink's name")


def _networkd_settings(around: Surroundings) -> dict[str, str]:
    folders = [around.file(f"{base}/systemd/networkd.conf.d") for base in ("/usr/lib", "/run", "/etc")]
    files = [
        around.file("/etc/systemd/networkd.conf"),
        *(p for f in folders for p in sorted(f.glob("*.conf"))),
    ]
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    for file in files:
        try:
            parser.read(file)
        except configparser.Error:
            continue
    return dict(parser["Network"]) if parser.has_section("Network") else {}


def _wide(around: Surroundings) -> str:
    """Return a .network file that matches every link, '' if there is none."""
    for file in sorted(around.file("/etc/systemd/network").glob("*.network")):
        if re.search(r"^Name=\*\s*$", file.read_text(errors="replace"), re.MULTILINE):
            return file.name
    return ""


def disk(_asked: KernelView, around: Surroundings) -> Iterator[Check]:
    """Yield the free space: an attach writes a record before it touches the kernel, and fails on a full disk."""
    yield space("disk", around.state_dir)


def space(name: str, wanted: Path) -> Check:
    """Return how much space is free for a folder."""
    folder = wanted
    while not folder.exists():
        folder = folder.parent
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    detail = f"{free >> 20} MiB free for {wanted}"
    fix = f"free some space: df {folder}; du -xh {folder} | sort -h | tail"
    if found.f_files and not found.f_favail:
        return Check(name, "fail", f"no inode is left for {wanted}", f"df -i {folder}")
    if free < LITTLE:
        return Check(name, "fail" if free < LEAST else "warn", detail, fix)
    return Check(name, "ok", detail)


def clock(_asked: KernelView, _around: Surroundings) -> Iterator[Check]:
    """Yield whether the clock is right: linkspan counts by the clock since boot, but certificates and logs need it."""
    fix = "systemctl enable --now systemd-timesyncd (or chrony)"
    if time.time() < _EPOCH:
        yield Check("clock", "fail", f"it is {time.strftime('%Y-%m-%d')} here, which cannot be", fix)
        return
    state = ctypes.CDLL(None).adjtimex(
        ctypes.create_string_buffer(256)
    )  # struct timex, with modes 0: only read
    if state == _UNSYNCHRONISED:
        yield Check("clock", "warn", "no service synchronises it", fix)
    else:
        yield Check("clock", "ok", "synchronised")


CHECKS: Checks = (
    ("nft", nft_version),
    ("systemd-networkd", networkd),
    ("disk", disk),
    ("clock", clock),
)
