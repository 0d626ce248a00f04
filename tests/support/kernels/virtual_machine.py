"""One run of pytest inside the virtual machine, and what its tests told."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from support.kernels import debian

REPORTS = "LINKSPAN_KERNEL_REPORTS"
"""Set inside: the file for reports, one a line."""
SECONDS = 900.0
"""For all tests together, on a machine that does much else."""


class Told(msgspec.Struct, frozen=True):
    """Results from inside: reports in pytest's serial form by test, and the machine's output; or why there are none."""

    reports: dict[str, list[dict[str, Any]]]
    said: str = ""
    missing: str = ""


def run(root: Path, tests: Sequence[str]) -> Told:
    """Boot, and run these tests from this folder inside."""
    with tempfile.TemporaryDirectory(prefix="lkk") as folder:
        share = Path(folder)
        (share / "tests").write_text("\n".join(tests))
        written = share / "reports"
        env = {
            "PATH": os.environ["PATH"],
            "HOME": "/root",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # their import takes as long as pytest's own
            REPORTS: str(written),
        }
        plugins = ("-p", "no:cacheprovider", "-p", "pytest_timeout")
        job = [sys.executable, "-m", "pytest", *plugins, "-q", f"@{share}/tests"]
        try:
            said = debian.run(job, root, share, env, SECONDS)
        except debian.Missing as missing:
            return Told({}, missing=str(missing))
        lines = written.read_text().splitlines() if written.exists() else []
    reports: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        report = json.loads(line)
        reports[report["nodeid"]].append(report)
    return Told(reports, said)
