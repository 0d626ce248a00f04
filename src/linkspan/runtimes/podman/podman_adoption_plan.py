"""Plans of adoptions: what becomes of one of Podman's bridge networks, and why it cannot be adopted.

Pure functions of what Podman says of the network and its containers.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator

import msgspec

from linkspan.core.addresses import prefix
from linkspan.core.ipam import gateway
from linkspan.runtimes.adoption.bridge_engine import OURS, Attached, Move, Successor, gateway_refusals
from linkspan.runtimes.adoption.outcome import Left

MTU = "mtu"
ALIKE = {
    "isolate": ("false",),
    "mode": ("managed",),
}
"""Options of netavark's bridge that a linkspan network has too, with the values that mean what linkspan does."""
DEFAULT = "podman"
"""The network that Podman never removes, unless `default_network` in containers.conf names another one."""
COMPOSE = ("io.podman.compose.project", "com.docker.compose.project")
"""Labels of networks that podman-compose and Docker Compose have created."""
_NUMBERED = re.compile(r"podman[0-9]+")
"""Names of bridges that Podman has chosen itself."""
SHORT_ID = 12
"""Digits of a container's id that Podman adds to its aliases."""
SEARCH = "dns.podman"
"""The domain of names on Podman's own networks."""


class Range(msgspec.Struct, frozen=True):
    """The part of a subnet of which Podman gives addresses."""

    start_ip: str = ""
    end_ip: str = ""


class Subnet(msgspec.Struct, frozen=True):
    """A subnet of a network."""

    subnet: str
    gateway: str = ""
    lease_range: Range | None = None


class Route(msgspec.Struct, frozen=True):
    """A route of `podman network create --route`."""

    destination: str = ""


class Described(msgspec.Struct, frozen=True):
    """A network, as `podman network inspect` shows it."""

    name: str
    driver: str = "bridge"
    network_interface: str = ""
    subnets: tuple[Subnet, ...] = ()
    routes: tuple[Route, ...] = ()
    ipv6_enabled: bool = False
    internal: bool = False
    dns_enabled: bool = False
    network_dns_servers: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    options: dict[str, str] = {}
    ipam_options: dict[str, str] = {}


class Listed(msgspec.Struct, frozen=True, rename="pascal"):
    """A container in Podman's list, with the names of its networks."""

    id: str
    networks: tuple[str, ...] = ()


class Wish(msgspec.Struct, frozen=True):
    """A container's options for one network: what its user chose, and the interface."""

    interface_name: str = ""
    aliases: tuple[str, ...] = ()
    static_ips: tuple[str, ...] = ()
    static_mac: str = ""
    options: dict[str, str] = {}


class Spec(msgspec.Struct, frozen=True):
    """The parts of `podman generate spec` that matter here; its key has an upper-case letter."""

    networks: dict[str, Wish] = msgspec.field(default={}, name="Networks")


class Address(msgspec.Struct, frozen=True, rename="pascal"):
    """A running container's part of a network."""

    ipv4: str = msgspec.field(default="", name="IPAddress")
    ipv6: str = msgspec.field(default="", name="GlobalIPv6Address")
    mac_address: str = ""


class Binding(msgspec.Struct, frozen=True, rename="pascal"):
    """A host port of a container."""

    host_ip: str = ""


class _State(msgspec.Struct, frozen=True, rename="pascal"):
    status: str = ""
    pid: int = 0


class _HostConfig(msgspec.Struct, frozen=True, rename="pascal"):
    port_bindings: dict[str, tuple[Binding, ...]] = {}


class _Settings(msgspec.Struct, frozen=True, rename="pascal"):
    networks: dict[str, Address] = {}


class Inspected(msgspec.Struct, frozen=True, rename="pascal"):
    """A container, as `podman container inspect` shows it."""

    id: str
    name: str
    resolv_conf: str = msgspec.field(default="", name="ResolvConfPath")
    state: _State = _State()
    host_config: _HostConfig = _HostConfig()
    network_settings: _Settings = _Settings()


class Container(msgspec.Struct, frozen=True):
    """A container: what Podman shows of it, and what its user chose, which Podman shows elsewhere."""

    seen: Inspected
    wishes: dict[str, Wish] = {}

    @property
    def id(self) -> str:
        """Return its id."""
        return self.seen.id

    @property
    def called(self) -> str:
        """Return it as errors name it."""
        return f"container {self.seen.name}"

    @property
    def running(self) -> bool:
        """Return whether its processes run."""
        return self.seen.state.status == "running"


def attached(container: Container, network: str) -> Attached | None:
    """Return a container's part of a network: a running one with the addresses and the MAC that it has.

    A stopped one has none but those that its user has chosen. Podman adds the short id as an alias by itself.
    """
    if (wish := container.wishes.get(network)) is None:
        return None
    now = container.seen.network_settings.networks.get(network) or Address()
    ips = tuple(filter(None, (now.ipv4, now.ipv6))) or wish.static_ips
    hardware = now.mac_address or wish.static_mac
    aliases = tuple(alias for alias in wish.aliases if alias != container.id[:SHORT_ID])
    move = Move(container.seen.name, container.running, ips, aliases=aliases, mac=hardware)
    return Attached(container.id, container.id, move, container.seen.state.pid if container.running else 0, hardware)


def connecting(network: str, container: str, move: Move) -> list[str]:
    """Return the words of the command that connects a container."""
    words = ["network", "connect"]
    for ip in move.ips:
        words += ["--ip6" if ":" in ip else "--ip", ip]
    if move.mac:
        words += ["--mac-address", move.mac]
    for alias in move.aliases:
        words += ["--alias", alias]
    return [*words, network, container]


def without_search(conf: str) -> str:
    """Return a container's resolv.conf without Podman's domain: linkspan's server knows no names below it.

    Podman removes it when the container starts again. Until then some resolvers would find no name at all: they
    stop when the server refuses the name with the domain.
    """
    lines = []
    for line in conf.splitlines(keepends=True):
        word, *domains = line.split() or [""]
        if word == "search" and SEARCH in domains:
            left = [domain for domain in domains if domain != SEARCH]
            line = f"search {' '.join(left)}\n" if left else ""
        lines.append(line)
    return "".join(lines)


def successor(network: Described) -> Successor:
    """Return the linkspan network that is called as Podman's. Raises Invalid if a subnet of Podman's is none."""
    pools = tuple(prefix(subnet.subnet) for subnet in network.subnets)
    return Successor(network.name, pools, mtu=int(network.options.get(MTU) or 0), internal=network.internal)


def ours(network: Described) -> list[str]:
    """Return the words of the command that creates Podman's network of driver linkspan, with the same labels."""
    words = ["network", "create", "--driver", OURS, "--ipam-driver", "none", "--opt", f"network={network.name}"]
    return [*words, *_common(network), network.name]


def original(network: Described) -> list[str]:
    """Return the words of the command that creates the bridge network as it was.

    Podman gives its bridge the first number that is free. Another network may have the number that it had.
    """
    words = ["network", "create", "--driver", network.driver]
    for subnet in network.subnets:
        words += ["--subnet", subnet.subnet, *(["--gateway", subnet.gateway] if subnet.gateway else [])]
    for key, value in sorted(network.options.items()):
        words += ["--opt", f"{key}={value}"]
    if not network.dns_enabled:
        words.append("--disable-dns")
    if (name := network.network_interface) and not _NUMBERED.fullmatch(name):
        words += ["--interface-name", name]
    return [*words, *_common(network), network.name]


def _common(network: Described) -> Iterator[str]:
    """Yield the options that both networks have."""
    if network.internal:
        yield "--internal"
    if network.ipv6_enabled:
        yield "--ipv6"
    for key, value in sorted(network.labels.items()):
        yield from ("--label", f"{key}={value}")


def refusals(network: Described, containers: Iterable[Container]) -> list[Left]:
    """Return why the network cannot be adopted, a reason for each object that is in the way."""
    found = [Left(f"network {network.name}", why, fix) for why, fix in _of_network(network)]
    taken = () if found else {gateway(pool, routed=False).address for pool in successor(network).pools}
    for container in containers:
        if (at := attached(container, network.name)) is not None:
            found += [Left(container.called, why, fix) for why, fix in _of_container(container, network.name)]
            found += [Left(container.called, *_of_gateway(ip)) for ip in at.move.ips if ip in taken]
    return found


def _of_network(network: Described) -> Iterator[tuple[str, str]]:
    if network.driver != "bridge":
        yield f"its driver is {network.driver}: only networks of driver bridge can be adopted", "choose another one"
        return
    if network.name == DEFAULT:
        yield (
            "Podman keeps its default network itself, and never removes it",
            "create a network, and connect the containers to it: podman network create",
        )
        return
    if (driver := network.ipam_options.get("driver", "host-local")) != "host-local":
        yield f"IPAM driver {driver} gives its addresses", "only Podman's own (host-local) can be replaced"
    for key, value in sorted(network.options.items()):
        if key != MTU and value not in ALIKE.get(key, ()):
            yield f"option {key}={value} has no equivalent in a linkspan network", "create the network without it"
    if not network.options.get(MTU, "0").isdigit():
        yield f"option {MTU}={network.options[MTU]} is not a number", ""
    for route in network.routes:
        yield f"route {route.destination}: the linkspan network decides on a container's routes", ""
    if servers := ", ".join(network.network_dns_servers):
        why = f"DNS server {servers}: the server of a linkspan network asks those of the host's resolv.conf"
        yield why, f"podman network update {network.name} --dns-drop {servers.replace(' ', '')}"
    if not network.subnets:
        yield "it has no subnet", ""
    for subnet in network.subnets:
        if subnet.lease_range is not None:
            yield f"--ip-range of {subnet.subnet}: a linkspan network gives addresses of its whole pool", ""
        yield from gateway_refusals(subnet.subnet, subnet.gateway)


def _of_gateway(address: str) -> tuple[str, str]:
    """Return the refusal of a container with an address that Podman gives where a network has no gateway."""
    return f"its address {address} is the gateway's in a linkspan network", "connect it with another one (--ip)"


def _of_container(container: Container, network: str) -> Iterator[tuple[str, str]]:
    if container.seen.state.status == "paused":
        yield "it is paused, and Podman then changes no interface", f"podman unpause {container.seen.name}"
    if options := ", ".join(sorted(container.wishes[network].options)):
        yield f"it has options of Podman's bridge driver for this network: {options}", "connect it without them"
    for port, bindings in container.seen.host_config.port_bindings.items():
        if any(binding.host_ip.strip("[]") == "::1" for binding in bindings):
            yield f"port {port} is published at ::1, where linkspan cannot publish", "publish it at 127.0.0.1"


def notes(network: Described, containers: Iterable[Container]) -> list[Left]:
    """Return what is different after the adoption."""
    found = []
    called = f"network {network.name}"
    if (name := network.network_interface) and not _NUMBERED.fullmatch(name):
        why = f"the host's bridge is not called {name} any more"
        found.append(Left(called, why, "change what names it, firewall rules for example"))
    if not network.dns_enabled:
        found.append(Left(called, "it had no DNS server, and linkspan's answers at the gateway"))
    if project := next(filter(None, map(network.labels.get, COMPOSE)), ""):
        why = f"project {project} of Compose goes on, but its `down` removes Podman's network"
        found.append(Left(called, why, "set `external: true` for the network in the compose file"))
    for container in containers:
        if (wish := container.wishes.get(network.name)) is not None:
            others = {one.interface_name for name, one in container.wishes.items() if name != network.name}
            free = next(name for name in map("eth{}".format, itertools.count()) if name not in others)
            if wish.interface_name not in ("", free):
                why = f"its interface {wish.interface_name} becomes {free}: Podman's `network connect` takes no name"
                found.append(Left(container.called, why))
    return found
