"""Shared by all benchmarks: their own namespaces, metrics with targets, and their report."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from linkspan.core.errors import LinkspanError

Metric = dict[str, Any]

EACH = 10.0
"""Seconds between two lines of progress in a file."""


Measure = Callable[[Path, bool], dict[str, Metric]]
"""Gets a folder in memory and whether to be quick, prints its tables, and returns the metrics."""


def run(
    measure: Measure, description: str, quick: str, instead: Mapping[str, tuple[Measure, str]] | None = None
) -> None:
    """Go into network and mount namespaces of our own, measure there, and end with one line of JSON.

    ``instead`` has what else may be measured: the name of the option, what it measures, and its help.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.set_defaults(measure=measure)
    for option, (other, what) in (instead or {}).items():
        parser.add_argument(f"--{option}", action="store_const", dest="measure", const=other, help=what)
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    program = Path(sys.argv[0])
    if os.geteuid():
        sys.exit(f"error: this makes network namespaces, which needs root: sudo bench/{program.name}")
    if not arguments.inside:
        with tempfile.TemporaryDirectory(prefix="lkp") as folder:
            again = [sys.executable, str(program), *sys.argv[1:], "--inside", folder]
            sys.exit(subprocess.run(["unshare", "--net", "--mount", "--propagation", "private", *again]).returncode)
    for folder in (arguments.inside, "/run"):
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True)
    Path("/run/netns").mkdir()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    try:
        found = arguments.measure(Path(arguments.inside), arguments.quick)
    except LinkspanError as error:
        sys.exit(f"error: {error.message}")
    date = datetime.now(UTC).date().isoformat()
    print("\n" + json.dumps({"bench": program.stem, "date": date, "machine": machine(), "results": found}))


def open_files() -> None:
    """Let this program and what it starts have as many open files as the machine allows."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def machine() -> str:
    """Describe the machine, as far as it matters to the figures."""
    release = platform.freedesktop_os_release()["PRETTY_NAME"]
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    python = platform.python_version()
    return f"{os.cpu_count()} cores of {model}, Linux {platform.release()}, {release}, Python {python}"


def result(value: float, unit: str, target: str = "") -> Metric:
    """Return one metric; a target reads "<= 0.35"."""
    met = None
    if target:
        sign, bound = target.split()
        met = value <= float(bound) if sign == "<=" else value >= float(bound)
    return {"value": round(value, 3), "unit": unit, "target": target or None, "met": met}


def table(what: str, found: dict[str, Metric]) -> None:
    """Print metrics for a reader, as Markdown."""
    print(f"| {what} | wanted | measured | |\n|---|---|---|---|")
    for name, metric in found.items():
        unit = "" if metric["unit"] == "ratio" else f" {metric['unit']}"
        met = {True: "met", False: "missed", None: ""}[metric["met"]]
        wanted = f"{metric['target']}{unit}" if metric["target"] else ""
        print(f"| {name} | {wanted} | {metric['value']:.2f}{unit} | {met} |")


class Progress:
    """Says on stderr how far a benchmark is: on a terminal in one line, in a file at most one line each 10 s."""

    def __init__(self) -> None:
        self._told = float("-inf")

    def __call__(self, text: str) -> None:
        """Say it."""
        if sys.stderr.isatty():
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
        elif text and time.monotonic() - self._told >= EACH:
            self._told = time.monotonic()
            print(f"{datetime.now(UTC):%H:%M:%S} {text}", file=sys.stderr, flush=True)


progress = Progress()


def p(values: list[float], percent: int) -> float:
    """Return a percentile."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
