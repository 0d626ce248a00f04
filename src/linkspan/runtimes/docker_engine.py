"""Docker's engine, as its HTTP API on a unix socket tells of it (Docker 20.10 and later)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import aiohttp
import msgspec

from linkspan.errors import Unavailable

T = TypeVar("T")

PATIENCE = aiohttp.ClientTimeout(total=30)
"""The engine asks our plugin while it makes a network."""
API = "http://docker/v1.41"
"""Docker 20.10's; an engine takes older versions of its API, and refuses newer ones."""
LABEL = "linkspan.io/exposed"
"""By this label linkspan's networks are known; others of driver linkspan are a user's own."""


class Member(msgspec.Struct, frozen=True, rename="pascal"):
    """A container on a network."""

    name: str
    endpoint_id: str = msgspec.field(name="EndpointID")


class EngineNetwork(msgspec.Struct, frozen=True, rename="pascal"):
    """A network of the engine's; ``containers`` by id, where one network was asked for."""

    id: str
    name: str
    driver: str
    labels: dict[str, str] | None = None
    containers: dict[str, Member] | None = None

    @property
    def exposed(self) -> bool:
        """Whether it was made by linkspan, and not by a user."""
        return LABEL in (self.labels or {})


class _Attachment(msgspec.Struct, frozen=True, rename="pascal"):
    endpoint_id: str = msgspec.field(default="", name="EndpointID")
    aliases: tuple[str, ...] | None = None


class _Settings(msgspec.Struct, frozen=True, rename="pascal"):
    networks: dict[str, _Attachment] | None = None


class _Container(msgspec.Struct, frozen=True, rename="pascal"):
    name: str
    network_settings: _Settings


class Engine:
    """One engine. Every call raises Unavailable, with the engine's own words, where it does not do it."""

    def __init__(self, socket: str) -> None:
        """``socket`` is its unix socket."""
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

    async def delete(self, network: EngineNetwork) -> None:
        """Delete a network."""
        await self._ask("DELETE", f"/networks/{network.id}")

    async def names(self, network_id: str, endpoint_id: str) -> tuple[str, tuple[str, ...]]:
        """Return the name of the container that has an endpoint, and its aliases there; "" without one."""
        network = _decoded(await self._ask("GET", f"/networks/{network_id}"), EngineNetwork)
        for container_id, member in (network.containers or {}).items():
            if member.endpoint_id == endpoint_id:
                found = _decoded(await self._ask("GET", f"/containers/{container_id}/json"), _Container)
                every = (found.network_settings.networks or {}).values()
                aliases = next((one.aliases or () for one in every if one.endpoint_id == endpoint_id), ())
                return found.name.lstrip("/"), tuple(a for a in aliases if not container_id.startswith(a))
        return "", ()


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
