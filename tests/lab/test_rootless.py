"""Labs without root: a user who is nobody makes one in a user namespace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import linkspan
from linkspan.lab import rootless

NOBODY = 65534
SOURCE = Path(linkspan.__file__).parents[1]


def _as_nobody(*argv: str) -> subprocess.CompletedProcess[str]:
    """Run a command as user nobody; by way of a shell, for setpriv itself may look where nobody may not."""
    user = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(SOURCE), *filter(None, sys.path)]), "HOME": "/"}
    return subprocess.run(
        [*user, "sh", "-c", 'exec "$@"', "sh", *argv],
        capture_output=True,
        text=True,
        env=env,
        cwd="/",
        timeout=120,
        check=False,
    )


@pytest.fixture
def python() -> str:
    """Give an interpreter that nobody may run, with linkspan; skip where there is none, or no user namespace."""
    for path in (sys.executable, os.path.realpath(sys.executable)):
        if _as_nobody(path, "-c", "import linkspan.cli.lab").returncode == 0:
            break
    else:
        pytest.skip(f"user nobody may not run {sys.executable}")
    tried = _as_nobody("unshare", "--user", "--map-root-user", "--mount", "--net", "true")
    if tried.returncode:
        pytest.skip(f"no user namespaces here: {tried.stderr.strip()}")
    return path


def _keepers() -> list[str]:
    mark = f"{rootless.MARK}={NOBODY}".encode()
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                if mark in (process / "environ").read_bytes().split(b"\0"):
                    found.append(process.name)
            except OSError:
                continue
    return found


def test_a_lab_without_root(python: str) -> None:
    """It is created, tried, broken, repaired and removed; nothing is left, and root's labs do not list it."""
    name = f"lkl{os.getpid()}u"

    def lab(verb: str, *words: str) -> str:
        done = _as_nobody(python, "-m", "linkspan.cli.main", "lab", verb, *words, "--lab", name)
        assert done.returncode == 0, f"lab {verb}: {done.stdout}{done.stderr}"
        return done.stdout

    assert "there is no lab" in lab("down")
    try:
        lab("up", "--backend", "bridge", "--hosts", "2", "--containers-per-host", "2")
        assert not Path("/run/netns", f"{name}-h1").exists()
        assert json.loads(lab("test", "-o", "json"))["failed"] == []
        lab("break", "h1", "reboot")
        lab("break", "h2", "agent-kill")
        lab("mend", "h2")
        assert json.loads(lab("test", "-o", "json")) == {"pairs": 8, "ok": 8, "failed": []}
    finally:
        lab("down")
    assert _keepers() == []


def test_another_verb_without_root_and_without_a_lab_says_so(python: str) -> None:
    """Only `lab up` creates the user's namespaces; other verbs report that there is no lab."""
    done = _as_nobody(python, "-m", "linkspan.cli.main", "lab", "show", "--lab", "lkl-none")
    assert done.returncode == 1
    assert "there is no lab lkl-none" in done.stderr
    assert _keepers() == []
