"""The socket for Docker's engine is checked as the agent's own."""

from __future__ import annotations

import asyncio
import os
import re
import socket
from pathlib import Path

import pytest

from linkspan.agent.agent import Agent
from linkspan.api import server
from linkspan.core.config import Config
from linkspan.core.errors import Conflict
from linkspan.runtimes.docker.docker_driver import Docker
from linkspan.store.memory import Memory
from support.memory_machine import registry_of
from support.records.replicas import Member


def test_a_socket_for_docker_that_another_process_serves_is_not_taken(tmp_path: Path) -> None:
    """The error names the setting and the process, and the hint the setting that is to be changed."""
    path = tmp_path / "docker.sock"
    agent = Agent(Config(state_dir=str(tmp_path), docker_socket=str(path)))
    member = Member(Memory(), tmp_path, "h1")
    one = registry_of(member, tmp_path)
    parts = (one.worker, one, one.allocator, one.networks, one.ports, one.happenings)
    agent.services = {"docker": Docker(*parts, api="", record=tmp_path / "docker.json")}

    async def serve() -> None:
        async with server._engines(agent):
            pytest.fail("it took the socket")

    told = f"docker_socket {path} is served by another process, with pid {os.getpid()}"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(Conflict, match=re.escape(told)) as caught:
            asyncio.run(serve())
    assert caught.value.hint == "stop that one first, or give docker_socket another path"
    assert path.is_socket()
