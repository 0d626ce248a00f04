"""Docker's engine as an adoption sees it: its bridge networks become linkspan's, and back."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from linkspan.runtimes.adoption.bridge_engine import Attached, BridgeEngine, Move, Successor
from linkspan.runtimes.adoption.outcome import Left
from linkspan.runtimes.docker import docker_adoption_plan as plan
from linkspan.runtimes.docker.docker_adoption_plan import Container, Described
from linkspan.runtimes.docker.docker_engine import Engine


class DockerBridges(BridgeEngine[Described, Container]):
    """The bridge networks of one engine."""

    name = "docker"
    file = "adopted.json"
    bridge = Described

    def __init__(self, engine: Engine, plugin: Path) -> None:
        """Take ``plugin``, the socket where the engine finds linkspan."""
        self._engine = engine
        self._plugin = plugin

    async def network(self, name: str) -> Described | None:
        """Return a network."""
        return next((one for one in await self._engine.described(Described) if one.name == name), None)

    async def on(self, network: str) -> list[Container]:
        """Return the containers on a network."""
        ids = [listed.id for listed in await self._engine.containers() if network in listed.networks]
        return [one for id_ in ids if (one := await self.container(id_)) is not None]

    async def container(self, id: str) -> Container | None:
        """Return a container."""
        return await self._engine.inspected(id, Container)

    def attached(self, container: Container, network: str) -> Attached | None:
        """Return a container's part of a network."""
        if (at := container.on(network)) is None:
            return None
        return Attached(container.id, at.endpoint_id, plan.move(container, at), container.state.pid, at.mac_address)

    async def missing(self) -> Iterable[Left]:
        """Return a reason if nobody listens where the engine looks for linkspan."""
        if self._plugin.exists():
            return ()
        why = f"its engine does not find linkspan: {self._plugin} is missing"
        return (Left(self.called, why, "linkspan install docker"),)

    def successor(self, network: Described) -> Successor:
        """Return the linkspan network for a bridge network."""
        return plan.successor(network)

    def refusals(self, network: Described, containers: Iterable[Container]) -> list[Left]:
        """Return why the network cannot be adopted."""
        return plan.refusals(network, containers)

    def notes(self, network: Described, containers: Iterable[Container]) -> list[Left]:
        """Return what is different after the adoption."""
        return plan.notes(network, containers)

    async def create_ours(self, network: Described) -> None:
        """Create the network of driver linkspan."""
        await self._engine.create(plan.ours(network))

    async def create_bridge(self, network: Described) -> None:
        """Create the bridge network as it was."""
        await self._engine.create(plan.original(network))

    async def remove(self, network: Described) -> None:
        """Remove a network."""
        await self._engine.delete(network.id)

    async def disconnect(self, network: Described, container: str) -> None:
        """Disconnect a container."""
        await self._engine.disconnect(network.id, container)

    async def connect(self, network: Described, container: str, move: Move) -> None:
        """Connect a container."""
        await self._engine.connect(network.id, container, plan.endpoint(move))

    async def forget_removed(self, network: Described) -> None:
        """Disconnect removed containers: the engine remembers some of them by their names."""
        exist = {one.id for one in await self._engine.containers()}
        for id_, member in (await self._engine.members(network.id)).items():
            if id_ not in exist:
                await self._engine.disconnect(network.id, member.name)
