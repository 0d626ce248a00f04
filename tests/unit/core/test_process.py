"""Processes of daemons: what each of them sets before its work begins."""

from __future__ import annotations

import subprocess
import sys

from linkspan.core import config

CODE = """
import asyncio, socket, ssl, sys
from asyncio import sslproto
from linkspan.core.process import served

class Taken(asyncio.Protocol):
    def connection_made(self, transport):
        print(sslproto.SSLProtocol.max_size, transport.max_size)

async def work():
    one, other = socket.socketpair()
    with one, other:
        await asyncio.get_running_loop().create_connection(Taken, sock=one)

served(work(), "warning")
"""


def test_a_read_of_a_daemon_is_no_mapping_of_its_own() -> None:
    """With TLS and without: glibc would make and remove one for each message of the store."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    _, variables = config.process(config.Config())
    assert all(int(size) < int(variables["MALLOC_MMAP_THRESHOLD_"]) for size in done.stdout.split())
    assert done.stdout.split()
