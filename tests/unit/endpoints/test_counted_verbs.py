"""Attach and detach are counted where they are done, whoever asks: CNI, Podman, Docker, the queue or the agent."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from linkspan.core.errors import NotFound
from linkspan.core.model import AttachRequest
from linkspan.endpoints.attach import attach
from linkspan.endpoints.detach import detach
from linkspan.runtimes.docker.docker_driver import Docker
from linkspan.runtimes.docker.docker_types import IPAM_DRIVER, NETWORK_DRIVER, SPACE, Call, Pool
from support.records.one_host import network
from support.records.registry_stage import RegistryStage

DEMO = network("demo", "10.1.0.0/24", routed=True)


class Stage(RegistryStage):
    """A host that notes what is counted, and Docker on it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.docker = Docker(self.registry, "", folder / "docker.json")

    @property
    def kinds(self) -> list[tuple[str, str]]:
        """The verbs that were counted, each with its result."""
        return [(verb, result) for verb, result, seconds in self.counted if 0 < seconds < 60]


def test_each_verb_is_counted_with_its_result(tmp_path: Path) -> None:
    """One that is refused, too."""

    async def run() -> None:
        stage = Stage(tmp_path)
        await stage.start(DEMO)
        await attach(stage.registry, AttachRequest(id="c1", network="demo", ifname="eth0"), -1, "", delivered=True)
        with pytest.raises(NotFound):
            await attach(stage.registry, AttachRequest(id="c2", network="none", ifname="eth0"), -1, "")
        await detach(stage.registry, "c1")
        assert stage.kinds == [("attach", "ok"), ("attach", "error"), ("detach", "ok")]
        await stage.stop()

    asyncio.run(run())


def test_dockers_endpoints_are_counted(tmp_path: Path) -> None:
    """The engine's calls change endpoints without the agent's own verbs."""

    async def run() -> None:
        stage = Stage(tmp_path)
        await stage.start(DEMO)
        pool = Pool(SPACE, "10.1.0.0/24", "10.1.0.1/24")
        of: dict[str, object] = {"com.docker.network.generic": {"network": "demo"}}
        await stage.docker.call(
            f"{NETWORK_DRIVER}.CreateNetwork", Call(network_id="n1", options=of, ipv4_data=(pool,))
        )
        call = Call(network_id="n1", endpoint_id="e" * 64, pool_id="demo/4")
        await stage.docker.call(f"{IPAM_DRIVER}.RequestAddress", call)
        await stage.docker.call(f"{NETWORK_DRIVER}.CreateEndpoint", call)
        assert stage.kinds == [("attach", "ok")]
        await stage.docker.call(f"{NETWORK_DRIVER}.DeleteEndpoint", call)
        assert stage.kinds == [("attach", "ok"), ("detach", "ok")]
        await stage.docker.stop()
        await stage.stop()

    asyncio.run(run())
