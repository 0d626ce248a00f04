"""A detach waits for the kernel in the worker thread, which gets a snapshot."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
import pytest

from linkspan.core.desired import Source
from linkspan.core.errors import Conflict, LinkspanError
from linkspan.core.model import AttachRequest, Endpoint, Port
from linkspan.core.states.host import Key, State
from linkspan.endpoints import multihoming
from linkspan.endpoints.attach import attach
from linkspan.endpoints.detach import detach
from linkspan.endpoints.registry import fast_source, policy_source, source
from support.records.one_host import endpoint, network
from support.records.registry_stage import NotedMachine, NotedReconciler, RegistryStage

DEMO = network("demo", "10.1.0.0/24", routed=True)


class SlowKernel(NotedReconciler):
    """A kernel that removes a link only after the agent's loop has gone on; it gives up after ten seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.went_on = threading.Event()
        self.waited_in_vain = False

    def changes(
        self, sources: Mapping[Source, Iterable[State]], there: tuple[type[State], ...] = ()
    ) -> dict[Key, LinkspanError]:
        """Take states away, and wait for the loop."""
        self.waited_in_vain = not self.went_on.wait(10)
        return super().changes(sources, there)


class Disagreeing(NotedReconciler):
    """A reconciler for which another source disagrees: it applies the rest, and raises Conflict."""

    def changes(
        self, sources: Mapping[Source, Iterable[State]], there: tuple[type[State], ...] = ()
    ) -> dict[Key, LinkspanError]:
        """Refuse what is put, and then what is removed."""
        super().changes(sources, there)
        raise Conflict(f"source {len(self.changed)} disagrees")


PORT = Port("", 8080, 80, "tcp")


def test_a_removal_that_is_refused_keeps_neither_address_nor_port(tmp_path: Path) -> None:
    """An attach that fails says why it failed, and not why undoing it did; a detach goes on."""

    async def run() -> None:
        stage = RegistryStage(tmp_path, NotedMachine(Disagreeing()))
        await stage.start(DEMO)
        free = stage.member.blocks.free("demo")
        request = AttachRequest(id="c1", network="demo", ifname="eth0", ports=(PORT,))
        with pytest.raises(Conflict, match="source 3 disagrees"):
            await attach(stage.registry, request, -1, "", delivered=True)
        assert (stage.registry.ports.holder(PORT), stage.member.blocks.free("demo")) == ("", free)
        assert stage.journal.rows() == []
        one = msgspec.structs.replace(_endpoint("eth0", "10.1.0.5"), ports=(PORT,))
        stage.registry.ports.restore(one)
        stage.registry.admit(one, 0)
        assert await detach(stage.registry, one.id) == 1
        assert (stage.registry.ports.holder(PORT), len(stage.endpoints)) == ("", 0)
        await stage.stop()

    asyncio.run(run())


def _endpoint(ifname: str, address: str) -> Endpoint:
    return msgspec.structs.replace(endpoint(DEMO, address), ifname=ifname, netns_path="")


def test_the_loop_goes_on_while_the_kernel_removes_a_link(tmp_path: Path) -> None:
    """A host that could not say that it lives for so long would be taken for dead."""

    async def run() -> None:
        kernel = SlowKernel()
        stage = RegistryStage(tmp_path, NotedMachine(kernel))
        await stage.start(DEMO)
        one, mate = _endpoint("eth0", "10.1.0.5"), _endpoint("eth1", "10.1.0.6")
        stage.registry.admit(one, 0)
        stage.registry.admit(mate, 0)
        asyncio.get_running_loop().call_soon(kernel.went_on.set)
        assert await detach(stage.registry, one.id, "eth0") == 1
        await stage.stop()
        assert not kernel.waited_in_vain
        own = {source(one), multihoming.source(one), policy_source(one.identity), fast_source(one.identity)}
        assert set(kernel.changed) == own
        assert dict.keys(stage.endpoints) == {mate.identity}

    asyncio.run(run())
