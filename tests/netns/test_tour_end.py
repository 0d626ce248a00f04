"""The end of the tour: no process is left."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from linkspan.demo import stage
from linkspan.demo.language import Words


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """Give a namespace in the place of the tour's own."""
    name = f"lktour{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    monkeypatch.setattr(stage, "HOST", name)
    monkeypatch.setattr(stage, "FOLDER", tmp_path)
    yield name
    subprocess.run(["ip", "netns", "delete", name], check=True)


def _running(place: str, word: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-c", "print('up', flush=True); input()", word]
    process = subprocess.Popen(
        ["ip", "netns", "exec", place, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    return process


def test_what_serves_names_ends_with_the_tour(place: str, tmp_path: Path) -> None:
    """The name server outlives its agent; a shell that a user has opened there is left alone."""
    server, shell = _running(place, f"--addn-hosts={tmp_path}/names"), _running(place, "shell")
    with server, shell:
        try:
            stage.Stage(Words("en")).clear()
            assert server.wait(60) < 0
            assert shell.poll() is None
        finally:
            server.kill()
            shell.kill()
