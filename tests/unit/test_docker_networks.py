"""Networks that are exposed to Docker: what the engine refuses is known for as long as it does."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from replicas import eventually, network

from linkspan.errors import Unavailable
from linkspan.runtimes import docker_networks
from linkspan.runtimes.docker_engine import LABEL, EngineNetwork
from linkspan.runtimes.docker_networks import DockerNetworks


class Engine:
    """An engine that removes nothing; ``socket`` is any file that is there."""

    socket = __file__

    def __init__(self) -> None:
        self.known = [
            EngineNetwork("1", "demo", "bridge"),
            EngineNetwork("2", "old", "linkspan", {LABEL: "linkspan"}),
        ]

    async def networks(self) -> list[EngineNetwork]:
        """Return what there is."""
        return self.known

    async def delete(self, _network: EngineNetwork) -> None:
        """Refuse."""
        raise Unavailable("it has active endpoints")


class Networks:
    """One network, exposed to Docker."""

    def all(self) -> tuple[Any, ...]:
        """Return it."""
        return (network(expose=("docker",)),)


def test_what_is_over_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of another driver's, and one that is in use, are problems until they are away."""
    monkeypatch.setattr(docker_networks, "AGAIN", 0.01)
    assert Path(Engine.socket).exists()

    async def work() -> None:
        engine: Any = Engine()
        networks: Any = Networks()
        kept = DockerNetworks(networks, engine)
        kept.start()
        await eventually(lambda: set(kept.problems) == {"demo", "old"}, "both are told")
        engine.known = [EngineNetwork("3", "demo", "linkspan")]
        await eventually(lambda: not kept.problems, "both are forgotten")
        await kept.stop()

    asyncio.run(work())
