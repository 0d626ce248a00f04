"""Networks exposed to Docker: created in this host's engine, and removed from it when they are deleted.

The engine keeps its networks in a store of its own and may be down, or start later. So a task compares them
whenever ours change and every few seconds, and no attach waits for it. Ours have a label; those that a user
made with `docker network create -d linkspan` belong to the user.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from linkspan.cluster.networks import Networks
from linkspan.core.errors import LinkspanError
from linkspan.core.model import Network
from linkspan.core.supervise import ended, lasting, woken
from linkspan.runtimes.docker.docker_engine import LABEL, Engine, EngineNetwork
from linkspan.runtimes.docker.docker_types import SPACE

log = logging.getLogger("linkspan.docker")

AGAIN = 5.0
"""Seconds between comparisons."""


class DockerNetworks:
    """Keeps the engine's networks equal to the exposed ones."""

    def __init__(self, networks: Networks, engine: Engine, lives: Callable[[str], Awaitable[bool]]) -> None:
        """Take ``lives``, which says by its id whether an endpoint of the engine is still one of this host."""
        self._networks = networks
        self._engine = engine
        self._lives = lives
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.retired = False
        """Whether linkspan is being removed from this host."""
        self.problems: dict[str, str] = {}
        """What the engine refused, by the network's name."""

    def start(self) -> None:
        """Start to compare, if an engine is configured."""
        if self._engine.socket:
            self._task = lasting("syncing Docker's networks", self._follow)

    async def stop(self) -> None:
        """Stop; the engine's networks stay."""
        await ended(self._task)

    async def retire(self) -> None:
        """Compare no more. What the engine was asked last, it does: so wait for that."""
        self.retired = True
        self.look()
        if self._task is not None:
            await asyncio.wait([self._task])

    def look(self) -> None:
        """Compare soon: networks have changed."""
        self._wake.set()

    async def _follow(self) -> None:
        while not self.retired:
            if Path(self._engine.socket).exists():
                try:
                    await self._compare()
                except LinkspanError as error:
                    log.debug("%s", error.message)
            await woken(self._wake, AGAIN)
            self._wake.clear()

    async def _compare(self) -> None:
        wanted = {n.name: n for n in self._networks.all() if "docker" in n.expose}
        found = await self._engine.networks()
        names = {known.name: known for known in found}
        told, self.problems = self.problems, {}  # a problem that is over is forgotten, and reported if it comes again
        for name, network in wanted.items():
            known = names.get(name)
            if known is None:
                await self._try(name, "make", self._engine.create(wish(network)))
            elif known.driver != "linkspan":
                self.problems[name] = f"Docker has another network {name}, of driver {known.driver}"
        for known in found:
            if known.exposed and known.name not in wanted:
                await self._try(known.name, "remove", self._remove(known))
        for name, why in self.problems.items():
            if told.get(name) != why:
                log.warning("%s", why)

    async def _remove(self, known: EngineNetwork) -> None:
        """Remove a network that is no longer exposed, after those of its containers that were cut off.

        `network delete --force` removed their endpoints, which the engine does not know, and refuses for
        them. A store that lost its records is no such deletion: containers of an unknown network keep
        running.
        """
        deleted = not self._networks.unknown(known.name)
        members = await self._engine.members(known.id) if deleted else {}
        for member in members.values():
            if not await self._lives(member.endpoint_id):
                await self._engine.disconnect(known.id, member.name)
                log.warning(
                    "network %s is deleted: Docker's container %s is disconnected from it",
                    known.name,
                    member.name,
                )
        await self._engine.delete(known.id)

    async def _try(self, name: str, verb: str, change: Awaitable[None]) -> None:
        try:
            await change
        except LinkspanError as error:
            self.problems[name] = f"Docker does not {verb} network {name}: {error.message}"
            return
        log.info("network %s: Docker's own is %s", name, {"make": "made", "remove": "removed"}[verb])


async def users_own(engine: Engine) -> dict[str, list[str]]:
    """Return users' own networks of driver linkspan, with their containers. Raises Unavailable."""
    return {
        known.name: [member.name for member in (await engine.members(known.id)).values()]
        for known in await engine.networks()
        if known.driver == "linkspan" and not known.exposed
    }


async def remove_exposed(engine: Engine) -> tuple[list[str], list[str]]:
    """Remove all exposed networks from the engine, and their containers from them.

    Return the networks' names, and what the engine did not remove with why.

    The engine calls the plugin, so an agent must run. Without an engine there is nothing to do.
    """
    removed: list[str] = []
    left: list[str] = []
    try:
        found = await engine.networks()
    except LinkspanError:
        return removed, left
    for known in found:
        if known.exposed:
            try:
                members = await engine.members(known.id)
                for member in members.values():  # the engine refused, and is not asked again
                    await engine.disconnect(known.id, member.name)
                await engine.delete(known.id)
                removed.append(f"Docker network {known.name}")
            except LinkspanError as error:
                left.append(
                    f"Docker network {known.name}: {error.message}; remove its containers (docker rm -f), then: "
                    f"docker network rm {known.name}"
                )
    return removed, left


def wish(network: Network) -> dict[str, object]:
    """Return the request to the engine; with its subnets a user may choose addresses by `--ip`."""
    return {
        "Name": network.name,
        "CheckDuplicate": True,
        "Driver": "linkspan",
        "Internal": False,  # the engine's own option for it would hide the gateway; our rules enforce it
        "EnableIPv6": any(pool.family == 6 for pool in network.prefixes),
        "IPAM": {
            "Driver": "linkspan",
            "Options": {"network": network.name},
            "Config": [{"Subnet": text} for text in network.pools],
        },
        "Options": {"network": network.name},
        "Labels": {LABEL: SPACE},
    }
