"""Docker: its engine calls the agent at a socket of its own, and keeps its networks itself."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from linkspan.core.config import Config
from linkspan.core.errors import Invalid, LinkspanError
from linkspan.core.model import Network
from linkspan.core.states.programs import File
from linkspan.diagnose.doctor.checks import Check, Surroundings
from linkspan.runtimes import systemd
from linkspan.runtimes.base import BaseRuntime, HostAgent, Listening, Service, Site, is_installed

if TYPE_CHECKING:
    from linkspan.diagnose.trace.kernel_view import KernelView
    from linkspan.endpoints.registry import Registry
    from linkspan.runtimes.adoption.outcome import Adopter, Ask

LISTENING = Listening(
    path="/run/docker/plugins/linkspan.sock",  # moby, pkg/plugins
    unit="linkspan-docker.socket",
    handed="docker",
    setting="docker_socket",
)
UNIT = f"""\
[Unit]
Description=linkspan's socket for Docker's engine
Before=docker.service {systemd.UNIT_NAME}

[Socket]
ListenStream={LISTENING.path}
FileDescriptorName={LISTENING.handed}
SocketMode=0600
Service={systemd.UNIT_NAME}

[Install]
WantedBy=sockets.target
"""
"""The socket, at which the engine waits while the agent starts."""


def found(_asked: KernelView, around: Surroundings) -> Iterator[Check]:
    """Yield whether somebody listens at the socket that Docker's engine calls."""
    if not is_installed(around, "dockerd"):
        return
    path = around.file(LISTENING.path)
    if not path.exists():
        yield RUNTIME.not_set_up(around, f"{path} is missing")
        return
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(5)
        try:
            caller.connect(str(path))
        except OSError as error:
            fix = f"systemctl restart {LISTENING.unit} linkspan (without systemd: restart the agent)"
            yield Check("Docker", "fail", f"nobody answers at {path}: {error.strerror or error}", fix)
            return
    yield Check("Docker", "ok", f"the engine finds linkspan at {path}")


class DockerRuntime(BaseRuntime):
    """Docker's engine."""

    name = "docker"
    listens = LISTENING
    content_type = "application/vnd.docker.plugins.v1.2+json"
    installs = """Install the socket at which Docker's engine finds linkspan, before the agent is up.

    This restarts the agent; running containers are not affected.
    """
    inspects = True
    adopts = """Take over a bridge network of Docker's, with its addresses, published ports and containers.

    The network keeps its name, and each container its address. All running containers are without the network for
    as long as it takes to connect them again. `--undo` gives the network back, until `--confirm`.
    """
    checks = (("Docker", found),)

    def serve(self, agent: HostAgent, registry: Registry, config: Config) -> Service:  # noqa: ARG002 - it needs more
        """Return the service. It makes endpoints itself: the agent learns only afterwards whose they are."""
        from linkspan.runtimes.docker.docker_driver import Docker

        return Docker(registry, config.docker_api, Path(config.state_dir) / "docker.json")

    def files(self, site: Site) -> Iterable[File]:
        """Return the unit of the socket, which exists before the agent starts."""
        yield File(str(site.root / systemd.UNITS / LISTENING.unit), UNIT.encode())

    def check(self, network: Network) -> None:
        """Raise Invalid for a network without an IPv4 pool."""
        if not any(pool.family == 4 for pool in network.prefixes):
            raise Invalid(
                f"network {network.name} cannot be exposed to Docker without an IPv4 pool",
                "Docker asks for an IPv4 address for every container: give a second --pool, or leave docker out",
            )

    def users(self, config: Config) -> list[tuple[str, str]]:
        """Return users' own networks of driver linkspan, as the engine knows them; none if it is down."""
        import asyncio

        from linkspan.runtimes.adoption.bridge_adopter import adopted
        from linkspan.runtimes.docker.docker_adoption import DockerBridges
        from linkspan.runtimes.docker.docker_engine import Engine
        from linkspan.runtimes.docker.docker_networks import users_own

        if not config.docker_api or not Path(config.docker_api).exists():
            return []
        try:
            owned = asyncio.run(users_own(Engine(config.docker_api)))
        except LinkspanError:  # an engine that is down does not answer
            return []
        back = adopted(DockerBridges.file, Path(config.state_dir))
        removals = {name: f"docker rm -f {' '.join(members)}; " if members else "" for name, members in owned.items()}
        return [
            (
                f"Docker network {name}",
                f"linkspan adopt docker {name} --undo" if name in back else f"{first}docker network rm {name}",
            )
            for name, first in removals.items()
        ]

    def withdraw(self, config: Config) -> tuple[list[str], list[str]]:
        """Remove the exposed networks from the engine, which calls the agent for each."""
        import asyncio

        from linkspan.runtimes.docker.docker_engine import Engine
        from linkspan.runtimes.docker.docker_networks import remove_exposed

        return asyncio.run(remove_exposed(Engine(config.docker_api)))

    def adopter(self, config: Config, ask: Ask) -> Adopter:
        """Return what takes over the engine's bridge networks. Raises Invalid without an engine's socket."""
        if not config.docker_api:
            raise Invalid("setting docker_api is empty, so linkspan cannot ask Docker's engine", "set it, or --config")
        from linkspan.runtimes.adoption.bridge_adopter import BridgeAdopter
        from linkspan.runtimes.docker.docker_adoption import DockerBridges
        from linkspan.runtimes.docker.docker_engine import Engine

        engine = DockerBridges(Engine(config.docker_api), Path(LISTENING.path))
        return BridgeAdopter(engine, Path(config.state_dir), ask)


RUNTIME = DockerRuntime()
