"""Digests of the files that helper programs read."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from linkspan.kernel.drivers import files
from linkspan.kernel.drivers.files import LARGE, RACY, Digests


def read_files(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return the contents of which digests are made from now on."""
    made: list[bytes] = []
    digest = files.digest

    def noted(content: bytes) -> str:
        made.append(content)
        return digest(content)

    monkeypatch.setattr(files, "digest", noted)
    return made


def wait(nanoseconds: int) -> None:
    """Wait for real: the times of files are the kernel's."""
    time.sleep(nanoseconds / 1e9)


def test_a_file_is_read_once_while_nobody_changes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of a thousand hosts are large files, and are compared at each change of another network."""
    made, digests, file = read_files(monkeypatch), Digests(), tmp_path / "hosts"
    file.write_bytes(b"one")
    wait(2 * RACY)
    first = digests.of([str(file)])
    assert digests.of([str(file)]) == first
    assert made == [b"one"]


def test_a_replaced_file_has_another_digest_at_once(tmp_path: Path) -> None:
    """The agent writes a new file and renames it, however soon after the one before."""
    digests, file, new = Digests(), tmp_path / "hosts", tmp_path / ".new"
    found = set()
    for number in range(20):
        new.write_bytes(str(number % 10).encode())
        os.replace(new, file)
        found.add(digests.of([str(file)])[str(file)])
    assert len(found) == 10


def test_a_change_in_the_same_clock_tick_is_found_soon(tmp_path: Path) -> None:
    """Nothing but the content of the file shows such a change: same inode, size and times."""
    digests, file = Digests(), tmp_path / "hosts"
    file.write_bytes(b"one")
    before = digests.of([str(file)])
    file.write_bytes(b"two")
    wait(2 * RACY)
    assert digests.of([str(file)]) != before


def test_a_file_that_is_gone_has_no_digest(tmp_path: Path) -> None:
    """One that comes back is read again."""
    digests, file = Digests(), tmp_path / "hosts"
    file.write_bytes(b"one")
    before = digests.of([str(file)])
    file.unlink()
    assert digests.of([str(file)]) == {str(file): ""}
    file.write_bytes(b"one")
    assert digests.of([str(file)]) == before


def test_a_folder_changes_with_its_files_and_their_names(tmp_path: Path) -> None:
    """Hidden files are being written, and do not count."""
    digests, folder = Digests(), tmp_path / "conf"
    folder.mkdir()
    found = []
    for name, content in ((".new", b"x"), ("a", b"1"), ("b", b"1"), ("b", b"22")):
        (folder / name).write_bytes(content)
        found.append(digests.of([str(folder)])[str(folder)])
    assert len(set(found)) == len(found)


def test_files_that_are_gone_from_a_folder_are_forgotten(tmp_path: Path) -> None:
    """A folder with a file for each network that ever was would be kept for good."""
    digests, file = Digests(), tmp_path / "names" / "hosts"
    file.parent.mkdir()
    file.write_bytes(b"one")
    digests.of([str(file.parent)])
    file.unlink()
    digests.of([str(file.parent)])
    assert digests._known == {}


def test_a_large_file_is_never_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The names of 1,000 hosts are written several times a second; another file has another digest all the same."""
    made, digests, file, new = read_files(monkeypatch), Digests(), tmp_path / "hosts", tmp_path / ".new"
    file.write_bytes(bytes(LARGE))
    first = digests.of([str(file)])
    assert digests.of([str(file)]) == first
    new.write_bytes(b"\1" + bytes(LARGE - 1))
    new.rename(file)
    assert digests.of([str(file)]) != first
    assert made == []
    file.write_bytes(b"small")
    digests.of([str(file)])
    assert made == [b"small"]
