"""Podman as an adoption sees it: its bridge networks become linkspan's, and back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

import msgspec

from linkspan.core.errors import LinkspanError, Unavailable
from linkspan.runtimes.adoption.bridge_engine import OURS, Attached, BridgeEngine, Move, Successor
from linkspan.runtimes.adoption.outcome import Left
from linkspan.runtimes.podman import podman_adoption_plan as plan
from linkspan.runtimes.podman.podman_adoption_plan import Container, Described, Inspected, Listed, Spec
from linkspan.runtimes.podman.podman_command import PodmanCommand


class _Plugins(msgspec.Struct, frozen=True):
    network: tuple[str, ...] = ()


class _Machine(msgspec.Struct, frozen=True):
    """The parts of `podman info`."""

    plugins: _Plugins = _Plugins()


class PodmanBridges(BridgeEngine[Described, Container]):
    """The bridge networks of root's Podman."""

    name = "podman"
    file = "adopted-podman.json"
    bridge = Described

    def __init__(self, podman: PodmanCommand | None = None) -> None:
        self._podman = podman or PodmanCommand()
        self._files: dict[str, str] = {}
        """Path of each container's resolv.conf, by the container's id."""

    async def network(self, name: str) -> Described | None:
        """Return a network."""
        listed = await self._podman.asked(list[Described], "network", "ls", "--format", "json")
        return next((one for one in listed if one.name == name), None)

    async def on(self, network: str) -> list[Container]:
        """Return the containers on a network; for a pod's containers it is the pod's own."""
        ids = [one.id for one in await self._listed() if network in one.networks]
        return [one for id_ in ids if (one := await self.container(id_)) is not None]

    async def container(self, id: str) -> Container | None:
        """Return a container."""
        try:
            seen = await self._seen(id)
            spec = await self._podman.asked(Spec, "generate", "spec", "--compact", id)
        except Unavailable:
            if any(one.id == id for one in await self._listed()):
                raise
            return None
        return Container(seen, spec.networks)

    async def _listed(self) -> list[Listed]:
        return await self._podman.asked(list[Listed], "ps", "--all", "--no-trunc", "--format", "json")

    def attached(self, container: Container, network: str) -> Attached | None:
        """Return a container's part of a network."""
        return plan.attached(container, network)

    async def missing(self) -> Iterable[Left]:
        """Return a reason if Podman does not find linkspan's plugin."""
        machine = await self._podman.asked(_Machine, "info", "--format", "json")
        if OURS in machine.plugins.network:
            return ()
        return (Left(self.called, "it finds no network plugin of linkspan", "linkspan install podman"),)

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
        await self._podman.run(*plan.ours(network))

    async def create_bridge(self, network: Described) -> None:
        """Create the bridge network as it was."""
        await self._podman.run(*plan.original(network))

    async def remove(self, network: Described) -> None:
        """Remove a network."""
        await self._podman.run("network", "rm", network.name)

    async def disconnect(self, network: Described, container: str) -> None:
        """Disconnect a container."""
        await self._podman.run("network", "disconnect", network.name, container)

    async def connect(self, network: Described, container: str, move: Move) -> None:
        """Connect a container.

        Podman writes down that the container is on the network before it asks the plugin, and leaves that if the
        plugin refuses. A command that was interrupted may have got as far, or may still run: so there is a second try.
        """
        for last in (False, True):
            try:
                await self._podman.run(*plan.connecting(network.name, container, move))
            except Unavailable:
                now = await self.container(container)
                if now is None or not now.running:
                    raise
                if network.name in now.seen.network_settings.networks:
                    break
                with contextlib.suppress(Unavailable):  # its note is gone even if netavark finds nothing to delete
                    await self.disconnect(network, container)
                if last:
                    raise
            else:
                break
        if move.running and network.driver == OURS:
            with contextlib.suppress(LinkspanError):  # it is connected, whatever Podman says now
                _forget_search(self._files.get(container) or (await self._seen(container)).resolv_conf)

    async def _seen(self, container: str) -> Inspected:
        (seen,) = await self._podman.asked(tuple[Inspected], "container", "inspect", container)
        self._files[container] = seen.resolv_conf
        return seen


_LONGEST = 65536
"""Bytes of the longest resolv.conf that is changed: its content is the container's."""


def _forget_search(path: str) -> None:
    """Take Podman's domain out of a container's resolv.conf, in the file that Podman has bound into the container."""
    with contextlib.suppress(OSError, UnicodeDecodeError), Path(path).open("r+b", buffering=0) as file:
        conf = file.read(_LONGEST + 1)
        changed = plan.without_search(conf.decode()).encode()
        if len(conf) <= _LONGEST and changed != conf:  # by one write: no reader sees parts of both
            file.seek(0)
            file.truncate()
            file.write(changed)
