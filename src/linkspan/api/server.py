"""Server of the agent: its own socket, those of engines, and the address for metrics."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from aiohttp import web

from linkspan.agent.agent import Agent
from linkspan.api.plugin_calls import PluginCalls
from linkspan.api.runtimes import engine
from linkspan.api.sockets import BACKLOG, listener, listening, metrics_at, on_socket
from linkspan.api.status import StatusRoutes
from linkspan.runtimes import runtimes, systemd


@contextlib.asynccontextmanager
async def serving(agent: Agent, application: Callable[[], web.Application]) -> AsyncIterator[None]:
    """Serve an application on the agent's socket, and for metrics only on the address of the settings.

    Raises Invalid if a socket cannot be made.
    """
    path = Path(agent.config.socket)
    async with listening(application()) as runner:
        assert runner.server is not None
        with listener(path) as made:
            async with (
                PluginCalls(agent.services, runner.server).at(made),
                metrics_at(agent.config.metrics, StatusRoutes(agent).metrics),
                _engines(agent),
            ):
                yield


@contextlib.asynccontextmanager
async def _engines(agent: Agent) -> AsyncIterator[None]:
    """Serve each engine on the socket that systemd passed for it, or that the settings name."""
    async with contextlib.AsyncExitStack() as all_sockets:
        for name, service in agent.services.items():
            if (at := runtimes()[name].listens) is None:
                continue
            path, handed = getattr(agent.config, at.setting), systemd.sockets(at.handed)
            if not path and not handed:
                continue
            runner = await all_sockets.enter_async_context(listening(engine(name, service)))
            for one in handed:
                await web.SockSite(runner, one, backlog=BACKLOG).start()
            if path:
                await all_sockets.enter_async_context(on_socket(runner, Path(path), at.setting, umask=0o177))
        yield
