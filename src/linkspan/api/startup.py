"""Startup API of an agent that has no records yet: its store has not answered since it was installed, or a move fails.

`status` says so; every other request is refused with the reason. A runtime's call gets the same answer as
without an agent: its plugin retries an ADD, and queues a DEL.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web

from linkspan.agent.agent import Agent
from linkspan.api import status_report
from linkspan.api.founding import FoundingRoutes
from linkspan.api.host_condition import condition_of
from linkspan.api.middleware import errors_and_rights
from linkspan.api.recovery import RecoveryRoutes
from linkspan.api.responses import answer, error_body
from linkspan.api.sockets import listening, on_socket
from linkspan.core.errors import Unavailable
from linkspan.runtimes import paths

WAITING = "it has no records yet, and attaches nothing until its store answers"
"""Why `status` shows no network."""


@contextlib.asynccontextmanager
async def waiting(agent: Agent) -> AsyncIterator[None]:
    """Serve this API while the agent waits. Raises Invalid if the socket cannot be made."""

    async def refuse(request: web.Request) -> web.Response:
        if request.path == "/v1/status":
            why = f"{WAITING}: {moving}" if (moving := agent.founding.problem) else WAITING
            return answer(status_report.as_status(agent, condition_of(agent)) | {"ok": False, "waiting": why})
        if request.path in paths():
            return web.Response(status=503)
        why = f"the agent waits for the store: {agent.founding.problem or agent.replica.problem}"
        fix = "" if agent.founding.problem else agent.replica.fix
        return answer(error_body(Unavailable(why, fix or "`linkspan status` shows the store")), 503)

    app = web.Application(middlewares=[errors_and_rights])
    app.add_routes([*RecoveryRoutes(agent).restoring(), *FoundingRoutes(agent).joining()])
    app.router.add_route("*", "/{path:.*}", refuse)
    async with listening(app) as runner, on_socket(runner, Path(agent.config.socket)):
        yield
