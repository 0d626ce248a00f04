"""Plans of adoptions: what becomes of one of Docker's bridge networks, and why it cannot be adopted.

Pure functions of what the engine says of the network and its containers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from linkspan.core.addresses import prefix
from linkspan.runtimes.adoption.bridge_engine import OURS, Move, Successor, gateway_refusals
from linkspan.runtimes.adoption.outcome import Left

_BRIDGE = "com.docker.network.bridge."
MTU = "com.docker.network.driver.mtu"
MASQUERADE = f"{_BRIDGE}enable_ip_masquerade"
BRIDGE_NAME = f"{_BRIDGE}name"
DEFAULT = f"{_BRIDGE}default_bridge"
TRUE = ("1", "t", "T", "TRUE", "true", "True")
FALSE = ("0", "f", "F", "FALSE", "false", "False")
"""The words that Docker takes for a truth value (Go's strconv.ParseBool)."""
ALIKE = {
    f"{_BRIDGE}enable_icc": ("true",),
    f"{_BRIDGE}host_binding_ipv4": ("0.0.0.0", ""),
    f"{_BRIDGE}gateway_mode_ipv4": ("nat",),
    f"{_BRIDGE}gateway_mode_ipv6": ("nat",),
    DEFAULT: ("false",),
}
"""Options of Docker's bridge that a linkspan network has too, with the values that mean what linkspan does."""
COMPOSE = "com.docker.compose.project"
SWARM = "com.docker.swarm.task.id"


class Subnet(msgspec.Struct, frozen=True, rename="pascal", omit_defaults=True):
    """A subnet of a network, as the engine tells it and takes it."""

    subnet: str = ""
    ip_range: str = msgspec.field(default="", name="IPRange")
    gateway: str = ""
    auxiliary: dict[str, str] | None = msgspec.field(default=None, name="AuxiliaryAddresses")


class Ipam(msgspec.Struct, frozen=True, rename="pascal"):
    """The IPAM driver of a network, and its subnets."""

    driver: str = "default"
    options: dict[str, str] | None = None
    config: tuple[Subnet, ...] | None = None


class Described(msgspec.Struct, frozen=True, rename="pascal"):
    """A network, as completely as the engine must be told to create it again."""

    name: str
    id: str = ""
    driver: str = "bridge"
    scope: str = "local"
    internal: bool = False
    attachable: bool = False
    ingress: bool = False
    config_only: bool = False
    config_from: dict[str, str] | None = None
    ipv4: bool = msgspec.field(default=True, name="EnableIPv4")
    ipv6: bool = msgspec.field(default=False, name="EnableIPv6")
    ipam: Ipam = msgspec.field(default=Ipam(), name="IPAM")
    options: dict[str, str] | None = None
    labels: dict[str, str] | None = None

    @property
    def subnets(self) -> tuple[Subnet, ...]:
        """Return its subnets."""
        return self.ipam.config or ()


class Fixed(msgspec.Struct, frozen=True, rename="pascal"):
    """Addresses that a user has chosen for a container."""

    ipv4: str = msgspec.field(default="", name="IPv4Address")
    ipv6: str = msgspec.field(default="", name="IPv6Address")
    link_local: tuple[str, ...] | None = msgspec.field(default=None, name="LinkLocalIPs")


class Attachment(msgspec.Struct, frozen=True, rename="pascal"):
    """A container's part of a network; it has an address while the container runs."""

    fixed: Fixed | None = msgspec.field(default=None, name="IPAMConfig")
    links: tuple[str, ...] | None = None
    aliases: tuple[str, ...] | None = None
    driver_opts: dict[str, str] | None = None
    endpoint_id: str = msgspec.field(default="", name="EndpointID")
    ipv4: str = msgspec.field(default="", name="IPAddress")
    ipv6: str = msgspec.field(default="", name="GlobalIPv6Address")
    mac_address: str = ""


class Binding(msgspec.Struct, frozen=True, rename="pascal"):
    """A host port of a container, as its user wished it, or as the engine chose it."""

    host_ip: str = ""
    host_port: str = ""


Ports = dict[str, tuple[Binding, ...] | None]


class _State(msgspec.Struct, frozen=True, rename="pascal"):
    running: bool = False
    pid: int = 0


class _HostConfig(msgspec.Struct, frozen=True, rename="pascal"):
    port_bindings: Ports | None = None


class _Config(msgspec.Struct, frozen=True, rename="pascal"):
    labels: dict[str, str] | None = None
    mac_address: str = ""


class _Settings(msgspec.Struct, frozen=True, rename="pascal"):
    networks: dict[str, Attachment] | None = None
    ports: Ports | None = None


class Container(msgspec.Struct, frozen=True, rename="pascal"):
    """A container, as the engine describes it."""

    id: str
    name: str
    state: _State = _State()
    config: _Config = _Config()
    host_config: _HostConfig = _HostConfig()
    network_settings: _Settings = _Settings()

    @property
    def called(self) -> str:
        """Return it as errors name it."""
        return f"container {self.name.lstrip('/')}"

    def on(self, network: str) -> Attachment | None:
        """Return its part of a network, None if it is not on it."""
        return (self.network_settings.networks or {}).get(network)


def move(container: Container, at: Attachment) -> Move:
    """Return how a container is connected again: a running one with the addresses that it has.

    A stopped one has none but those that its user has chosen. The engine adds the short id as an alias by itself.
    """
    fixed = at.fixed or Fixed()
    ips = (at.ipv4 or fixed.ipv4, at.ipv6 or fixed.ipv6)
    return Move(
        name=container.name.lstrip("/"),
        running=container.state.running,
        ips=tuple(filter(None, ips)),
        links=at.links or (),
        aliases=tuple(alias for alias in at.aliases or () if not container.id.startswith(alias)),
    )


def endpoint(move: Move) -> dict[str, object]:
    """Return the EndpointConfig of the request to connect a container."""
    config = {f"IPv{prefix(ip).family}Address": ip for ip in move.ips}
    return {"IPAMConfig": config, "Links": list(move.links), "Aliases": list(move.aliases)}


def successor(network: Described) -> Successor:
    """Return the linkspan network that is called as Docker's. Raises Invalid if a subnet of the engine's is none."""
    options = network.options or {}
    return Successor(
        network.name,
        tuple(prefix(subnet.subnet) for subnet in network.subnets),
        mtu=int(options.get(MTU) or 0),
        masquerade=options.get(MASQUERADE, "true") in TRUE,
        internal=network.internal,
        reserved=tuple(address for subnet in network.subnets for address in (subnet.auxiliary or {}).values()),
    )


def ours(network: Described) -> dict[str, object]:
    """Return the request for Docker's network of driver linkspan. Its labels are those that Compose looks for."""
    return {
        "Name": network.name,
        "CheckDuplicate": True,
        "Driver": OURS,
        "Internal": network.internal,
        "Attachable": network.attachable,
        "EnableIPv6": network.ipv6,
        "IPAM": {
            "Driver": OURS,
            "Options": {"network": network.name},
            "Config": [{"Subnet": subnet.subnet} for subnet in network.subnets],
        },
        "Options": {"network": network.name},
        "Labels": network.labels or {},
    }


def original(network: Described) -> dict[str, object]:
    """Return the request for the bridge network as it was."""
    return {
        "Name": network.name,
        "CheckDuplicate": True,
        "Driver": network.driver,
        "Internal": network.internal,
        "Attachable": network.attachable,
        "EnableIPv6": network.ipv6,
        "IPAM": msgspec.to_builtins(network.ipam),
        "Options": network.options or {},
        "Labels": network.labels or {},
    }


def refusals(network: Described, containers: Iterable[Container]) -> list[Left]:
    """Return why the network cannot be adopted, a reason for each object that is in the way."""
    called = f"network {network.name}"
    found = [Left(called, why, fix) for why, fix in _of_network(network)]
    for container in containers:
        if (at := container.on(network.name)) is not None:
            found += [Left(container.called, why, fix) for why, fix in _of_container(container, at)]
    return found


def _of_network(network: Described) -> Iterator[tuple[str, str]]:
    options = network.options or {}
    if network.driver != "bridge":
        yield f"its driver is {network.driver}: only networks of driver bridge can be adopted", "choose another one"
        return
    if network.name == "bridge" or options.get(DEFAULT) == "true":
        yield (
            "Docker keeps its default network itself, and never removes it",
            "create a network, and connect the containers to it: docker network create",
        )
        return
    if network.scope != "local" or network.ingress or network.config_only or (network.config_from or {}).get("Network"):
        yield "it is a network of a swarm, or made from one", "choose a network of this engine alone"
    if not network.ipv4 or not any(":" not in subnet.subnet for subnet in network.subnets):
        yield "it has no IPv4 subnet, and Docker asks driver linkspan for an IPv4 address for every container", ""
    if network.ipam.driver != "default" or network.ipam.options:
        yield f"IPAM driver {network.ipam.driver} with its options gives its addresses", "only Docker's default can"
    for key, value in sorted(options.items()):
        if key in (MTU, MASQUERADE, BRIDGE_NAME) or value in ALIKE.get(key, ()):
            continue
        yield f"option {key}={value} has no equivalent in a linkspan network", "create the network without it"
    if options.get(MASQUERADE, "true") not in TRUE + FALSE:
        yield f"option {MASQUERADE}={options[MASQUERADE]} is neither true nor false", ""
    if not options.get(MTU, "0").isdigit():
        yield f"option {MTU}={options[MTU]} is not a number", ""
    for subnet in network.subnets:
        yield from _of_subnet(subnet)


def _of_subnet(subnet: Subnet) -> Iterator[tuple[str, str]]:
    if subnet.ip_range:
        yield f"--ip-range {subnet.ip_range}: a linkspan network gives addresses of its whole pool", ""
    yield from gateway_refusals(subnet.subnet, subnet.gateway)


def _of_container(container: Container, at: Attachment) -> Iterator[tuple[str, str]]:
    labels = container.config.labels or {}
    if SWARM in labels:
        yield "a swarm manages it", "remove its service first"
    if options := ", ".join(sorted(at.driver_opts or {})):
        yield f"it has options of Docker's bridge driver for this network: {options}", "connect it without driver-opt"
    if (at.fixed or Fixed()).link_local:
        yield "it has a link-local address, which linkspan's guard drops", "connect it without --link-local-ip"
    for port, bindings in (container.host_config.port_bindings or {}).items():
        if any(binding.host_ip.strip("[]") == "::1" for binding in bindings or ()):
            yield f"port {port} is published at ::1, where linkspan cannot publish", "publish it at 127.0.0.1"


def notes(network: Described, containers: Iterable[Container]) -> list[Left]:
    """Return what is different after the adoption."""
    found = []
    called, options, labels = f"network {network.name}", network.options or {}, network.labels or {}
    if name := options.get(BRIDGE_NAME):
        why = f"the host's bridge is not called {name} any more"
        found.append(Left(called, why, "change what names it, firewall rules for example"))
    if project := labels.get(COMPOSE):
        why = f"project {project} of Docker Compose goes on, but `docker compose down` removes Docker's network"
        fix = "set `external: true` for the network in the compose file; otherwise `up` makes a bridge again"
        found.append(Left(called, why, fix))
    for container in containers:
        if container.on(network.name) is not None:
            found += [Left(container.called, why, fix) for why, fix in _different(container)]
    return found


def _different(container: Container) -> Iterator[tuple[str, str]]:
    for port, bindings in sorted((container.host_config.port_bindings or {}).items()):
        if container.state.running and any(not _is_one(binding.host_port) for binding in bindings or ()):
            chosen = (container.network_settings.ports or {}).get(port) or ()
            before = ", ".join(sorted({one.host_port for one in chosen})) or "none"
            yield (
                f"Docker chose the host port of {port} (now {before}), and linkspan may choose another one",
                "`linkspan endpoint list` shows it",
            )
    if len(container.network_settings.networks or {}) > 1:
        why = "a `--gw-priority` of it for this network (Docker 28 and later) is not kept: linkspan does not see it"
        yield why, "give it again: `docker network disconnect`, then `docker network connect --gw-priority`"
    if container.config.mac_address:
        yield f"its MAC {container.config.mac_address} is not kept: Docker's `network connect` takes none", ""


def _is_one(host_port: str) -> bool:
    """Return whether a user chose one port, and neither a range nor any."""
    return host_port.isdigit() and host_port != "0"
