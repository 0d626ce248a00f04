"""Defaults of a runtime, and of the service that answers it: each says only what is different.

The command line reads the declarations for its help and for `install`. So a file with a declaration imports only
what is cheap; it imports asyncio, an HTTP client or the agent's parts where it uses them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import msgspec

from linkspan.core.config import Config
from linkspan.core.model import AttachRequest, Endpoint, Network
from linkspan.core.states.programs import File
from linkspan.diagnose.doctor.checks import Check, Checks, Surroundings

if TYPE_CHECKING:
    from linkspan.endpoints.registry import Identity, Registry
    from linkspan.runtimes.adoption.outcome import Adopter, Ask

T = TypeVar("T")

BINARIES = ("/usr/bin", "/usr/sbin", "/usr/local/bin")


def readable_json(value: object) -> bytes:
    """Return JSON as people write it, for a file that a runtime reads."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


class HostAgent(Protocol):
    """The agent as plugins' calls need it. Every method may raise LinkspanError."""

    async def attach(self, request: AttachRequest, namespace_fd: int, namespace_path: str) -> Endpoint:
        """Attach; the caller closes the descriptor afterwards. NotFound means that the namespace is gone."""

    async def detach(self, id: str, ifname: str = "", network: str = "") -> int:
        """Detach the endpoints with this id, interface and network; return how many there were."""

    async def recognise(self, container: str, ifname: str = "") -> None:
        """Identify a container whose id was lost."""

    def endpoints(self) -> Mapping[tuple[str, str], Endpoint]:
        """Return the endpoints by (id, ifname)."""

    def nameservers(self, endpoint: Endpoint) -> tuple[str, ...]:
        """Return the addresses of the DNS server of the container's network, none if it has none."""

    def network(self, name: str) -> Network:
        """Return a network; raises NotFound."""

    async def with_news(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call, and once more if it misses a record that another host has just written."""

    async def check(self, endpoint: Endpoint, namespace_fd: int, hardware: str, mtu: int) -> list[str]:
        """Compare the machine with the endpoint, and return the differences, a sentence each.

        ``hardware`` and ``mtu`` are what the caller's result says of its interface; "" and 0 if it says nothing.
        """

    def free(self, network: str) -> int:
        """Return how many containers the network still has addresses for."""


class Listening(msgspec.Struct, frozen=True):
    """A unix socket at which an engine calls the agent, besides the agent's own.

    ``path`` is where the engine looks for it. systemd listens there by the unit file ``unit``, and passes the socket
    with the name ``handed``. ``setting`` is the agent's setting with a path, for a machine without systemd.
    """

    path: str
    unit: str
    handed: str
    setting: str


class Site(msgspec.Struct, frozen=True):
    """Place of the files that `install` writes: below ``root``, for the agent at ``socket``.

    ``python`` is the interpreter of the plugin, "" for a runtime without one (``path``), and ``network`` is "" unless
    the runtime's files are for one network.
    """

    root: Path
    socket: str
    python: str
    network: str = ""


class Service:
    """One runtime, as the agent of a host serves it."""

    @property
    def problems(self) -> Iterable[str]:
        """Return sentences for `status`: what this runtime refuses now."""
        return ()

    async def answer(self, path: str, body: bytes, pid: int, uid: int) -> tuple[int, bytes]:
        """Answer a POST of the process with this pid and user id: HTTP status and body. Never raises an Exception."""
        raise NotImplementedError

    async def start(self) -> None:
        """Start tasks: records and endpoints are there."""

    async def stop(self) -> None:
        """Stop them: nobody calls any more."""

    async def retire(self) -> None:
        """Make nothing in the engine any more, and still answer it: linkspan is about to be removed."""

    def look(self) -> None:
        """Networks have changed."""

    def waits(self, identity: Identity) -> bool:  # noqa: ARG002 - a default
        """Return whether addresses are kept under this identity, for an endpoint that comes."""
        return False


class BaseRuntime:
    """One runtime: how it calls the agent, and what linkspan puts on a machine for it."""

    name: str
    """Its name in `--expose`, `install NAME` and an endpoint's ``engine``: lower case."""
    path: str = ""
    """Path on the agent's socket to which its plugin posts; "" if it has none."""
    listens: Listening | None = None
    content_type: str = "application/json"
    installs: str
    """Help of `install NAME`."""
    for_one_network: bool = False
    """Whether what is installed names a network (`install NAME --network N`)."""
    inspects: bool = False
    """Whether its command NAME has `inspect`, as docker does: `attach NAME:CONTAINER` asks it."""
    checks: Checks = ()
    """Checks of `doctor`: whether it finds linkspan."""
    adopts: str = ""
    """Help of `adopt NAME`; "" if existing networks of the runtime cannot be taken over."""

    def serve(self, agent: HostAgent, registry: Registry, config: Config) -> Service:
        """Return the service. No endpoint is known yet."""
        raise NotImplementedError

    def files(self, site: Site) -> Iterable[File]:
        """Return the files of `install NAME`, in the order in which they are written. `uninstall` removes them."""
        raise NotImplementedError

    def note(self, files: Sequence[Path]) -> str:  # noqa: ARG002 - a default
        """Return what a user should know after these files were installed, "" if nothing."""
        return ""

    def check(self, network: Network) -> None:
        """Raise Invalid if the network cannot be exposed to it."""

    def exposing(self, network: Network, config: Config) -> Iterable[File]:  # noqa: ARG002 - a default
        """Return the files by which it has an exposed network on this host."""
        return ()

    def users(self, config: Config) -> list[tuple[str, str]]:  # noqa: ARG002 - a default
        """Return users' own networks of driver linkspan, each with the command that removes it.

        Without linkspan no engine could remove them, nor their containers without long timeouts.
        """
        return []

    def withdraw(self, config: Config) -> tuple[list[str], list[str]]:  # noqa: ARG002 - a default
        """Remove exposed networks that are no files; return them, and what is left with the reason.

        `uninstall` calls this while the agent still answers.
        """
        return [], []

    def adopter(self, config: Config, ask: Ask) -> Adopter:
        """Return what takes over its networks on this host, if it ``adopts``; ``ask`` calls the agent."""
        raise NotImplementedError

    def not_set_up(self, around: Surroundings, detail: str) -> Check:
        """Return a failed check if a network is exposed to this runtime, else a skipped one."""
        fix = f"linkspan install {self.name}"
        if exposed := ", ".join(network.name for network in around.networks if self.name in network.expose):
            return Check(self.name.title(), "fail", f"{detail}, and {exposed} is exposed to it", fix)
        return Check(self.name.title(), "skip", f"installed, and not set up for linkspan: {detail}", fix)


def is_installed(around: Surroundings, program: str) -> bool:
    """Return whether the machine has a program."""
    return any(around.file(f"{folder}/{program}").exists() for folder in BINARIES)
