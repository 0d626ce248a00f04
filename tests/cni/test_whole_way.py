"""The whole way of a call: plugin, HTTP server, handler, and an agent in memory."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web

from linkspan.api import runtimes
from linkspan.api.app import LARGEST
from linkspan.api.plugin_calls import PluginCalls
from linkspan.api.sockets import listener, listening
from linkspan.runtimes.base import Service
from linkspan.runtimes.cni.cni_verbs import Cni
from support.cni.cni_agent import FakeAgent
from support.cni.cni_calls import conf
from support.cni.cni_whole import WHOLE, needed, nulled, places
from support.cni.plugin_runs import CONF, Plugin

OVERRIDE = {"CNI_NETNS_OVERRIDE": "1"}  # the test's own namespace stands for the container's


class Answering(Service):
    """The runtime's service, as far as this needs it."""

    def __init__(self, agent: FakeAgent) -> None:
        self._cni = Cni(agent, agent)

    async def answer(self, path: str, body: bytes, pid: int, uid: int) -> tuple[int, bytes]:
        """Answer whoever runs the tests as it would answer root."""
        return await self._cni.handle(body, pid)


async def serve(agent: FakeAgent, path: Path, started: threading.Event, stop: asyncio.Event) -> None:
    """Serve POST /cni as the real agent does, until stopped."""
    service = Answering(agent)
    app = web.Application(client_max_size=LARGEST)
    app.add_routes(runtimes.routes({"cni": service}))
    async with listening(app) as runner:
        assert runner.server is not None
        with listener(path) as made:
            async with PluginCalls({"cni": service}, runner.server).at(made):
                started.set()
                await stop.wait()


@pytest.fixture
def agent(plugin: Plugin) -> Iterator[FakeAgent]:
    """Return an agent that serves the plugin's socket."""
    fake, started, stop, loop = FakeAgent(), threading.Event(), asyncio.Event(), asyncio.new_event_loop()
    serving = serve(fake, plugin.socket, started, stop)
    thread = threading.Thread(target=loop.run_until_complete, args=(serving,))
    thread.start()
    assert started.wait(10)
    yield fake
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)
    assert not thread.is_alive()
    loop.close()


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_life_of_a_container(plugin: Plugin, agent: FakeAgent, version: str) -> None:
    """ADD, CHECK, GC, STATUS and DEL twice, in each version that has them."""
    conf = {**CONF, "cniVersion": version}
    added = plugin.run("ADD", conf, **OVERRIDE)
    assert added.code == 0, added
    result = json.loads(added.stdout)
    assert result["cniVersion"] == version
    if version != "0.3.1":
        assert plugin.run("CHECK", {**conf, "prevResult": result}, **OVERRIDE)[:2] == (0, b"")
    if version == "1.1.0":
        valid = [{"containerID": "web", "ifname": "eth0"}]
        assert plugin.run("GC", {**conf, "cni.dev/valid-attachments": valid})[:2] == (0, b"")
        assert plugin.run("STATUS", conf)[:2] == (0, b"")
    assert list(agent.attached) == [("web", "eth0")]
    assert plugin.run("DEL", {**conf, "prevResult": result})[:2] == (0, b"")
    assert plugin.run("DEL", conf, CNI_NETNS="")[:2] == (0, b"")
    assert not agent.attached


def test_namespace_of_the_plugin_itself_is_refused(plugin: Plugin, agent: FakeAgent) -> None:
    """Code 8, found by the inode that the plugin reports of its own namespace."""
    failed = plugin.run("ADD").error
    assert (failed["code"], failed["cniVersion"]) == (8, "1.0.0")
    assert not agent.attached


def test_namespace_that_is_not_there_is_refused(plugin: Plugin, agent: FakeAgent) -> None:
    """Code 8 with the path and the reason of the plugin's open()."""
    failed = plugin.run("ADD", CNI_NETNS="/run/netns/nowhere-at-all").error
    assert failed["code"] == 8
    assert "/run/netns/nowhere-at-all: No such file or directory" in failed["msg"]


@pytest.mark.parametrize(
    "inner",
    [b"[" * 200_000 + b"]" * 200_000, b'"\xff\xfe"', b"nonsense", b'{"a"}'],
    ids=["deep", "not utf-8", "nonsense", "half a pair"],
)
def test_what_the_plugin_lets_pass_is_found_by_the_agent(
    plugin: Plugin, agent: FakeAgent, inner: bytes
) -> None:
    """Code 6 for JSON that is broken inside."""
    text = b'{"name":"demo","cniVersion":"1.0.0","x":%s}' % inner
    assert plugin.run("ADD", text, **OVERRIDE).error["code"] == 6


def test_null_is_absent_on_the_whole_way(plugin: Plugin, agent: FakeAgent) -> None:
    """The plugin passes a null on at any place: a member that may be missing may be null."""
    for number, place in enumerate(one for one in places(conf(**WHOLE)) if not needed(one)):
        added = plugin.run("ADD", nulled(place, "1.0.0"), CNI_CONTAINERID=f"web{number}", **OVERRIDE)
        assert added.code == 0, (place, added)


def test_the_largest_configuration_passes(plugin: Plugin, agent: FakeAgent) -> None:
    """1 MiB of configuration is attached; the server takes what the plugin may send."""
    filler = "y" * ((1 << 20) - len(json.dumps({**CONF, "args": {"x": ""}})))
    assert (
        plugin.run(
            "ADD", {**CONF, "args": {"x": filler}}, CNI_ARGS="IgnoreUnknown=1;A=" + "b" * 90_000, **OVERRIDE
        ).code
        == 0
    )
