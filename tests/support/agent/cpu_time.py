"""CPU time of a process, thread by thread."""

from __future__ import annotations

import contextlib
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import AnyStr


@dataclass(frozen=True)
class Use:
    """Resources that a process used: seconds on the clock, and seconds of CPU time by thread."""

    seconds: float
    threads: dict[str, float]

    @property
    def share(self) -> float:
        """The share of one core, from 0 to 1."""
        return sum(self.threads.values()) / self.seconds

    def __str__(self) -> str:
        most = sorted(self.threads.items(), key=lambda one: one[1], reverse=True)
        told = ", ".join(f"{name}: {used * 1000:.1f} ms" for name, used in most)
        return f"{self.share:.2%} of a core in {self.seconds:.1f} s ({told})"


def measured(process: subprocess.Popen[AnyStr], seconds: float) -> Use:
    """Return what a process uses in the next ``seconds``; fail if it ends meanwhile."""
    begun, before = time.monotonic(), threads(process.pid)
    with contextlib.suppress(subprocess.TimeoutExpired):
        raise AssertionError(f"the process ended with {process.wait(seconds)}")
    after = threads(process.pid)
    return Use(time.monotonic() - begun, {name: total - before.get(name, 0.0) for name, total in after.items()})


def threads(pid: int) -> dict[str, float]:
    """Return the seconds that each thread has run so far (schedstat of proc(5), in nanoseconds)."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread has just ended
            nanoseconds = int((task / "schedstat").read_text().split()[0])
            found[f"{(task / 'comm').read_text().strip()} {task.name}"] = nanoseconds / 1e9
    return found
