"""Messages between Docker's engine and a remote driver, as frozen values (moby's drivers/remote/api).

The engine's JSON has capitalised names, and calls of one shape for many verbs: fields that a call does not
have are empty.
"""

from __future__ import annotations

import msgspec

from linkspan.core.errors import Invalid
from linkspan.core.model import Port, PortRange, Protocol
from linkspan.core.ports import joined_sources
from linkspan.runtimes import go_json

SPACE = "linkspan"
"""Our address space: it marks CreateNetwork's pools as our IPAM driver's."""
NETWORK_DRIVER = "NetworkDriver"
IPAM_DRIVER = "IpamDriver"

GENERIC = "com.docker.network.generic"
"""Key of the options that `docker network create` got by -o."""
INTERNAL = "com.docker.network.internal"
"""Whether `docker network create` was given --internal."""
ENABLE_IPV4 = "com.docker.network.enable_ipv4"
"""False where `docker network create` was given --ipv4=false."""
NETWORK_OPTIONS = frozenset({GENERIC, INTERNAL, ENABLE_IPV4, "com.docker.network.enable_ipv6"})
"""An engine's options of a new network; its pools also show whether it has IPv6."""
PORT_MAP = "com.docker.network.portmap"
IFNAME = "com.docker.network.endpoint.ifname"
"""The user's name for an interface, which drivers implement, not the engine."""
FROM = "linkspan.from"
"""A container's option (driver-opt) that names the clients of its published ports, and the label that remembers it."""
ADDRESS_TYPE = "RequestAddressType"
GATEWAY = "com.docker.network.gateway"

_PROTOCOLS: dict[int, Protocol] = {6: "tcp", 17: "udp", 132: "sctp"}  # IANA's protocol numbers
EPHEMERAL = (32768, 60999)
"""Range in which `-p 80` finds a host port: the kernel's default (ip_local_port_range)."""


class Pool(msgspec.Struct, frozen=True, rename="pascal"):
    """A pool of a new network, as the IPAM driver gave it."""

    address_space: str = ""
    pool: str = ""
    gateway: str = ""
    aux_addresses: dict[str, str] | None = None


class Interface(msgspec.Struct, frozen=True, rename="pascal", omit_defaults=True):
    """The engine's values of an interface, and our answer."""

    address: str = ""
    address_ipv6: str = msgspec.field(default="", name="AddressIPv6")
    mac_address: str = ""


class Binding(msgspec.Struct, frozen=True, rename="pascal"):
    """A published port; ``host_port`` 0 is any."""

    proto: int
    port: int
    host_ip: str = msgspec.field(default="", name="HostIP")
    host_port: int = 0
    host_port_end: int = 0


class Call(msgspec.Struct, frozen=True, rename="pascal"):
    """Any call of the engine, whose process id is ``pid``."""

    network_id: str = msgspec.field(default="", name="NetworkID")
    endpoint_id: str = msgspec.field(default="", name="EndpointID")
    pool_id: str = msgspec.field(default="", name="PoolID")
    sandbox_key: str = ""
    interface: Interface | None = None
    options: dict[str, object] | None = None
    ipv4_data: tuple[Pool, ...] | None = msgspec.field(default=None, name="IPv4Data")
    ipv6_data: tuple[Pool, ...] | None = msgspec.field(default=None, name="IPv6Data")
    pool: str = ""
    sub_pool: str = ""
    address: str = ""
    v6: bool = False
    pid: int = 0

    @property
    def chosen(self) -> dict[str, str]:
        """Return the user's -o options (``com.docker.network.generic``). Raises Invalid if a value is no text."""
        generic = (self.options or {}).get(GENERIC) or {}
        if not isinstance(generic, dict):
            raise Invalid(f"{GENERIC} is not an object", "is the engine another version?")
        return {str(key): str(value) for key, value in generic.items()}

    @property
    def internal(self) -> bool:
        """Return whether the user asked for an internal network."""
        return (self.options or {}).get(INTERNAL) is True

    @property
    def without_ipv4(self) -> bool:
        """Return whether the user asked for a network without IPv4."""
        return (self.options or {}).get(ENABLE_IPV4) is False

    @property
    def pools(self) -> tuple[Pool, ...]:
        """Return the pools of both families."""
        return (*(self.ipv4_data or ()), *(self.ipv6_data or ()))


def decoded(body: bytes, pid: int) -> Call:
    """Parse a call, whatever its Content-Type; an empty body is a call, too. Raises Invalid."""
    try:
        call = msgspec.structs.replace(go_json.decoded(body or b"{}", Call), pid=pid)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"the engine's call cannot be read: {error}", "is it another version?") from error
    ports(call.options)
    return call


def sources(options: dict[str, object] | None) -> tuple[str, ...]:
    """Return the CIDRs from which clients may come in by a container's published ports, () for all. Raises Invalid."""
    if FROM not in (options or {}):
        return ()
    texts = [text.strip() for text in str((options or {})[FROM]).split(",")]
    try:
        return joined_sources(texts)
    except Invalid as error:
        raise error.within(f"driver-opt {FROM}") from error


def ports(options: dict[str, object] | None) -> tuple[tuple[Port, ...], tuple[PortRange, ...]]:
    """Return the ports that a container publishes, and its requests for free ones. Raises Invalid."""
    try:
        bindings = msgspec.convert((options or {}).get(PORT_MAP) or (), tuple[Binding, ...])
        fixed, wishes = [], []
        for one in bindings:
            protocol = _PROTOCOLS[one.proto]
            last = one.host_port_end or one.host_port
            if one.host_port and last == one.host_port:
                fixed.append(Port(one.host_ip, one.host_port, one.port, protocol))
            else:
                first, last = (one.host_port, last) if one.host_port else EPHEMERAL
                wishes.append(PortRange(one.host_ip, first, last, one.port, protocol))
    except (msgspec.ValidationError, KeyError) as error:
        raise Invalid(f"the engine's {PORT_MAP} cannot be read: {error}") from error
    return tuple(fixed), tuple(wishes)
