"""Run the tests that have the machine to themselves (the marker ``alone``), from the folders that are named.

They run one at a time, but for some files whose tests wait most of their time. These files run beside the others, or
the run would be twice as long.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, NamedTuple

WAITING = (
    ("tests/agent/test_idle.py",),  # whatever else runs can only add to the CPU time that it measures
    ("tests/lab/test_deaths.py", "tests/lab/test_soak.py"),  # their deadlines are 5 s and more
)
"""Files that run beside the others. Those of one row run one after the other."""


class Started(NamedTuple):
    """A run of pytest beside this one, and what it says."""

    process: subprocess.Popen[bytes]
    said: IO[bytes]


def marked(folders: Iterable[str]) -> list[str]:
    """Return the files that name the marker, sorted: to collect the tests of all files takes several seconds.

    So those of runtimes are the last ones, when most of what waits has ended: they allow an outage of one second.
    """
    files = [str(file) for folder in folders for file in Path(folder).rglob("test_*.py")]
    return sorted(file for file in files if "mark.alone" in Path(file).read_text(encoding="utf-8"))


def command(files: Sequence[str], number: int) -> list[str]:
    """Return the command that runs the tests of these files.

    Each run has a cache of its own, by its number: scripts/retry.py finds the failed tests there.
    """
    cache = ["-o", f"cache_dir=.pytest_cache/alone/{number}", "--cache-clear"]
    return [sys.executable, "-m", "pytest", *cache, "-m", "alone", "--durations=5", *files]


def beside(files: Sequence[str], number: int) -> Started:
    """Start a run whose output is shown later."""
    said = tempfile.TemporaryFile()  # noqa: SIM115 - it is read after the process has ended
    return Started(subprocess.Popen(command(files, number), stdout=said, stderr=subprocess.STDOUT), said)


def main(folders: Sequence[str]) -> int:
    """Run all, print what each run says, and return the exit code of one that failed, 0 if none did."""
    files = marked(folders)
    rows = [[file for file in row if file in files] for row in WAITING]
    started = [beside(row, number) for number, row in enumerate(rows) if row]
    others = [file for file in files if not any(file in row for row in rows)]
    codes = [subprocess.run(command(others, len(rows)), check=False).returncode] if others else []
    for one in started:
        codes.append(one.process.wait())
        one.said.seek(0)
        sys.stdout.buffer.write(one.said.read())
        sys.stdout.flush()
    return max(codes, default=0)  # 1 is the least: tests failed, and scripts/test has them run again


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
