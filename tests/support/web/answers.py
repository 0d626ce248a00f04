"""Answers of an agent, as small as they can be, and an agent that gives them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from linkspan.web.view_state import Answers


def endpoint(id_: str, host: str, **more: Any) -> dict[str, Any]:
    """Return an endpoint of network demo."""
    return {
        "id": id_, "name": id_, "ifname": "eth0", "network": "demo", "host": host, "addresses": ["10.244.0.2/32"],
        "mac": "", "mtu": 1450, "ports": [], "labels": {}, "host_ifname": f"ls{id_}", "managed": "", **more,
    }  # fmt: skip


def answers(*endpoints: dict[str, Any]) -> Answers:
    """Return the answers of an agent on h1, in a cluster of h1 and h2 with network demo."""
    hosts = [
        {
            "id": f"id-{name}", "name": name, "state": "alive", "alive": True, "last_seen": 1.0, "version": "0.2.0",
            "underlay": {"ifname": "eth0", "addresses": [f"192.0.2.{number}/24"]}, "settings": {},
            "leases": [{"network": "demo", "prefixes": [f"10.244.{number}.0/24"], "host_address": [], "endpoints": {}}],
        }
        for number, name in enumerate(("h1", "h2"), 1)
    ]  # fmt: skip
    network = {
        "name": "demo", "backend": "vxlan", "pools": ["10.244.0.0/16"], "subnet_len": {"4": 24}, "options": {},
        "mtu": 1450, "internal": False, "masquerade": True, "ipam": "block", "policy": "default-allow",
        "migration": None,
    }  # fmt: skip
    status = {
        "ok": True, "agent": {"host": "h1", "version": "0.2.0", "started": 1.0}, "store": {"ok": True, "state": "ok"},
        "networks": [{"name": "demo", "free": 250, "not_switched": []}], "heals": [], "unreachable": [], "drift": [],
        "disputes": [], "bgp": {"down": []},
    }  # fmt: skip
    return Answers(status=status, hosts=hosts, networks=[network], endpoints=list(endpoints))


class FakeAgent:
    """An agent's socket that gives these answers; ``asked`` are the requests, without the stream of events.

    ``refused`` are lists that it cannot give now, ``more`` other answers by the paths below /v1/. While it is
    ``hanging``, nobody gets an answer.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers = answers(endpoint("c1", "h1"), endpoint("c2", "h2"))
        self.asked: list[str] = []
        self.refused: set[str] = set()
        self.more: dict[str, Any] = {}
        self.hanging = False
        self.streams = 0
        self._streams: list[web.StreamResponse] = []
        self._broken = asyncio.Event()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(f"{request.method} {request.path_qs}")
        if self.hanging:
            await asyncio.Event().wait()  # until the caller goes
        lists = {"hosts": self.answers.hosts, "networks": self.answers.networks, "endpoints": self.answers.endpoints}
        known = {"status": self.answers.status, **lists, **self.more}
        name = request.path.removeprefix("/v1/")
        if name in self.refused:
            return web.json_response({"error": {"code": "unavailable", "message": "no store", "hint": ""}}, status=503)
        found: Any = known.get(name, {"asked": request.path_qs})
        body = msgspec.json.encode(found)
        if isinstance(found, list):  # in lines, as an agent's
            body = b"[" + b",\n".join(map(msgspec.json.encode, found)) + b"]"
        return web.Response(body=body, content_type="application/json")

    async def _events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        self._streams.append(response)
        self.streams += 1
        try:
            await self._broken.wait()  # or until the caller goes
        finally:
            self._streams.remove(response)
        return response

    async def tell(self, **event: Any) -> None:
        """Send an event to all that follow."""
        for stream in self._streams:
            await stream.write(msgspec.json.encode({"about": {}, **event}) + b"\n")

    def break_off(self) -> None:
        """End the streams of events that there are."""
        self._broken.set()
        self._broken = asyncio.Event()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[FakeAgent]:
        """Serve within the block."""
        app = web.Application()
        app.add_routes([web.get("/v1/events", self._events), web.route("*", "/{path:.*}", self._answer)])
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.UnixSite(runner, str(self.path)).start()
            yield self
        finally:
            await runner.cleanup()

    @contextlib.contextmanager
    def in_thread(self) -> Iterator[asyncio.AbstractEventLoop]:
        """Serve in a thread of its own within the block; give its loop, in which `tell` runs."""
        loop, ready, over = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

        async def serve() -> None:
            async with self.serving():
                ready.set()
                await over.wait()

        thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
        thread.start()
        ready.wait()
        try:
            yield loop
        finally:
            loop.call_soon_threadsafe(over.set)
            thread.join()
            loop.close()
