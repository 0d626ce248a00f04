"""Unix sockets of the agent: the file of one goes with the server."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest
from aiohttp import web

from linkspan.api.sockets import listener, listening, on_socket


class Stopped(Exception):
    """Why a server ends."""


@pytest.mark.parametrize("error", [False, True])
def test_a_server_takes_its_socket_s_file_along(tmp_path: Path, *, error: bool) -> None:
    """Whatever ends it: whoever connects later finds at once that nobody serves."""
    path = tmp_path / "s"

    async def run() -> None:
        async with listening(web.Application()) as runner, on_socket(runner, path):
            assert path.is_socket()
            if error:
                raise Stopped

    if error:
        with pytest.raises(Stopped):
            asyncio.run(run())
    else:
        asyncio.run(run())
    assert not os.path.lexists(path)


def test_a_server_that_ends_late_leaves_the_socket_of_the_next_one(tmp_path: Path) -> None:
    """The next one has replaced a file that nobody served any more."""
    path = tmp_path / "s"
    with listener(path) as made:
        made.close()
        with socket.socket(socket.AF_UNIX) as other:
            path.rename(tmp_path / "former")  # keeps the number of the former file from being used again
            other.bind(str(path))
    assert path.is_socket()
