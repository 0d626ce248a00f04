"""Middleware of the agent's API: who may change anything, how errors are answered, and what is asked of the store."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Middleware

from linkspan.agent.news import READERS, News
from linkspan.api.peer_credentials import peer
from linkspan.api.responses import answer, error_body
from linkspan.core.errors import Denied, LinkspanError
from linkspan.runtimes import paths

log = logging.getLogger("linkspan.api.middleware")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

STATUS = {
    "invalid": 400,
    "denied": 403,
    "not_found": 404,
    "conflict": 409,
    "exhausted": 409,
    "unavailable": 503,
}
"""By the code of an error: the HTTP status of its answer."""


@web.middleware
async def errors_and_rights(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let only root change anything, and answer every error as JSON."""
    try:
        uid = peer(request)[1]
        # A runtime's calls check their user themselves, because they have errors of their own.
        if uid and request.method != "GET" and request.path not in paths():
            raise Denied(
                f"user {uid} may only read; changes need root", "run the command with sudo"
            )
        return await handler(request)
    except LinkspanError as error:
        return answer(error_body(error), STATUS.get(error.code, 500))
    except web.HTTPException as error:  # an unknown path or method, a body too large
        what = f"{request.method} {request.path}: {error.reason.lower()}"
        return answer(error_body(LinkspanError(what, "is the caller of another version?")), error.status)
    except Exception:
        log.exception("%s %s", request.method, request.path)
        failure = LinkspanError(
            f"{request.method} {request.path} failed inside the agent", "its log says more"
        )
        return answer(error_body(failure), 500)


def with_news(news: News) -> Middleware:
    """Return what lets a request count what other hosts have just written."""

    @web.middleware
    async def answered(request: web.Request, handler: Handler) -> web.StreamResponse:
        may_change = peer(request)[1] == 0
        return await news.known(lambda: handler(request), 0.0 if may_change else READERS)

    return answered
