"""What `linkspan upgrade` says is left: only what the host did not have before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from linkspan import __version__
from linkspan.cli.upgrade import install, left
from linkspan.core.errors import Invalid


def status(pid: int = 7, version: str = __version__, **more: Any) -> dict[str, Any]:
    """Return an agent's status."""
    return {"agent": {"pid": pid, "version": version, "started": float(pid)}, "store": {"ok": True}, **more}


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        (status(1, "0.1.0"), None, ["does not answer"]),
        (status(1, "0.1.0"), status(1, "0.1.0"), ["has not been restarted: version 0.1.0"]),
        (status(1, "0.1.0"), status(2, "0.1.0"), ["is version 0.1.0, and this program is"]),
        (status(1), status(2, waiting="for the store"), ["waits: for the store"]),
        (status(1), status(2) | {"store": {"ok": False}}, ["the store does not answer"]),
        (status(1), status(2, drift=["Route x: no such device"]), ["drift: Route x"]),
        (status(1, drift=["old"]), status(2, drift=["old"]), []),
        (status(1), status(2, unreachable=[{"network": "demo", "host": "h2", "why": "silent"}]), ["demo, h2, silent"]),
        (status(1, "0.1.0"), status(2), []),
    ],
)
def test_only_new_problems_are_left(before: dict[str, Any], now: dict[str, Any] | None, words: list[str]) -> None:
    """An agent that is not the new one is a problem, too."""
    found = left(before, now)
    assert len(found) == len(words)
    assert all(word in line for word, line in zip(words, found, strict=True))


@pytest.mark.parametrize("name", ["linkspan.tar.gz", "linkspan.deb"])
def test_another_file_is_refused(tmp_path: Path, name: str) -> None:
    """A file that is no package, or is called one, changes nothing."""
    file = tmp_path / name
    file.write_bytes(b"no package")
    with pytest.raises(Invalid, match=name):
        install(file)
