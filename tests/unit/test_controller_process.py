"""The controller's process begins where it may, and once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LINKSPAN = (sys.executable, "-c", "from linkspan.cli.main import main; main()")
WORDS = (*LINKSPAN, "controller", "--switch", "sw1=unix:/nowhere")


def _words(folder: Path, state: Path) -> tuple[str, ...]:
    places = ("--store", f"sqlite://{folder}/store", "--socket", str(folder / "sock"), "--state-dir", str(state))
    return (*WORDS, *places)


def test_a_second_controller_in_one_state_folder_is_refused(tmp_path: Path) -> None:
    """It would take the first one's socket, and write over what it remembers."""
    words = _words(tmp_path, tmp_path / "state")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as first:
        try:
            assert first.stdout is not None
            assert first.stdout.readline() == "ready\n"
            second = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
            assert second.returncode == 1
            assert f"state is in use by the controller with pid {first.pid}; stop that one first" in second.stderr
            assert (tmp_path / "sock").exists()
        finally:
            first.terminate()


def test_a_state_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    """In one line, and with what to do."""
    (tmp_path / "file").touch()
    done = subprocess.run(
        _words(tmp_path, tmp_path / "file" / "state"), capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    why = "not a directory; run as root, or give --state-dir"
    assert done.stderr == f"linkspan: state folder {tmp_path}/file/state: {why}\n"
