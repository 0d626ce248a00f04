"""What the agent's socket has for runtimes, beside their own calls."""

from __future__ import annotations

import asyncio

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from linkspan.api.runtimes import routes
from linkspan.runtimes.base import Service


class Engine(Service):
    """A runtime's service that says whether it makes networks in its engine."""

    makes = True

    async def retire(self) -> None:
        """Make nothing any more."""
        self.makes = False


def test_services_make_nothing_in_engines_once_linkspan_is_to_be_removed() -> None:
    """Otherwise the agent would make the networks again that `uninstall` removes while the agent answers."""

    async def work() -> None:
        services = {"docker": Engine(), "podman": Engine()}
        app = web.Application()
        app.add_routes(routes(services))
        async with TestClient(TestServer(app)) as client:
            assert (await client.post("/v1/retire")).status == 200
        assert not any(one.makes for one in services.values())

    asyncio.run(work())
