"""The queue of removals, as the agent reads it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from linkspan.core.errors import Unavailable
from linkspan.runtimes.cni.cni_queue import LARGEST, entries

GOOD: dict[str, Any] = {
    "container_id": "web",
    "ifname": "eth0",
    "network": "demo",
    "boot_id": "b1",
    "boottime_ns": 100,
}


def put(folder: Path, name: str, **changed: Any) -> Path:
    """Write an entry."""
    path = folder / name
    path.write_text(json.dumps({**GOOD, **changed}))
    return path


def test_oldest_comes_first(tmp_path: Path) -> None:
    """Entries are in the order of their times, whatever their files' names."""
    put(tmp_path, "1.json", boottime_ns=300)
    put(tmp_path, "2.json", boottime_ns=20)
    assert [one.boottime_ns for one in entries(tmp_path)] == [20, 300]
    assert entries(tmp_path)[0].container_id == "web"


def test_missing_folder_is_empty(tmp_path: Path) -> None:
    """No plugin has queued anything yet."""
    assert entries(tmp_path / "queue") == []


def test_folder_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    """The path is named."""
    (tmp_path / "queue").touch()
    with pytest.raises(Unavailable, match="queue"):
        entries(tmp_path / "queue")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"\xff",
        json.dumps({**GOOD, "ifname": "../../x"}).encode(),
        json.dumps({**GOOD, "container_id": "a b"}).encode(),
        json.dumps({**GOOD, "network": ""}).encode(),
        json.dumps({**GOOD, "boottime_ns": "100"}).encode(),
        json.dumps({**GOOD, "more": "x" * LARGEST}).encode(),
        b"[" * (LARGEST - 1),
    ],
)
def test_what_is_no_entry_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture, text: bytes) -> None:
    """A bad file is renamed and named in the log; the good ones are still read."""
    put(tmp_path, "2.json")
    (tmp_path / "1.json").write_bytes(text)
    assert [one.path.name for one in entries(tmp_path)] == ["2.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.json.bad", "2.json"]
    assert "1.json" in caplog.text
    assert len(entries(tmp_path)) == 1


def test_links_and_folders_are_set_aside(tmp_path: Path) -> None:
    """Only regular files are read: a link could lead anywhere."""
    secret = put(tmp_path, "secret")
    (tmp_path / "1.json").symlink_to(secret)
    (tmp_path / "2.json").mkdir()
    assert entries(tmp_path) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.json.bad", "2.json.bad", "secret"]


def test_half_written_files_are_left_for_a_while(tmp_path: Path) -> None:
    """A plugin may be writing; an old file is left by a killed plugin, and is removed."""
    old, new = put(tmp_path, ".1.tmp"), put(tmp_path, ".2.tmp")
    os.utime(old, (1, 1))
    assert entries(tmp_path) == []
    assert (old.exists(), new.exists()) == (False, True)


def test_done_entry_is_gone(tmp_path: Path) -> None:
    """Its file is removed, and it is no error if the plugin was quicker."""
    put(tmp_path, "1.json")
    first = entries(tmp_path)[0]
    first.done()
    first.done()
    assert entries(tmp_path) == []


@pytest.mark.parametrize(
    ("attached_boot", "attached_ns", "today", "applies"),
    [
        ("b1", 99, "b1", True),
        ("b1", 101, "b1", False),
        ("b2", 99, "b2", False),
        ("b0", 101, "b1", True),
        ("b0", 5, "b2", True),
        ("b1", 101, "b2", False),
    ],
)
def test_entry_counts_for_older_endpoints_only(
    tmp_path: Path, attached_boot: str, attached_ns: int, today: str, applies: bool
) -> None:
    """An endpoint that was attached after the removal is another one under the same name."""
    put(tmp_path, "1.json")
    assert entries(tmp_path)[0].applies(attached_boot, attached_ns, today) is applies
