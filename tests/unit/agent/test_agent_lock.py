"""uninstall waits for the agent that has the state folder, whatever the lock's file says of it."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from linkspan.agent import uninstall
from linkspan.core.errors import Unavailable


@pytest.mark.parametrize("content", [b"", bytes(range(128, 256)), "²".encode()])
def test_a_lock_that_is_garbled_names_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    """An agent whose pid cannot be read is not ended: the error asks for that."""
    monkeypatch.setattr(uninstall, "PATIENCE", 0.0)
    (tmp_path / "lock").write_bytes(content)
    with (tmp_path / "lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with (
            pytest.raises(Unavailable, match=r"the agent with pid .* does not end") as caught,
            uninstall._agent_stopped(tmp_path),
        ):
            pytest.fail("it took the lock")
    assert caught.value.hint == "stop it, and try again"
