"""Networks that are exposed to Docker: what the engine refuses is known for as long as it does."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from linkspan.core.errors import Unavailable
from linkspan.runtimes.docker import docker_networks
from linkspan.runtimes.docker.docker_driver import starts_within
from linkspan.runtimes.docker.docker_engine import LABEL, EngineNetwork, Listed, Member
from linkspan.runtimes.docker.docker_networks import DockerNetworks
from support.polling import eventually
from support.records.replicas import network


class Engine:
    """An engine that removes no network that a container is on; ``socket`` is any file that is there."""

    socket = __file__

    def __init__(self) -> None:
        self.known = [
            EngineNetwork("1", "demo", "bridge"),
            EngineNetwork("2", "old", "linkspan", {LABEL: "linkspan"}),
        ]
        self.on_old = [Member("alive", "e1"), Member("cut-off", "e2")]

    async def networks(self) -> list[EngineNetwork]:
        """Return what there is."""
        return self.known

    async def members(self, _network: str) -> dict[str, Member]:
        """Return the containers that are on the network old."""
        return {member.endpoint_id: member for member in self.on_old}

    async def disconnect(self, _network: str, container: str) -> None:
        """Take a container out."""
        self.on_old = [member for member in self.on_old if member.name != container]

    async def delete(self, network: str) -> None:
        """Refuse while a container is on it."""
        if self.on_old:
            raise Unavailable("it has active endpoints")
        self.known = [known for known in self.known if known.id != network]


class Networks:
    """One network, exposed to Docker; ``lost``: no record tells that another one was deleted."""

    def __init__(self, *, lost: bool = False) -> None:
        self.lost = lost

    def unknown(self, _name: str) -> bool:
        """Return whether no record says anything of a network."""
        return self.lost

    def all(self) -> tuple[Any, ...]:
        """Return it."""
        return (network(expose=("docker",)),)


async def _lives(endpoint_id: str) -> bool:
    return endpoint_id == "e1"


def test_only_containers_that_were_cut_off_are_taken_out_of_a_network_that_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that still has its endpoint keeps Docker's network, until it ends; then the network is removed."""
    monkeypatch.setattr(docker_networks, "AGAIN", 0.01)

    async def work() -> None:
        engine: Any = Engine()
        networks: Any = Networks()
        kept = DockerNetworks(networks, engine, _lives)
        kept.start()
        await eventually(lambda: engine.on_old == [Member("alive", "e1")], "the other one is taken out")
        await eventually(lambda: "old" in kept.problems, "the network stays, and is told")
        engine.on_old.clear()
        await eventually(lambda: [n.name for n in engine.known] == ["demo"], "it is removed")
        await kept.stop()

    asyncio.run(work())


def test_a_store_that_lost_its_records_takes_no_container_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has deleted the network: Docker's stays with all of its containers, and is reported."""
    monkeypatch.setattr(docker_networks, "AGAIN", 0.01)

    async def work() -> None:
        engine: Any = Engine()
        networks: Any = Networks(lost=True)
        kept = DockerNetworks(networks, engine, _lives)
        kept.start()
        await eventually(lambda: "old" in kept.problems, "the network stays")
        assert engine.on_old == [Member("alive", "e1"), Member("cut-off", "e2")]
        await kept.stop()

    asyncio.run(work())


def test_what_is_over_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of another driver's, and one that is in use, are problems until they are away."""
    monkeypatch.setattr(docker_networks, "AGAIN", 0.01)
    assert Path(Engine.socket).exists()

    async def work() -> None:
        engine: Any = Engine()
        networks: Any = Networks()
        kept = DockerNetworks(networks, engine, _lives)
        kept.start()
        await eventually(lambda: set(kept.problems) == {"demo", "old"}, "both are told")
        engine.known = [EngineNetwork("3", "demo", "linkspan")]
        await eventually(lambda: not kept.problems, "both are forgotten")
        await kept.stop()

    asyncio.run(work())


def test_no_network_is_made_once_linkspan_is_being_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine makes the one that it was asked for before, so this is waited for, and none after it."""
    monkeypatch.setattr(docker_networks, "AGAIN", 0.01)
    asked: list[str] = []

    async def work() -> None:
        engine: Any = Engine()
        engine.known, made = [], asyncio.Event()

        async def create(wish: dict[str, Any]) -> None:
            asked.append(wish["Name"])
            await made.wait()

        engine.create = create
        networks: Any = Networks()
        kept = DockerNetworks(networks, engine, _lives)
        kept.start()
        await eventually(lambda: asked == ["demo"], "the engine is asked for the network")
        retired = asyncio.create_task(kept.retire())
        await asyncio.sleep(0.05)
        assert not retired.done()
        made.set()
        await retired
        kept.look()
        await asyncio.sleep(0.05)
        assert asked == ["demo"]
        await kept.stop()

    asyncio.run(work())


def _listed(state: str, *names: str) -> Listed:
    settings: dict[str, Any] = {"Networks": {name: {} for name in names}}
    return msgspec.convert({"Id": "c", "State": state, "NetworkSettings": settings}, Listed)


@pytest.mark.parametrize(
    ("containers", "certain"),
    [
        ([("created", "back")], True),
        ([("created", "back", "vault")], True),
        ([("exited", "back"), ("running", "back", "front"), ("created", "other")], True),
        ([("created", "back", "front")], False),
        ([("created", "back"), ("exited", "back", "front")], False),
        ([("running", "back")], False),
        ([("created", "other")], False),
        ([], False),
    ],
)
def test_a_container_is_certainly_in_internal_networks_where_all_that_may_start_are(
    containers: list[tuple[str, ...]], certain: bool
) -> None:
    """Docker names no container to a driver: one that may be meant and has another network makes it uncertain."""
    assert starts_within("back", {"back", "vault"}, [_listed(*one) for one in containers]) is certain
