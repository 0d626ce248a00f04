"""Packages: their sizes, how long an installation takes without a network, and what a removal leaves.

Each round unpacks a clean Debian, which is not counted, and then types what docs/packages.md shows: `dpkg -i` and
`dpkg -P`, or `rpm -i` and `rpm -e` (with --nodeps: Debian's rpm knows none of Debian's packages). The files of the
system before and after are compared. systemd does not run there.

    sudo .venv/bin/python bench/packages.py [--quick]

It measures the packages in build/, which `scripts/package` makes. Without any it makes them first.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import report
from report import Metric, progress, result

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from support.runtimes.debian_root import DebianRoot, fetched

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
ROUNDS, QUICK_ROUNDS = 5, 1
LIST = "find / -xdev \\( -path /proc -o -path /tmp -o -path /run -o -path /var/log \\) -prune -o -print | sort"
DPKG = ("dpkg -i", "dpkg -P linkspan")
RPM = ("rpm -i --nodeps", "rpm -e linkspan")
SYSTEMS = {  # name: the release, the package's suffix, the commands that install and remove it
    "Debian 12, .deb": ("bookworm", ".deb", DPKG),
    "Debian 13, .deb": ("trixie", ".deb", DPKG),
    "Debian 13, .rpm": ("trixie", ".rpm", RPM),
}


def package(suffix: str) -> Path:
    """Return the package in build/ with this suffix."""
    (found,) = BUILD.glob(f"*{suffix}")
    return found


def once(suite: str, file: Path, commands: tuple[str, str]) -> tuple[float, float, int]:
    """Return the seconds of an installation and of a removal, and the number of files that it left or took."""
    install, remove = commands
    with tempfile.TemporaryDirectory(prefix="lkb", dir="/var/tmp") as folder:
        root = DebianRoot(suite, Path(folder, "root"), disk=True)
        root.put(file)
        said = root.run(f"""
            rpm --initdb
            {LIST} >/tmp/before
            begun=$EPOCHREALTIME
            {install} /tmp/{file.name} >/tmp/said
            middle=$EPOCHREALTIME
            linkspan --version
            then=$EPOCHREALTIME
            {remove} >/tmp/said
            ended=$EPOCHREALTIME
            {LIST} >/tmp/after
            echo times $begun $middle $then $ended $(diff /tmp/before /tmp/after | grep -c '^[<>]')
        """)
    begun, middle, then, ended, left = (float(word) for word in said.split("times ")[1].split())
    return middle - begun, ended - then, int(left)


def measure(_folder: Path, quick: bool) -> dict[str, Metric]:
    """Print the table, and return the metrics."""
    found: dict[str, Metric] = {}
    for suffix in (".deb", ".rpm"):
        found[f"{suffix}: size"] = result(package(suffix).stat().st_size / 1e6, "MB", "<= 40")
    for name, (suite, suffix, commands) in SYSTEMS.items():
        rounds = []
        for number in range(QUICK_ROUNDS if quick else ROUNDS):
            progress(f"{name}: round {number + 1}")
            rounds.append(once(suite, package(suffix), commands))
        installed, removed, left = zip(*rounds, strict=True)
        found[f"{name}: installed without a network, p50"] = result(statistics.median(installed), "s", "<= 10")
        found[f"{name}: installed without a network, longest"] = result(max(installed), "s")
        found[f"{name}: removed, p50"] = result(statistics.median(removed), "s")
        found[f"{name}: files left or taken"] = result(max(left), "files", "<= 0")
    progress("")
    report.table("packages", found)
    return found


def prepare() -> None:
    """Build the packages and fetch the Debian releases while there is a network."""
    if not all(list(BUILD.glob(f"*{suffix}")) for suffix in (".deb", ".rpm")):
        progress("the packages are built")
        subprocess.run([sys.executable, str(ROOT / "scripts/packaging/build.py")], check=True)
    for suite in ("bookworm", "trixie"):
        progress(f"Debian's {suite} is fetched")
        fetched(suite)


if __name__ == "__main__":
    if "--inside" not in sys.argv:
        prepare()
    report.run(measure, "Measure the packages.", "one round, instead of five")
