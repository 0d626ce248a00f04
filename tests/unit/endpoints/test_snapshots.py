"""What the worker does for an endpoint follows from what the loop gave it, however late it comes to do it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from linkspan.core.desired import Desired
from linkspan.core.model import AttachRequest
from linkspan.core.states.host import State
from linkspan.endpoints.attach import attach
from linkspan.endpoints.check import check
from linkspan.endpoints.registry import source
from linkspan.endpoints.rename import rename
from support.records.one_host import endpoint, network
from support.records.registry_stage import NotedKernel, RegistryStage

DEMO = network("demo", "10.1.0.0/24", routed=True)
ONE = msgspec.structs.replace(endpoint(DEMO, "10.1.0.5"), netns_path="")


class Kernel(NotedKernel):
    """A kernel in which nothing is missing, whose namespaces can be entered."""

    def __init__(self) -> None:
        super().__init__()
        self.namespaces = self.links = self
        self.desired = Desired()
        self.home = 1

    @contextlib.contextmanager
    def holding(self, _fd: int) -> Iterator[int]:
        """Enter a namespace."""
        yield ONE.netns

    def interface(self, _number: int, _name: str) -> None:
        """Find no interface."""

    def missing(self, states: list[State], _number: int) -> list[State]:
        """Compare: all is there."""
        assert states
        return []


def test_a_busy_worker_attaches_by_what_the_loop_gave_it(tmp_path: Path) -> None:
    """It does not look at the endpoints, of which others come and go meanwhile."""

    async def run() -> None:
        stage, free = RegistryStage(tmp_path, Kernel()), threading.Event()
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
    """What an endpoint needs is computed before."""

    async def run() -> None:
        kernel: Any = Kernel()
        stage = RegistryStage(tmp_path, kernel)
        await stage.start(DEMO)
        stage.registry.admit(ONE, 0)
        assert await check(stage.registry, ONE, 0, "", 0) == []
        named = msgspec.structs.replace(ONE, id="c9")
        await rename(stage.registry, ONE.identity, named)
        assert source(named) in kernel.desired.sources()
        await stage.stop()

    asyncio.run(run())
