"""A reader's progress: what is kept, by whoever writes it."""

from __future__ import annotations

import pwd
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


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    """With what to do."""
    (tmp_path / "progress.json").write_text("{")
    with pytest.raises(Invalid, match=r"progress\.json cannot be read") as caught:
        _ = Progress(tmp_path).current
    assert caught.value.hint == "remove the file"


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
