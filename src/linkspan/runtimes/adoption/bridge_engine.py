"""Contract of an engine whose bridge networks can be adopted, and the values that an adoption and an engine share.

Docker and Podman are such engines. What they have in common is in `bridge_adopter`; an engine's own file says how
it describes a network and its containers, and how it is told to change them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import msgspec

from linkspan.core.addresses import Prefix, prefix
from linkspan.core.errors import LinkspanError
from linkspan.core.ipam import gateway
from linkspan.runtimes.adoption.outcome import Left

AT_ONCE = 5
"""Running containers that are moved without asking: all are without the network until the last one is connected.

Measured with Docker on two cores with a load of 15 to 35: one took 0.5 to 0.7 s, five 0.9 to 1.2 s, ten 1.1 to
1.9 s.
"""
OURS = "linkspan"
"""The driver of networks that are linkspan's."""


class Move(msgspec.Struct, frozen=True):
    """A container that is to be on the network: what the engine is told when it is connected."""

    name: str
    running: bool
    ips: tuple[str, ...]
    links: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    mac: str = ""


class Attached(msgspec.Struct, frozen=True):
    """A container that is on the network now.

    ``endpoint`` is the id by which linkspan knows it if the network is linkspan's. ``pid`` is 0 unless it runs.
    """

    id: str
    endpoint: str
    move: Move
    pid: int = 0
    mac: str = ""


class Successor(msgspec.Struct, frozen=True):
    """The linkspan network that takes a bridge network's place: called as that one, with its pools.

    No container gets one of the addresses in ``reserved``: they are other machines'.
    """

    name: str
    pools: tuple[Prefix, ...]
    mtu: int = 0
    masquerade: bool = True
    internal: bool = False
    reserved: tuple[str, ...] = ()

    @property
    def request(self) -> dict[str, object]:
        """Return the request to the agent."""
        return {
            "name": self.name,
            "pools": [str(pool) for pool in self.pools],
            "backend": "bridge",
            "mtu": self.mtu,
            "masquerade": self.masquerade,
            "internal": self.internal,
        }

    def is_made(self, other: Mapping[str, Any] | None) -> bool:
        """Return whether a network, as the agent describes it, is what `request` asks for: by its name and pools."""
        return other is not None and other["name"] == self.name and set(map(prefix, other["pools"])) == {*self.pools}


class Bridge(Protocol):
    """An engine's network, as completely as the engine must be told to create it again."""

    @property
    def name(self) -> str:
        """Return its name."""

    @property
    def driver(self) -> str:
        """Return its driver, `linkspan` if it is linkspan's."""


class Named(Protocol):
    """A container, as the engine describes it."""

    @property
    def id(self) -> str:
        """Return its id."""


B = TypeVar("B", bound=Bridge)
C = TypeVar("C", bound=Named)


class BridgeEngine(ABC, Generic[B, C]):
    """One engine. Calls of the engine raise Unavailable, with the engine's own words, if they fail."""

    name: ClassVar[str]
    """Its name in `linkspan adopt NAME`, and its command."""
    file: ClassVar[str]
    """The record of its adoptions that are not confirmed, in the state folder."""
    bridge: ClassVar[type[Any]]
    """The type that describes its networks, and that the record has."""

    @property
    def called(self) -> str:
        """Return it as sentences name it."""
        return self.name.title()

    @abstractmethod
    async def network(self, name: str) -> B | None:
        """Return a network, None if the engine has none of this name."""

    @abstractmethod
    async def on(self, network: str) -> list[C]:
        """Return the containers that are on a network, also those that do not run."""

    @abstractmethod
    async def container(self, id: str) -> C | None:
        """Return a container, None if it does not exist any more."""

    @abstractmethod
    def attached(self, container: C, network: str) -> Attached | None:
        """Return a container's part of a network, None if it is not on it."""

    @abstractmethod
    async def missing(self) -> Iterable[Left]:
        """Return a reason if the engine finds no linkspan: it would look for it while containers have no network."""

    @abstractmethod
    def successor(self, network: B) -> Successor:
        """Return the linkspan network for a bridge network that is not refused."""

    @abstractmethod
    def refusals(self, network: B, containers: Iterable[C]) -> list[Left]:
        """Return why the network cannot be adopted, a reason for each object that is in the way."""

    @abstractmethod
    def notes(self, network: B, containers: Iterable[C]) -> list[Left]:
        """Return what is different after the adoption."""

    @abstractmethod
    async def create_ours(self, network: B) -> None:
        """Create the network of driver linkspan that takes a bridge network's place."""

    @abstractmethod
    async def create_bridge(self, network: B) -> None:
        """Create the bridge network as it was."""

    @abstractmethod
    async def remove(self, network: B) -> None:
        """Remove a network. Fails while a container is on it."""

    @abstractmethod
    async def disconnect(self, network: B, container: str) -> None:
        """Disconnect a container, whose id is given, whatever the network's driver says."""

    @abstractmethod
    async def connect(self, network: B, container: str, move: Move) -> None:
        """Connect a container, whose id is given."""

    async def forget_removed(self, network: B) -> None:
        """Disconnect removed containers, if the engine remembers them on a network, and refuses to remove it then."""


def gateway_refusals(subnet: str, chosen: str) -> Iterable[tuple[str, str]]:
    """Return why linkspan cannot have a subnet with a chosen gateway ("": none), and what to do."""
    try:
        first = gateway(prefix(subnet), routed=False).address
        other = chosen and prefix(chosen).address != first
    except LinkspanError as error:
        return [(f"subnet {subnet}: {error.message}", error.hint)]
    return [(f"its gateway is {chosen}, and linkspan's is the first address, {first}", "")] if other else []


def haste(network: str, containers: Iterable[Attached]) -> list[Left]:
    """Return a refusal if more containers run on the network than can be moved within a second."""
    many = sum(one.move.running for one in containers)
    if many <= AT_ONCE:
        return []
    why = f"{many} containers run on it, and all would be without it for longer than a second"
    return [Left(f"network {network}", why, "stop some of them first, or give --slow")]
