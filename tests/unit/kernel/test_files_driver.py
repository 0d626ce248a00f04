from __future__ import annotations

import stat
from pathlib import Path

import pytest

from linkspan.core.errors import Conflict
from linkspan.core.states.host import HOST
from linkspan.core.states.programs import File
from linkspan.kernel.drivers.files import FileDriver
from linkspan.kernel.io import durable_files


@pytest.fixture
def driver(tmp_path: Path) -> FileDriver:
    return FileDriver(tmp_path / "state" / "files.json")


def test_a_file_is_put_observed_and_taken_away_with_its_folders(driver: FileDriver, tmp_path: Path) -> None:
    """Folders that were made go when they are empty; others stay."""
    wanted = File(str(tmp_path / "a/b/c.conf"), b"x\n", 0o600)
    other = File(str(tmp_path / "a/d.conf"), b"y\n")
    assert driver.apply([wanted, other], []) == {}
    assert list(driver.observe(HOST)) == [wanted, other]
    assert stat.S_IMODE(Path(wanted.path).stat().st_mode) == 0o600
    before = Path(wanted.path).stat().st_ino
    assert driver.apply([wanted], []) == {}
    assert Path(wanted.path).stat().st_ino == before
    assert driver.apply([], [wanted]) == {}
    assert not (tmp_path / "a/b").exists()
    assert driver.apply([], [other]) == {}
    assert not (tmp_path / "a").exists()
    assert tmp_path.exists()
    assert list(driver.observe(HOST)) == []
    assert driver.apply([], [wanted]) == {}


def test_the_next_agent_knows_the_files_of_the_last(driver: FileDriver, tmp_path: Path) -> None:
    """Content or mode changed by hand is observed, and put back."""
    wanted = File(str(tmp_path / "c.conf"), b"x\n")
    driver.apply([wanted], [])
    again = FileDriver(tmp_path / "state" / "files.json")
    assert list(again.observe(HOST)) == [wanted]
    Path(wanted.path).write_bytes(b"z")
    Path(wanted.path).chmod(0o640)
    assert list(again.observe(HOST)) == [File(wanted.path, b"z", 0o640)]
    assert again.apply([wanted], []) == {}
    assert list(again.observe(HOST)) == [wanted]


def test_what_is_in_a_volatile_file_is_not_remembered(driver: FileDriver, tmp_path: Path) -> None:
    """The record of files is written once; the next agent knows the file as ours, whatever its content."""
    memory, path = tmp_path / "state" / "files.json", tmp_path / "new" / "names"
    driver.apply([File(str(path), b"one\n", volatile=True)], [])
    before = memory.stat().st_mtime_ns
    wanted = File(str(path), b"two\n", volatile=True)
    assert driver.apply([wanted], []) == {}
    assert list(driver.observe(HOST)) == [wanted]
    assert memory.stat().st_mtime_ns == before
    again = FileDriver(memory)
    assert list(again.observe(HOST)) == [wanted]
    path.write_bytes(b"three\n")
    assert list(again.observe(HOST)) == [File(str(path), b"three\n", volatile=True)]
    assert again.apply([], [wanted]) == {}
    assert not path.parent.exists()


def test_a_volatile_file_is_replaced_without_being_read(
    driver: FileDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names of 1,000 hosts are 0.6 MB, and change three times a second; a link in its place is a conflict still."""
    path = tmp_path / "names"
    driver.apply([File(str(path), b"one\n", volatile=True)], [])
    read: list[Path] = []

    def noted(path: Path) -> bytes:
        read.append(path)
        return b""

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", noted)
        assert driver.apply([File(str(path), b"two\n", volatile=True)], []) == {}
    assert read == []
    assert path.read_bytes() == b"two\n"
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    wanted = File(str(path), b"three\n", volatile=True)
    assert isinstance(driver.apply([wanted], [])[wanted.key], Conflict)


def test_a_volatile_file_of_a_lost_state_folder_is_taken_again(driver: FileDriver, tmp_path: Path) -> None:
    """Nobody else writes there."""
    path = tmp_path / "names"
    path.write_bytes(b"of before\n")
    assert driver.apply([File(str(path), b"now\n", volatile=True)], []) == {}
    assert path.read_bytes() == b"now\n"


def test_another_s_file_is_never_overwritten(driver: FileDriver, tmp_path: Path) -> None:
    """A file with other content, or a link, is a conflict that names it, and stays as it is."""
    theirs, link = tmp_path / "theirs.conf", tmp_path / "link.conf"
    theirs.write_text("theirs")
    link.symlink_to(theirs)
    for path in (theirs, link):
        wanted = File(str(path), b"ours")
        error = driver.apply([wanted], [])[wanted.key]
        assert isinstance(error, Conflict)
        assert str(path) in error.message
        assert driver.apply([], [wanted]) == {}
    assert theirs.read_text() == "theirs"
    assert link.is_symlink()


def test_a_file_with_our_content_is_taken_as_ours(driver: FileDriver, tmp_path: Path) -> None:
    """An agent whose state folder was lost takes its files back, and can remove them."""
    wanted = File(str(tmp_path / "c.conf"), b"x\n")
    Path(wanted.path).write_bytes(b"x\n")
    assert driver.apply([wanted], []) == {}
    assert driver.apply([], [wanted]) == {}
    assert not Path(wanted.path).exists()


def test_a_file_that_a_user_changed_is_not_deleted(driver: FileDriver, tmp_path: Path) -> None:
    """The driver forgets such a file, and leaves it on the disk."""
    wanted = File(str(tmp_path / "c.conf"), b"x\n")
    driver.apply([wanted], [])
    Path(wanted.path).write_text("a user's")
    assert driver.apply([], [wanted]) == {}
    assert Path(wanted.path).read_text() == "a user's"
    assert list(driver.observe(HOST)) == []


def test_a_kill_between_memory_and_file_leaves_nothing_behind(driver: FileDriver, tmp_path: Path) -> None:
    """The content before the last put is known as ours, too, and so is a temporary file."""
    old, new = (File(str(tmp_path / "c.conf"), content) for content in (b"old", b"new"))
    driver.apply([old], [])
    driver.apply([new], [])
    Path(old.path).write_bytes(b"old")  # as if the second write had not come
    durable_files.temporary(Path(old.path)).write_bytes(b"ne")
    again = FileDriver(tmp_path / "state" / "files.json")
    assert again.apply([], [new]) == {}
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_the_temporary_name_matches_no_reader_s_pattern() -> None:
    """Neither *.conf nor *.conflist nor *.json finds a file that is not whole yet."""
    for name in ("10-a.conf", "10-a.conflist", "10-a.json"):
        new = durable_files.temporary(Path("/etc/x") / name)
        assert new.name.startswith(".")
        assert new.suffix not in (".conf", ".conflist", ".json")


def test_a_folder_that_cannot_be_made_is_an_error_that_names_it(driver: FileDriver, tmp_path: Path) -> None:
    """The rest of the batch is written."""
    (tmp_path / "file").write_text("")
    bad, good = File(str(tmp_path / "file/x"), b""), File(str(tmp_path / "good"), b"")
    errors = driver.apply([bad, good], [])
    assert list(errors) == [bad.key]
    assert str(tmp_path / "file") in errors[bad.key].message
    assert Path(good.path).exists()
