"""Client of Docker's engine: its HTTP API on a unix socket (Docker 20.10 and later)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import TypeVar

import aiohttp
import msgspec

from linkspan.core.errors import Unavailable

T = TypeVar("T")

PATIENCE = aiohttp.ClientTimeout(total=30)
"""The engine asks our plugin while it makes a network."""
API = "http://docker/v1.41"
"""Docker 20.10's; an engine takes older versions of its API, and refuses newer ones."""
SHORT_ID = 12
"""Digits of a container's id that the engine adds to its aliases."""
LABEL = "linkspan.io/exposed"
"""Label of linkspan's own networks; other networks of driver linkspan belong to a user."""


class Member(msgspec.Struct, frozen=True, rename="pascal"):
    """A container on a network."""

    name: str
    endpoint_id: str = msgspec.field(name="EndpointID")


class EngineNetwork(msgspec.Struct, frozen=True, rename="pascal"):
    """A network of the engine; ``containers`` by id, if one network was asked for."""

    id: str
    name: str
    driver: str
    labels: dict[str, str] | None = None
    containers: dict[str, Member] | None = None

    @property
    def exposed(self) -> bool:
        """Return whether linkspan made it, and not a user."""
        return LABEL in (self.labels or {})


class _Attachment(msgspec.Struct, frozen=True, rename="pascal"):
    endpoint_id: str = msgspec.field(default="", name="EndpointID")
    aliases: tuple[str, ...] | None = None


class _Settings(msgspec.Struct, frozen=True, rename="pascal"):
    networks: dict[str, _Attachment] | None = None


class _Config(msgspec.Struct, frozen=True, rename="pascal"):
    labels: dict[str, str] | None = None


class _Container(msgspec.Struct, frozen=True, rename="pascal"):
    id: str
    name: str
    network_settings: _Settings
    config: _Config = _Config()


class Listed(msgspec.Struct, frozen=True, rename="pascal"):
    """A container in the engine's list: its state in the engine's word, and the names of its networks."""

    id: str
    state: str = ""
    network_settings: _Settings = _Settings()

    @property
    def starts(self) -> bool:
        """Return whether it may be starting now: the engine calls it running only afterwards."""
        return self.state not in ("running", "paused")

    @property
    def networks(self) -> frozenset[str]:
        """Return the names of its networks, which the engine knows before it starts."""
        return frozenset(self.network_settings.networks or {})


class _Actor(msgspec.Struct, frozen=True):
    id: str = msgspec.field(default="", name="ID")


class _Event(msgspec.Struct, frozen=True, rename="pascal"):
    actor: _Actor


class Engine:
    """One engine. Every call raises Unavailable, with the engine's own words, if it fails."""

    def __init__(self, socket: str) -> None:
        """Take ``socket``, the engine's unix socket."""
        self.socket = socket

    async def _ask(self, method: str, path: str, body: Mapping[str, object] | None = None) -> bytes:
        try:
            connector = aiohttp.UnixConnector(self.socket)
            async with (
                aiohttp.ClientSession(connector=connector, timeout=PATIENCE) as session,
                session.request(method, f"{API}{path}", json=body) as answer,
            ):
                text = await answer.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Unavailable(f"Docker's engine at {self.socket}: {error}", "does dockerd run?") from error
        if answer.status >= 300:
            raise Unavailable(_said(text) or f"Docker's engine: HTTP status {answer.status} for {path}")
        return text

    async def networks(self) -> list[EngineNetwork]:
        """Return all networks."""
        return _decoded(await self._ask("GET", "/networks"), list[EngineNetwork])

    async def create(self, wish: Mapping[str, object]) -> None:
        """Create a network."""
        await self._ask("POST", "/networks/create", wish)

    async def delete(self, network: str) -> None:
        """Delete a network, by its id."""
        await self._ask("DELETE", f"/networks/{network}")

    async def members(self, network: str) -> dict[str, Member]:
        """Return the containers on a network, which is an id, by their ids. Some may not exist any more."""
        found = _decoded(await self._ask("GET", f"/networks/{network}"), EngineNetwork)
        return found.containers or {}

    async def disconnect(self, network: str, container: str) -> None:
        """Disconnect a container from a network, whatever its driver says.

        Takes the network's id, and the container's id or name.
        """
        await self._ask("POST", f"/networks/{network}/disconnect", {"Container": container, "Force": True})

    async def connect(self, network: str, container: str, endpoint: Mapping[str, object]) -> None:
        """Connect a container to a network, with this EndpointConfig."""
        await self._ask("POST", f"/networks/{network}/connect", {"Container": container, "EndpointConfig": endpoint})

    async def described(self, kind: type[T]) -> list[T]:
        """Return all networks as values of a type that says what is asked of them."""
        return _decoded(await self._ask("GET", "/networks"), list[kind])  # type: ignore[valid-type]

    async def inspected(self, container: str, kind: type[T]) -> T | None:
        """Return a container as a value of such a type, None if it does not exist any more."""
        try:
            return _decoded(await self._ask("GET", f"/containers/{container}/json"), kind)
        except Unavailable:
            if any(one.id == container for one in await self.containers()):
                raise
            return None

    async def container(self, network_id: str, endpoint_id: str) -> str:
        """Return the id of the container that has an endpoint, "" if there is none."""
        network = _decoded(await self._ask("GET", f"/networks/{network_id}"), EngineNetwork)
        members = (network.containers or {}).items()
        return next((container for container, member in members if member.endpoint_id == endpoint_id), "")

    async def running(self) -> list[str]:
        """Return the ids of the running containers."""
        return [one.id for one in _decoded(await self._ask("GET", "/containers/json"), list[Listed])]

    async def containers(self) -> list[Listed]:
        """Return all containers. The engine answers this while it starts one, unlike a request for that one."""
        return _decoded(await self._ask("GET", "/containers/json?all=1"), list[Listed])

    async def names(self, container: str) -> tuple[str, dict[str, tuple[str, ...]], dict[str, str]]:
        """Return a container's name, its aliases by the id of each of its endpoints, and its labels."""
        found = _decoded(await self._ask("GET", f"/containers/{container}/json"), _Container)
        attachments = (found.network_settings.networks or {}).values()
        # The engine adds the id's first twelve digits by itself. What is shorter or longer a user chose.
        added = found.id[:SHORT_ID]
        aliases = {a.endpoint_id: tuple(x for x in a.aliases or () if x != added) for a in attachments}
        return found.name.lstrip("/"), aliases, found.config.labels or {}

    async def renames(self) -> AsyncGenerator[str]:
        """Yield "" once the engine is connected, and then the id of each container that is renamed.

        Ends when the engine ends. Raises Unavailable if it cannot be reached.
        """
        if not Path(self.socket).exists():  # this is tried again and again while there is no engine
            raise Unavailable(f"Docker's engine at {self.socket}: the socket does not exist", "does dockerd run?")
        wanted = msgspec.json.encode({"type": ["container"], "event": ["rename"]}).decode()
        connector = aiohttp.UnixConnector(self.socket)
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(sock_connect=30)) as session,
                session.get(f"{API}/events", params={"filters": wanted}) as answer,
            ):
                yield ""
                async for line in answer.content:
                    yield _decoded(line, _Event).actor.id
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:  # ValueError: a line without an end
            raise Unavailable(f"Docker's engine at {self.socket}: {error}", "does dockerd run?") from error


def _decoded(text: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Unavailable(f"Docker's engine gave an answer that cannot be read: {error}") from error


def _said(text: bytes) -> str:
    try:
        return str(msgspec.json.decode(text)["message"])
    except (msgspec.MsgspecError, KeyError, TypeError, UnicodeDecodeError):
        return ""
