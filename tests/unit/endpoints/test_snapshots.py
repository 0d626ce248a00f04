"""Snapshots for the worker: its work follows from what the loop passed, however late it runs."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec

from linkspan.core.model import AttachRequest
from linkspan.endpoints.attach import attach
from linkspan.endpoints.check import check
from linkspan.endpoints.registry import source
from linkspan.endpoints.rename import rename
from linkspan.kernel.drivers.links import LinkDriver
from linkspan.kernel.io.namespaces import Namespaces
from support.records.one_host import endpoint, network
from support.records.registry_stage import NotedMachine, RegistryStage

DEMO = network("demo", "10.1.0.0/24", routed=True)
ONE = msgspec.structs.replace(endpoint(DEMO, "10.1.0.5"), netns_path="")


class Spaces(Namespaces):
    """Namespaces of which each can be entered, whatever the descriptor."""

    @contextlib.contextmanager
    def holding(self, fd: int, cookie: int = 0) -> Iterator[int]:
        """Enter the endpoint's."""
        yield ONE.netns


class NoLinks(LinkDriver):
    """Links that nobody looks for."""

    def __init__(self) -> None:
        """Open nothing."""

    def interface(self, netns: int, name: str) -> None:
        """Find none."""


class Entered(NotedMachine):
    """A machine whose namespaces can be entered."""

    def __init__(self) -> None:
        super().__init__()
        self.namespaces, self.links = Spaces(), NoLinks()


def test_a_busy_worker_attaches_by_what_the_loop_gave_it(tmp_path: Path) -> None:
    """It does not look at the endpoints, of which others come and go meanwhile."""

    async def run() -> None:
        stage, free = RegistryStage(tmp_path, Entered()), threading.Event()
        await stage.start(DEMO)
        busy = asyncio.create_task(stage.worker.run(free.wait, 10))
        await asyncio.sleep(0)
        request = AttachRequest(id="c2", network="demo", ifname="eth0")
        coming = asyncio.create_task(attach(stage.registry, request, -1, "", delivered=True))
        asyncio.get_running_loop().call_soon(free.set)
        made = await coming
        assert await busy
        assert source(made) in stage.kernel.changed
        assert dict.keys(stage.endpoints) == {made.identity}
        await stage.stop()

    asyncio.run(run())


def test_check_and_rename_look_at_no_endpoint_in_the_worker(tmp_path: Path) -> None:
    """The endpoint's needs are computed before."""

    async def run() -> None:
        stage = RegistryStage(tmp_path, Entered())
        await stage.start(DEMO)
        stage.registry.admit(ONE, 0)
        stage.kernel.changes(stage.registry.states(DEMO, ONE))
        assert await check(stage.registry, ONE, 0, "", 0) == []
        named = msgspec.structs.replace(ONE, id="c9")
        await rename(stage.registry, ONE.identity, named)
        assert source(named) in stage.kernel.desired.sources()
        await stage.stop()

    asyncio.run(run())
