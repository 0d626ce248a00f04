"""The socket for Docker's engine: it is checked as the agent's own, and answers in the engine's words."""

from __future__ import annotations

import asyncio
import os
import re
import socket
from pathlib import Path

import aiohttp
import pytest

from linkspan.agent.agent import Agent
from linkspan.api import server
from linkspan.core.config import Config
from linkspan.core.errors import Conflict
from linkspan.runtimes.docker.docker_driver import Docker
from linkspan.store.memory import Memory
from support.memory_machine import registry_of
from support.records.replicas import Member


def _docker(folder: Path) -> Docker:
    registry = registry_of(Member(Memory(), folder, "h1"), folder)
    return Docker(registry, api="", record=folder / "docker.json")


@pytest.mark.parametrize(
    ("verb", "body", "status", "answer"),
    [
        ("Plugin.Activate", b"", 200, b'{"Implements":["NetworkDriver","IpamDriver"]}'),
        ("NetworkDriver.CreateNetwork", b"{", 200, b'{"Err":"linkspan: the engine'),
        ("IpamDriver.RequestPool", b"[]", 200, b'{"Error":"linkspan: the engine'),
        ("NetworkDriver.Fly", b"{}", 404, b""),
    ],
)
def test_the_engine_gets_an_answer_to_each_call(
    tmp_path: Path, verb: str, body: bytes, status: int, answer: bytes
) -> None:
    """An error is a field of the answer; an unknown verb is an unknown path."""
    path = tmp_path / "docker.sock"
    agent = Agent(Config(state_dir=str(tmp_path), docker_socket=str(path)))
    agent.services = {"docker": _docker(tmp_path)}

    async def called() -> tuple[int, str, bytes]:
        async with (
            server._engines(agent),
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session,
            session.post(f"http://docker/{verb}", data=body) as got,
        ):
            return got.status, got.content_type, await got.read()

    found = asyncio.run(called())
    assert found[:2] == (status, "application/vnd.docker.plugins.v1.2+json")
    assert found[2].startswith(answer)


def test_a_socket_for_docker_that_another_process_serves_is_not_taken(tmp_path: Path) -> None:
    """The error names the setting and the process, and the hint the setting that is to be changed."""
    path = tmp_path / "docker.sock"
    agent = Agent(Config(state_dir=str(tmp_path), docker_socket=str(path)))
    agent.services = {"docker": _docker(tmp_path)}

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


def test_the_socket_for_docker_goes_with_the_agent(tmp_path: Path) -> None:
    """The engine finds at once that nobody serves, instead of a file."""
    path = tmp_path / "docker.sock"
    agent = Agent(Config(state_dir=str(tmp_path), docker_socket=str(path)))
    agent.services = {"docker": _docker(tmp_path)}

    async def serve() -> None:
        async with server._engines(agent):
            assert path.is_socket()

    asyncio.run(serve())
    assert not os.path.lexists(path)
