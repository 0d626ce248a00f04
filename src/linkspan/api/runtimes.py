"""Calls of runtimes over HTTP: plugins post to the agent's socket, engines to a socket of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from aiohttp import web
from aiohttp.typedefs import Handler

from linkspan.api.peer_credentials import peer
from linkspan.runtimes import runtimes
from linkspan.runtimes.base import Service


def routes(services: Mapping[str, Service]) -> Iterator[web.RouteDef]:
    """Yield the routes on the agent's socket."""

    async def retire(_: web.Request) -> web.Response:
        for service in services.values():
            await service.retire()
        return web.json_response({})

    yield web.post("/v1/retire", retire)
    for name, service in services.items():
        runtime = runtimes()[name]
        if runtime.path:
            yield web.post(runtime.path, _answering(service, runtime.content_type))


def engine(name: str, service: Service) -> web.Application:
    """Return the application of an engine's own socket; its path says what it asks."""
    app = web.Application()
    app.add_routes([web.post("/{verb}", _answering(service, runtimes()[name].content_type))])
    return app


def _answering(service: Service, content_type: str) -> Handler:
    async def post(request: web.Request) -> web.Response:
        status, found = await service.answer(request.path, await request.read(), *peer(request))
        return web.Response(body=found, status=status, content_type=content_type)

    return post
