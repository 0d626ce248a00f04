"""Docker plugin API over HTTP: each verb is a POST, and an error is a field of the answer."""

from __future__ import annotations

import logging

import msgspec
from aiohttp import web

from linkspan.api.peer_credentials import peer
from linkspan.core.errors import LinkspanError
from linkspan.runtimes.docker import Docker
from linkspan.runtimes.docker_types import NETWORK_DRIVER, decoded

log = logging.getLogger("linkspan.docker")

CONTENT_TYPE = "application/vnd.docker.plugins.v1.2+json"


def plugin(docker: Docker) -> web.Application:
    """Return the application of the plugin's socket."""

    async def post(request: web.Request) -> web.Response:
        verb = request.match_info["verb"]
        try:
            found = await docker.answer(verb, decoded(await request.read(), peer(request)[0]))
        except LinkspanError as error:
            found = _failure(verb, f"linkspan: {error.told}")
        except Exception:  # the engine repeats a call that has no answer for half a minute
            log.exception("Docker's %s failed because of a defect in linkspan", verb)
            found = _failure(verb, "linkspan: the agent failed; its log has the details")
        if found is None:
            raise web.HTTPNotFound
        return web.Response(body=msgspec.json.encode(found), content_type=CONTENT_TYPE)

    app = web.Application()
    app.add_routes([web.post("/{verb}", post)])
    return app


def _failure(verb: str, what: str) -> dict[str, object]:
    """Return an error: the network driver expects it in Err, all others in Error."""
    return {"Err" if verb.startswith(NETWORK_DRIVER) else "Error": what}
