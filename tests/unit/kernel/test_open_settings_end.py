"""Open settings where files cannot be opened: then none stays open."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from linkspan.kernel.io.open_settings import OpenSettings

REFUSED = "x" * 300
"""No file system has such a name: the error is another one than that there is no file."""


def test_what_was_opened_before_a_refusal_is_closed(tmp_path: Path) -> None:
    """Where the process has too many open files, others need these."""
    for name in ("a", "b"):
        (tmp_path / name).write_text(name, encoding="ascii")
    settings = OpenSettings(tmp_path, 10)
    before = len(os.listdir("/proc/self/fd"))
    assert settings.texts(["a", "b"]) == [b"a", b"b"]
    with pytest.raises(OSError, match="name too long"):
        settings.texts(["a", "b", REFUSED])
    assert len(os.listdir("/proc/self/fd")) == before
    assert settings.texts(["b", "a"]) == [b"b", b"a"]
    settings.close()
