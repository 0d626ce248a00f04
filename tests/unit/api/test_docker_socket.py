"""The socket for Docker's engine is checked as the agent's own."""

from __future__ import annotations

import asyncio
import os
import re
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from linkspan.api import server
from linkspan.core.errors import Conflict


def test_a_socket_for_docker_that_another_process_serves_is_not_taken(tmp_path: Path) -> None:
    """The error names the setting and the process, and the hint the setting that is to be changed."""
    path = tmp_path / "docker.sock"
    agent: Any = SimpleNamespace(docker=None, config=SimpleNamespace(docker_socket=str(path)))

    async def serve() -> None:
        async with server._docker(agent):
            pytest.fail("it took the socket")

    told = f"docker_socket {path} is served by another process, with pid {os.getpid()}"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(Conflict, match=re.escape(told)) as caught:
            asyncio.run(serve())
    assert caught.value.hint == "stop that one first, or give docker_socket another path"
    assert path.is_socket()
