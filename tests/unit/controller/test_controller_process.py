"""The controller's process begins where it may, and once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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
    """In one line, and with what to do, after which it begins."""
    file = tmp_path / "file"
    file.touch()
    words = _words(tmp_path, file / "state")
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    why = f"not a directory; move away what is in its place (mv {file} {file}.bad)"
    assert done.stderr == f"linkspan: state folder {tmp_path}/file/state: {why}\n"
    file.rename(tmp_path / "file.bad")
    _begins(words)


def _begins(words: tuple[str, ...]) -> None:
    """Run a controller until it is ready, and end it."""
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        finally:
            process.terminate()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ('metrics = "9643"', "setting metrics: '9643' is not ADDRESS:PORT; write it like 127.0.0.1:9642 or [::1]:9642"),
        ('metrics = "::1:99999"', "setting metrics: '::1:99999' is not ADDRESS:PORT"),
        ("colour = 1", "setting colour does not exist; `linkspan controller --print-config` shows every key"),
        ("[switches", "controller.toml: expected ']' at the end of a table declaration"),
        ('[switches]\nsw2 = "gate"', "switch sw2: address 'gate' is not understood; write tcp:IP:PORT, ssl:IP:PORT or"),
        ('[switches]\nsw2 = "ssl:192.0.2.1"', "switch sw2: ssl:192.0.2.1 needs private-key, certificate, ca-cert"),
    ],
)
def test_what_the_error_says_lets_it_begin(tmp_path: Path, wrong: str, told: str) -> None:
    """Settings that cannot be are named, with what to do; without them it begins."""
    file = tmp_path / "controller.toml"
    file.write_text(wrong)
    words = (*_words(tmp_path, tmp_path / "state"), "--config", str(file))
    words = tuple(word for word in words if "sw2" not in wrong or word not in ("--switch", "sw1=unix:/nowhere"))
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert told in done.stderr
    file.write_text("")
    _begins((*_words(tmp_path, tmp_path / "state"), "--config", str(file)))


def test_a_store_that_is_not_understood_is_named(tmp_path: Path) -> None:
    """With how one is written; by that it begins."""
    words = list(_words(tmp_path, tmp_path / "state"))
    at = words.index("--store") + 1
    right, words[at] = words[at], "consul://h1"
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "store 'consul://h1' is not understood; write sqlite:///abs/folder or etcd://HOST:2379" in done.stderr
    words[at] = right
    _begins(tuple(words))


def test_a_socket_that_another_controller_serves_is_not_taken(tmp_path: Path) -> None:
    """The second one has its own state folder, so only the socket conflicts; with another path both run."""
    with subprocess.Popen(
        _words(tmp_path, tmp_path / "one"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as first:
        try:
            assert first.stdout is not None
            assert first.stdout.readline() == "ready\n"
            words = _words(tmp_path, tmp_path / "two")
            second = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
            assert second.returncode == 1
            assert f"socket {tmp_path}/sock is served by another process, with pid {first.pid}" in second.stderr
            assert "stop that one first, or give --socket another path" in second.stderr
            assert (tmp_path / "sock").is_socket()
            _begins((*words, "--socket", str(tmp_path / "other")))
        finally:
            first.terminate()
