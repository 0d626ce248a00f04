"""The lab's command line, as tests and users call it."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from linkspan.core.config import LABS
from linkspan.lab import inside, processes, record
from linkspan.lab.commands import entering
from support.command_line import is_local, linkspan

_numbers = itertools.count()
COMMAND = (sys.executable, "-m", "linkspan.cli.main", "lab")
"""For tests that end it midway, or see what a real start prints."""


class LabRun:
    """One lab, by a name of its own."""

    def __init__(self) -> None:
        self.name = f"lkl{os.getpid()}-{next(_numbers)}"
        self.folder = LABS / self.name

    def run(self, verb: str, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a verb of the lab and expect an exit code (-1: any)."""
        options, _, command = " ".join(words).partition(" -- ")
        words = (*options.split(), "--lab", self.name, *(("--", *command.split()) if command else ()))
        done = linkspan("lab", verb, *words)
        assert code in (done.returncode, -1), (
            f"lab {verb} {words}: {done.returncode}: {done.stdout}{done.stderr}"
        )
        return done

    def json(self, verb: str, *words: str, code: int = 0) -> Any:
        """Run a verb with -o json and return what it prints."""
        return json.loads(self.run(verb, *words, "-o", "json", code=code).stdout)

    def exec(self, place: str, command: str, code: int = 0) -> str:
        """Run a command in a host or container, as `lab exec` does, and return its output."""
        lab, words = record.load(self.name), command.split()
        environment = inside.environment(lab, place)
        if words[0] == "linkspan" and "PYTHONPATH" not in environment:
            netns, hostname = (lab.place(place).namespace, place) if is_local(words[1:]) else ("", "")
            done = linkspan(*words[1:], variables=environment, seconds=180.0, netns=netns, hostname=hostname)
        else:
            argv = inside.command(lab, place, words)
            done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False, env=environment)
        assert code in (done.returncode, -1), f"{command} on {place}: {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout

    def pings(self, place: str, address: str) -> bool:
        """Return whether one ping out of three tries is answered."""
        command = [*entering(f"{self.name}-{place}"), "ping", "-c1", "-W1", address]
        return any(
            subprocess.run(command, capture_output=True, check=False).returncode == 0 for _ in range(3)
        )

    def answers(self, place: str, address: str, seconds: float = 0.2) -> bool:
        """Tell whether a single ping is answered within ``seconds``: a look that is short beside a promise of time."""
        command = [*entering(f"{self.name}-{place}"), "ping", "-c1", f"-W{seconds}", address]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def silent(self, place: str, address: str) -> bool:
        """Return whether a single ping stays without an answer for a second."""
        command = [*entering(f"{self.name}-{place}"), "ping", "-c1", "-W1", address]
        return subprocess.run(command, capture_output=True, check=False).returncode != 0

    def processes(self) -> list[int]:
        """Return the processes that have this lab's mark."""
        return list(processes.of_lab(self.folder, lambda _role, _environ: True))

    def namespaces(self) -> list[str]:
        """Return the network namespaces whose names are of this lab."""
        folder = Path("/run/netns")
        return sorted(p.name for p in folder.glob(f"{self.name}-*")) if folder.is_dir() else []

    def left(self) -> list[object]:
        """Return everything of this lab that is there."""
        return [*self.namespaces(), *self.processes(), *([self.folder] if self.folder.exists() else [])]
