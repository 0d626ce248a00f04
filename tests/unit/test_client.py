from __future__ import annotations

import socket
from pathlib import Path

import pytest

from linkspan.cli import client
from linkspan.errors import Unavailable


def test_an_agent_that_hangs_is_told_of_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its socket takes the question, and no answer comes: the error names the socket, and what to look at."""
    monkeypatch.setattr(client, "PATIENCE", 0.2)
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as hanging:
        hanging.bind(str(path))
        hanging.listen()
        with pytest.raises(Unavailable, match="has not answered for") as error:
            client.Client(str(path)).call("GET", "/v1/status")
    assert str(path) in error.value.message
    assert "systemctl status linkspan" in error.value.hint
