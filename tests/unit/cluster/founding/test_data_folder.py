"""The data folder of etcd: whose data it has, and when etcd must not be started with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from linkspan.cluster.founding import data_folder
from linkspan.cluster.founding.data_folder import Note, check, minor_of, note, prepare, put_aside
from linkspan.core.errors import Conflict, LinkspanError, NotFound, Unavailable

OWNER = (os.geteuid(), os.getegid())


def etcd(folder: Path, version: str) -> str:
    """Return a program that says that it is etcd of a version."""
    program = folder / f"etcd-{version}"
    program.write_text(f"#!/bin/sh\necho 'etcd Version: {version}'\n")
    program.chmod(0o755)
    return str(program)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Give a prepared data folder of host h1, with data of etcd 3.5."""
    folder = tmp_path / "etcd" / "data"
    prepare(folder, Note("h1", "3.5", "m1"), OWNER)
    (folder / "member").mkdir()
    return folder


def test_a_prepared_folder_is_started_with_and_then_never_empty(data: Path, tmp_path: Path) -> None:
    """At the first start there is nothing in it; once there was, its loss is noticed."""
    program = etcd(tmp_path, "3.5.16")
    (data / "member").rmdir()
    check(data, "h1", program, OWNER)
    (data / "member").mkdir()
    check(data, "h1", program, OWNER)
    (data / "member").rmdir()
    with pytest.raises(NotFound, match="data of this voter is gone"):
        check(data, "h1", program, OWNER)
    shutil.rmtree(data)
    with pytest.raises(NotFound, match="data of this voter is gone"):
        check(data, "h1", program, OWNER)


def test_data_of_another_host_or_another_minor_version_are_not_used(data: Path, tmp_path: Path) -> None:
    """A copied folder makes two members with one id; other patch releases are fine."""
    check(data, "h1", etcd(tmp_path, "3.5.99"), OWNER)
    with pytest.raises(Conflict, match="copy of the data of host h1"):
        check(data, "h2", etcd(tmp_path, "3.5.16"), OWNER)
    for version in ("3.4.23", "3.6.0"):
        with pytest.raises(Conflict, match=r"data of etcd 3\.5"):
            check(data, "h1", etcd(tmp_path, version), OWNER)
    (data / data_folder.NOTE).unlink()  # an operator upgrades on purpose
    check(data, "h1", etcd(tmp_path, "3.6.0"), OWNER)
    assert note(data) == Note("h1", "3.6", begun=True)


def test_a_new_membership_begins_without_the_old_data(data: Path) -> None:
    """They are renamed; the same membership goes on with what it has."""
    prepare(data, Note("h1", "3.5", "m1"), OWNER)
    assert (data / "member").exists()
    prepare(data, Note("h1", "3.5", "m2"), OWNER)
    assert not (data / "member").exists()
    assert (data.with_name("data.before") / "member").exists()
    put_aside(data)
    assert not data.exists()
    assert (data.with_name("data.before") / "member").exists()  # etcd had not begun with the new ones
    put_aside(data)


def test_root_follows_no_link_and_waits_for_no_pipe(data: Path, tmp_path: Path) -> None:
    """Both may be of etcd's user, whose folder it is."""
    written = (data / data_folder.NOTE).read_bytes()
    others = tmp_path / "others"
    others.write_bytes(written)
    (data / data_folder.NOTE).unlink()
    (data / data_folder.NOTE).symlink_to(others)
    with pytest.raises(Unavailable, match="cannot be read"):
        note(data)
    (data / data_folder.NOTE).unlink()
    os.mkfifo(data / data_folder.NOTE)
    with pytest.raises(Unavailable, match="cannot be read"):
        note(data)
    elsewhere = data.rename(tmp_path / "elsewhere")
    data.symlink_to(elsewhere)
    with pytest.raises(Unavailable, match="is a link"):
        check(data, "h1", etcd(tmp_path, "3.5.16"), OWNER)
    put_aside(data)
    assert (data.exists(), elsewhere.is_dir()) == (False, True)


def test_a_damaged_note_and_a_program_that_is_no_etcd_are_named(data: Path, tmp_path: Path) -> None:
    """With a way out."""
    (data / data_folder.NOTE).write_text("{")
    with pytest.raises(Unavailable, match=data_folder.NOTE) as raised:
        check(data, "h1", etcd(tmp_path, "3.5.16"), OWNER)
    assert "demote" in raised.value.hint
    prepare(data, Note("h1", "3.5"), OWNER)
    with pytest.raises(LinkspanError, match="does not tell its version"):
        minor_of("/bin/true")
    with pytest.raises(LinkspanError, match="its version cannot be asked"):
        minor_of(str(tmp_path / "none"))


def test_systemd_asks_the_same(data: Path, tmp_path: Path) -> None:
    """The unit's condition fails with the reason in its output."""
    argv = [sys.executable, "-m", data_folder.__name__, str(data)]
    program = etcd(tmp_path, "3.5.16")
    assert subprocess.run([*argv, "h1", program], check=False).returncode == 0
    refused = subprocess.run([*argv, "h2", program], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "copy of the data" in refused.stderr
