"""A reader's progress: what is kept, by whoever writes it."""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from linkspan.core.errors import Invalid, Unavailable
from linkspan.learn import progress
from linkspan.learn.progress import Progress


def test_two_windows_share_what_is_kept(tmp_path: Path) -> None:
    """Each reads what the other wrote, and neither overwrites it."""
    first, second = Progress(tmp_path / "new"), Progress(tmp_path / "new")
    first.start("veth")
    second.hint("veth", 2)
    second.hint("veth", 1)
    first.spend("veth", 3.25, passed=False)
    second.spend("veth", 1.0, passed=True)
    first.spend("veth", 100.0, passed=True)
    entry = first.entry("veth")
    assert (entry.state, entry.tries, entry.hints, entry.seconds) == ("passed", 1, 2, 4.2)
    assert (first.current, second.entry("bridge").state) == ("veth", "new")
    second.close()
    first.speak("zh")
    assert (first.current, second.language) == ("", "zh")


def test_a_passed_lesson_stays_passed_when_it_is_started_again(tmp_path: Path) -> None:
    """Its tries are counted on."""
    kept = Progress(tmp_path)
    kept.start("veth")
    kept.spend("veth", 1, passed=True)
    kept.start("veth")
    assert (kept.entry("veth").state, kept.entry("veth").tries) == ("passed", 2)
    kept.forget()
    assert kept.entry("veth").tries == 0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"schema":1,"lessons":{"veth":{"sta',
        b'{"schema":2,"lessons":{}}',
        b'{"current":"\xff"}',
        b'{"lessons":{"veth":{"hints":-5}}}',
        b'{"lessons":{"veth":{"seconds":1e400}}}',
        b'{"more":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"more":"' + b"x" * 2_000_000 + b'"}',
    ],
    ids=("empty", "cut", "newer", "bytes", "negative", "infinite", "deep", "long"),
)
def test_a_damaged_file_is_named_and_kept(tmp_path: Path, content: bytes) -> None:
    """With what to do; nothing is written over it, also if it is of another version of linkspan."""
    path = tmp_path / "progress.json"
    path.write_bytes(content)
    kept = Progress(tmp_path)
    uses: tuple[Callable[[], object], ...] = (lambda: kept.current, lambda: kept.start("veth"))
    for use in uses:
        with pytest.raises(Invalid, match=r"progress\.json cannot be read") as caught:
            use()
        assert "remove the file" in caught.value.hint
    assert path.read_bytes() == content


def test_a_pipe_in_the_file_s_place_is_not_waited_for(tmp_path: Path) -> None:
    """Nobody may ever write to it."""
    os.mkfifo(tmp_path / "progress.json")
    with pytest.raises(Invalid, match="no regular file"):
        _ = Progress(tmp_path).current


def test_what_several_windows_note_at_once_is_all_kept(tmp_path: Path) -> None:
    """None writes what it read before another one wrote."""
    def note(number: int) -> None:
        for _ in range(20):
            Progress(tmp_path).start(f"lesson-{number}")
            Progress(tmp_path).start("veth")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(note, range(4)))
    kept = Progress(tmp_path)
    assert [kept.entry(name).tries for name in ("veth", "lesson-0", "lesson-3")] == [80, 20, 20]


def test_what_a_killed_process_was_writing_is_forgotten_with_the_rest(tmp_path: Path) -> None:
    """Nothing of a reader is left then."""
    kept = Progress(tmp_path)
    kept.start("veth")
    (tmp_path / ".progress.json.linkspan-new").write_text("{")
    kept.forget()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_locked_is_an_error_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS without its lock service."""
    def refuse(_fd: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    kept = Progress(tmp_path)
    open_before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Unavailable, match="no locks available") as caught:
        kept.start("veth")
    assert "XDG_STATE_HOME" in caught.value.hint
    with pytest.raises(Unavailable), kept.alone():
        pass
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_the_first_two_windows_wait_for_each_other(tmp_path: Path) -> None:
    """Also where nobody has a folder yet: what the first one notes is kept."""
    with ThreadPoolExecutor(8) as pool:
        for turn in range(20):
            folder = tmp_path / str(turn)
            list(pool.map(lambda number: Progress(folder).start(f"lesson-{number}"), range(8)))  # noqa: B023 - at once
            assert all(Progress(folder).entry(f"lesson-{number}").tries for number in range(8))


def test_a_home_that_cannot_be_written_is_an_error_with_the_way_out() -> None:
    """A user without a home, as services have."""
    with pytest.raises(Unavailable, match="cannot be kept in /proc/none") as caught:
        Progress(Path("/proc/none")).start("veth")
    assert "XDG_STATE_HOME" in caught.value.hint


def test_a_user_without_any_home_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the user of a container that is a mere number. With a folder of its own, it can learn."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", "")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    with pytest.raises(Unavailable, match="no home folder") as caught:
        progress.folder()
    assert "XDG_STATE_HOME" in caught.value.hint
    monkeypatch.setenv("XDG_STATE_HOME", "/var/tmp")
    assert progress.folder() == Path("/var/tmp/linkspan/learn")
