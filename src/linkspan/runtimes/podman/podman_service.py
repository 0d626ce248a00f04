r"""Answers to calls of the netavark plugin, by which Podman has linkspan networks (plugin API 1.0.0).

The plugin sends ``KEY=VALUE\0...\0\0`` and then its stdin, as the CNI plugin does. The answer's status is 200
or 400, and its body is what the plugin prints: for an error ``{"error": "..."}``, which Podman shows
unchanged.

Podman gives all of a container's ports to each of its networks, in no fixed order, and does not name the
others. So an internal network, which publishes none, cannot refuse them: another network of the container may
publish them later. When netavark, the plugin's parent, has ended, it is known which ports were not published
at all. The agent reports those as an event.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import msgspec

from linkspan import __version__
from linkspan.core.addresses import mac, mac_text, prefix
from linkspan.core.errors import Denied, Invalid, LinkspanError, Unavailable
from linkspan.core.event_log import Once
from linkspan.core.model import ALIASES, AttachRequest, Endpoint, Network, Port, Protocol
from linkspan.core.supervise import woken
from linkspan.endpoints import update
from linkspan.kernel.io.namespaces import open_namespace
from linkspan.kernel.io.process_stat import parent
from linkspan.runtimes import go_json, wishes
from linkspan.runtimes.base import HostAgent, Service
from linkspan.runtimes.podman import podman_labels

if TYPE_CHECKING:
    from linkspan.core.event_log import EventLog

log = logging.getLogger("linkspan.podman")

API_VERSION = "1.0.0"
PATIENCE = 60.0
"""Seconds that netavark may take for all networks of a container."""
T = TypeVar("T")
PROTOCOLS: dict[str, Protocol] = {"tcp": "tcp", "udp": "udp", "sctp": "sctp"}


class PortMapping(msgspec.Struct, frozen=True):
    """A published port, or ``range`` of them."""

    container_port: int
    host_port: int
    host_ip: str = ""
    protocol: str = "tcp"
    range: int = 1


class StaticRoute(msgspec.Struct, frozen=True):
    """A route of `podman network create --route`."""

    destination: str = ""
    gateway: str = ""


class PodmanNetwork(msgspec.Struct, frozen=True):
    """The parts of Podman's network that matter here, or would have no effect."""

    name: str
    options: dict[str, str] | None = None
    ipam_options: dict[str, str] | None = None
    internal: bool = False
    ipv6_enabled: bool = False
    network_interface: str = ""
    routes: tuple[StaticRoute, ...] = ()
    network_dns_servers: tuple[str, ...] = ()

    @property
    def linkspan(self) -> str:
        """Return the linkspan network's name: the option ``network``, or the same name."""
        return (self.options or {}).get("network") or self.name


class NetworkOptions(msgspec.Struct, frozen=True):
    """A container's options for its network."""

    interface_name: str
    aliases: tuple[str, ...] | None = None
    static_ips: tuple[str, ...] | None = None
    static_mac: str | None = None
    options: dict[str, str] | None = None


class Call(msgspec.Struct, frozen=True):
    """The stdin of setup and teardown."""

    container_id: str
    network: PodmanNetwork
    network_options: NetworkOptions
    container_name: str = ""
    port_mappings: tuple[PortMapping, ...] | None = None


class Podman(Service):
    """Answers calls of the plugin."""

    def __init__(self, agent: HostAgent, event_log: EventLog) -> None:
        self._agent = agent
        self._event_log = event_log
        self._tasks: set[asyncio.Task[None]] = set()
        self._unread = Once()

    async def answer(self, path: str, body: bytes, pid: int, uid: int) -> tuple[int, bytes]:  # noqa: ARG002 - only one
        """Answer a call of the plugin."""
        block, _, stdin = body.partition(b"\0\0")
        try:
            if uid:
                raise Denied(f"user {uid} may not change networks", "run podman as root")
            return 200, await self._agent.with_news(lambda: self._answer(_pairs(block), stdin, pid))
        except LinkspanError as error:
            said = error.told
        except Exception as error:  # the edge: Podman always gets an error
            log.exception("a call of Podman failed because of a defect in linkspan")
            said = f"a defect in linkspan, the agent's log has the traceback: {error}"
        return 400, msgspec.json.encode({"error": f"linkspan: {said}"})

    async def _answer(self, words: Mapping[str, str], stdin: bytes, pid: int) -> bytes:
        match words.get("COMMAND"):
            case "info":
                return msgspec.json.encode({"version": __version__, "api_version": API_VERSION})
            case "create":
                self._check(_decoded(stdin, PodmanNetwork))
                return stdin
            case "setup":
                return msgspec.json.encode(await self._setup(words, _decoded(stdin, Call), pid))
            case "teardown":
                call = _decoded(stdin, Call)
                ifname = call.network_options.interface_name
                await self._agent.detach(call.container_id, ifname, call.network.linkspan)
                return b""
            case other:
                raise Invalid(f"command {other!r} is unknown", "is Podman's netavark another version?")

    def _check(self, made: PodmanNetwork) -> None:
        wishes.check_options(made.options or {})
        network = self._agent.network(made.linkspan)
        if network.on_host:
            raise Invalid(f"network {network.name} shares the host's network", "podman run --network host does that")
        if (made.ipam_options or {}).get("driver") != "none":
            raise Invalid(
                "driver linkspan gives the addresses itself",
                f"podman network create -d linkspan --ipam-driver none --opt network={network.name} {made.name}",
            )
        _check_wishes(network, made)

    async def _setup(self, words: Mapping[str, str], call: Call, pid: int) -> dict[str, object]:
        if "LINKSPAN_NETNS_FD" not in words:
            why = words.get("LINKSPAN_NETNS_ERROR", "it was not given")
            raise Unavailable(f"network namespace {words.get('NETNS', '')}: {why}", "is the container running?")
        # `network update` does not inform the plugin
        _check_wishes(self._agent.network(call.network.linkspan), call.network)
        labels = await self._labels(call, pid)
        fd = open_namespace(f"/proc/{pid}/fd/{words['LINKSPAN_NETNS_FD']}")
        try:
            endpoint = await self._agent.attach(self._request(call, labels), fd, words.get("NETNS", ""))
        finally:
            os.close(fd)
        if (wanted := _published(call)) and not endpoint.ports:
            netavark = _open_parent(pid)  # now: the plugin ends with this answer
            task = asyncio.create_task(self._tell_unpublished(netavark, call.container_id, wanted))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return _result(endpoint, self._agent.nameservers(endpoint))

    async def _labels(self, call: Call, plugin: int) -> dict[str, str]:
        """Return the labels that the container has from its user: none, with an event, if they cannot be read."""
        try:
            return update.labels_of_user(await asyncio.to_thread(podman_labels.labels, plugin, call.container_id))
        except Unavailable as error:
            if self._unread.first(error.message):  # an old Podman says the same of each container
                name = call.container_name or call.container_id
                fix = f"set them by linkspan endpoint label {name} KEY=VALUE"
                what = f"{name} has none of its labels here: {error.message}; {fix}"
                log.warning("%s", what)
                self._event_log.add("network", what, endpoint=call.container_id, network=call.network.linkspan)
            return {}

    def _request(self, call: Call, labels: Mapping[str, str]) -> AttachRequest:
        wish = call.network_options
        aliases = tuple(dict.fromkeys(a for a in wish.aliases or () if a != call.container_id[:12]))
        return AttachRequest(
            id=call.container_id,
            network=call.network.linkspan,
            ifname=wish.interface_name,
            name=call.container_name,
            ips=tuple(prefix(text).address for text in wish.static_ips or ()),
            mac=mac_text(mac(wish.static_mac)) if wish.static_mac else "",
            ports=self._ports(call),
            ports_bound=True,
            bandwidth=wishes.limits(wish.options or {}),
            engine="podman",
            labels={**labels, ALIASES: ",".join(aliases)} if aliases else dict(labels),
        )

    def _ports(self, call: Call) -> tuple[Port, ...]:
        """Return the ports that this network publishes: none if it is internal."""
        return () if self._agent.network(call.network.linkspan).internal else _published(call)

    async def _tell_unpublished(self, netavark: int, container: str, wanted: Sequence[Port]) -> None:
        """Report a container whose ports no network of ours publishes, because all its networks are internal."""
        await _ended(netavark)
        mine = [e for e in self._agent.endpoints().values() if e.id == container]
        try:
            hidden = all(self._agent.network(e.network).internal for e in mine)
        except LinkspanError:  # a network was deleted meanwhile, with its endpoints
            return
        if not mine or not hidden:
            return
        ports = ", ".join(f"{port.port}/{port.protocol}" for port in wanted)
        why = ", ".join(f"network {name} is internal" for name in sorted(e.network for e in mine))
        what = f"port {ports} of {mine[0].called} is not published by linkspan: {why}"
        log.warning("%s", what)
        self._event_log.add("network", what, endpoint=container, network=mine[0].network)


def _open_parent(pid: int) -> int:
    """Return a pidfd of a process's parent, -1 if either is gone."""
    try:
        return os.pidfd_open(parent(pid))
    except OSError:
        return -1


async def _ended(pidfd: int) -> None:
    """Wait until a process has ended, at most PATIENCE, and close its pidfd; -1 has ended already."""
    if pidfd < 0:
        return
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    try:
        await woken(ended, PATIENCE)
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


def _published(call: Call) -> tuple[Port, ...]:
    found: list[Port] = []
    for one in call.port_mappings or ():
        for protocol in one.protocol.split(","):
            if protocol not in PROTOCOLS:
                raise Invalid(f"protocol {protocol!r} cannot be published", "use tcp, udp or sctp")
            for n in range(max(one.range, 1)):
                found.append(Port(one.host_ip, one.host_port + n, one.container_port + n, PROTOCOLS[protocol]))
    return tuple(dict.fromkeys(found))


def _check_wishes(network: Network, made: PodmanNetwork) -> None:
    """Raise Invalid if Podman's network asks for something that the linkspan network is not."""
    name = network.name
    wishes.check(
        network, internal="--internal" if made.internal else "", ipv6="--ipv6" if made.ipv6_enabled else ""
    )
    if made.routes:
        routes = ", ".join(f"{route.destination} via {route.gateway}" for route in made.routes)
        raise Invalid(
            f"--route ({routes}) is unknown to driver linkspan",
            "the network decides on a container's routes: leave the option out",
        )
    if made.network_interface:
        raise Invalid(
            f"--interface-name {made.network_interface} is unknown to driver linkspan",
            "linkspan names its bridge itself; a container's own: podman run --network NAME:interface_name=net0",
        )
    if made.network_dns_servers:
        servers = " ".join(made.network_dns_servers)
        raise Invalid(
            f"DNS server {servers} of Podman's network {made.name} would have no effect: the server of network {name} "
            "asks those of the host's resolv.conf",
            f"leave --dns out, or unset it: podman network update {made.name} --dns-drop "
            + ",".join(made.network_dns_servers),
        )


def _pairs(block: bytes) -> dict[str, str]:
    words = (item.partition(b"=") for item in block.split(b"\0") if item)
    return {k.decode(errors="replace"): v.decode(errors="surrogateescape") for k, _, v in words}


def _decoded(stdin: bytes, kind: type[T]) -> T:
    try:
        return go_json.decoded(stdin, kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"Podman's call cannot be read: {error}", "is its netavark another version?") from error


def _result(endpoint: Endpoint, nameservers: tuple[str, ...]) -> dict[str, object]:
    """Return the status block of an interface (netavark's StatusBlock)."""
    gateways = {prefix(text).family: prefix(text).address for text in endpoint.gateways}
    subnets = [
        {"ipnet": str(address), "gateway": gateways.get(address.family, "")} for address in endpoint.prefixes
    ]
    interface = {"mac_address": endpoint.mac, "subnets": subnets}
    return {"dns_search_domains": [], "dns_server_ips": nameservers, "interfaces": {endpoint.ifname: interface}}
