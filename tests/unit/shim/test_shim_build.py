"""Building and installing the CNI plugin."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from linkspan.shim import build


def version(plugin: Path) -> list[str]:
    """Return what an installed plugin answers to VERSION."""
    ended = subprocess.run(
        [plugin], env={"CNI_COMMAND": "VERSION"}, stdin=subprocess.DEVNULL, capture_output=True
    )
    assert ended.returncode == 0, ended.stderr
    return list(json.loads(ended.stdout)["supportedVersions"])


def no_compiler(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Make this a machine without a compiler."""
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CC", raising=False)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler: apt-get install gcc libc6-dev")
def test_compiled_plugin_is_installed(tmp_path: Path) -> None:
    """It answers from a new folder, and no other file is left beside it."""
    target = tmp_path / "bin" / "linkspan"
    assert build.install(target) == "compiled"
    assert target.read_bytes()[:4] == b"\x7fELF"
    assert version(target)[-1] == "1.1.0"
    assert list(target.parent.iterdir()) == [target]


def test_twin_is_installed_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python form is one file without dependencies, and it replaces the existing plugin."""
    no_compiler(monkeypatch, tmp_path)
    target = tmp_path / "linkspan"
    target.write_text("old")
    assert not build.build(tmp_path / "other")
    assert build.install(target) == "python"
    assert target.read_bytes().startswith(f"#!{sys.executable} -IS\n".encode())
    assert version(target)[-1] == "1.1.0"
    assert list(tmp_path.iterdir()) == [target]


def test_prebuilt_plugin_is_used_where_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one of the wheel is copied; one for another machine is passed over."""
    no_compiler(monkeypatch, tmp_path)
    prebuilt = tmp_path / "prebuilt"
    monkeypatch.setattr(build, "PREBUILT", prebuilt)
    prebuilt.write_text('#!/bin/sh\necho \'{"supportedVersions":["here"]}\'\n')
    assert build.install(tmp_path / "first") == "compiled"
    assert version(tmp_path / "first") == ["here"]
    prebuilt.write_bytes(b"\x7fELF of another machine")
    assert build.install(tmp_path / "second") == "python"


def test_compiler_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken tool chain is the same as none."""
    monkeypatch.setenv("CC", "false")
    assert not build.build(tmp_path / "linkspan")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", ["with space", "long" * 60])
def test_interpreter_that_a_shebang_cannot_name(tmp_path: Path, folder: str) -> None:
    """A path with a space or of more than 255 bytes is reached through sh."""
    python = tmp_path / folder / "python's"
    python.parent.mkdir()
    python.symlink_to(Path(sys.executable).resolve())
    target = tmp_path / "linkspan"
    target.write_bytes(build.script(str(python)))
    target.chmod(0o755)
    assert version(target)[-1] == "1.1.0"


def test_twin_runs_under_another_python(tmp_path: Path) -> None:
    """If the compiled form is not for this interpreter, the source beside it is used."""
    text = build.script(sys.executable)
    target = tmp_path / "linkspan"
    changed = text.replace(b"MAGIC_NUMBER == ", b"MAGIC_NUMBER == b'' + b'other' + ")
    assert changed != text
    target.write_bytes(changed)
    target.chmod(0o755)
    assert version(target)[-1] == "1.1.0"


def test_twin_runs_as_a_script() -> None:
    """The source itself can be run, with no site and nothing of the environment."""
    ended = subprocess.run(
        [sys.executable, "-I", "-S", build.TWIN],
        env={"CNI_COMMAND": "VERSION"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    assert b"supportedVersions" in ended.stdout


def test_plugin_is_small() -> None:
    """The C form stays a page that one can read: at most 250 lines."""
    assert len(build.SOURCE.read_text().splitlines()) <= 250
