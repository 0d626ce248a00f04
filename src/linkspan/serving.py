"""Where the agent listens: its own socket, the Docker plugin's, and the address for metrics."""

from __future__ import annotations

import contextlib
import grp
import os
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web

from linkspan.agent import Agent
from linkspan.api import Api
from linkspan.api_docker import plugin
from linkspan.api_telling import Telling
from linkspan.config import GROUP
from linkspan.errors import Invalid
from linkspan.runtimes import systemd

BACKLOG = 1024
"""Callers who may wait for their turn: a whole host's containers may start at once, and 128 are too few."""

@contextlib.asynccontextmanager
async def serving(agent: Agent) -> AsyncIterator[None]:
    """Listen on the agent's socket and, for metrics only, where the settings say.

    Raises Invalid where a socket cannot be made.
    """
    path = Path(agent.config.socket)
    async with listening(Api(agent).application()) as runner:
        await on_socket(runner, path)
        async with _metrics(agent), _docker(agent):
            yield
    path.unlink(missing_ok=True)  # a DEL then finds no socket at once


@contextlib.asynccontextmanager
async def listening(app: web.Application) -> AsyncIterator[web.AppRunner]:
    """Give a runner of an application, which ends with the block."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=5)
    await runner.setup()
    try:
        yield runner
    finally:
        await runner.cleanup()


async def on_socket(runner: web.AppRunner, path: Path) -> None:
    """Listen on a unix socket that the group may use. Raises Invalid where it cannot be made."""
    try:
        await _listen_at(runner, path)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise Invalid(f"socket {path}: {why}", "give --socket another path") from error


async def _listen_at(runner: web.AppRunner, path: Path, umask: int = 0o117) -> None:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # a dead agent's; a live one would hold the state folder's lock
    old = os.umask(umask)
    try:
        await web.UnixSite(runner, str(path), backlog=BACKLOG).start()
    finally:
        os.umask(old)
    with contextlib.suppress(KeyError):  # without the group the socket is root's alone
        os.chown(path, 0, grp.getgrnam(GROUP).gr_gid)


@contextlib.asynccontextmanager
async def _docker(agent: Agent) -> AsyncIterator[None]:
    """Serve Docker's engine, on the socket that systemd handed over or that the settings name."""
    app = plugin(agent.docker)
    path = agent.config.docker_socket
    handed = systemd.sockets(systemd.DOCKER_SOCKET)
    if not path and not handed:
        yield
        return
    async with listening(app) as runner:
        for one in handed:
            await web.SockSite(runner, one, backlog=BACKLOG).start()
        if path:
            try:
                await _listen_at(runner, Path(path), umask=0o177)
            except OSError as error:
                why = (error.strerror or str(error)).lower()
                raise Invalid(f"docker_socket {path}: {why}", "give another path") from error
        yield


@contextlib.asynccontextmanager
async def _metrics(agent: Agent) -> AsyncIterator[None]:
    """Serve /metrics, and nothing else, at the TCP address of the settings, where there is one."""
    if not agent.config.metrics:
        yield
        return
    host, _, port = agent.config.metrics.rpartition(":")
    app = web.Application()
    app.add_routes([web.get("/metrics", Telling(agent).metrics)])
    async with listening(app) as runner:
        try:
            await web.TCPSite(runner, host.strip("[]") or None, int(port)).start()
        except (OSError, ValueError) as error:
            raise Invalid(
                f"metrics {agent.config.metrics}: {error}", "write ADDRESS:PORT, 127.0.0.1:9642"
            ) from error
        yield
