"""Model of what users name: frozen values with plain fields. Their JSON is the documented format."""

from __future__ import annotations

import functools
import hashlib
import re
from typing import Annotated, Literal

import msgspec

from linkspan.core.addresses import Prefix, prefix
from linkspan.core.errors import Invalid

Protocol = Literal["tcp", "udp", "sctp"]
Runtime = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9-]{0,31}\Z")]
"""A runtime's name (`runtimes`): a record may name one that only a newer version of linkspan knows."""
Engine = Annotated[str, msgspec.Meta(pattern=r"^([a-z][a-z0-9-]{0,31})?\Z")]
"""A runtime's name, or ""."""
Ipam = Literal["block", "exact"]
NetworkPolicy = Literal["default-allow", "default-deny"]
"""What counts for connections to a network's containers about which no policy says anything."""

ALIASES = "aliases"
"""The label that keeps a container's other names, by commas."""

NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
"""Names of networks, containers and hosts (CNI's SPEC.md has the same rule)."""


CONTROLLER = "(controller)"
"""Stands for the active controller where a host's id is expected: no host can have this name.

It is in the store's keys, and a trace asks it about an underlay's switches as it asks a host.
"""


def checked_name(text: str, what: str) -> str:
    """Return the name if it is valid and has at most 128 bytes; raises Invalid."""
    if not NAME.fullmatch(text) or len(text) > 128:
        raise Invalid(
            f"{what} {text!r} is not a name", "use letters, digits, _ . - and begin with a letter or digit"
        )
    return text


def checked_ifname(text: str) -> str:
    """Return the interface name if the kernel accepts it (dev_valid_name in net/core/dev.c); raises Invalid."""
    if not 1 <= len(text.encode(errors="surrogateescape")) <= 15 or text in (".", ".."):
        raise Invalid(
            f"interface name {text!r} has {len(text)} characters", "use 1 to 15 characters, for example eth0"
        )
    if any(c in "/:" or c.isspace() or not c.isprintable() for c in text):
        raise Invalid(
            f"interface name {text!r} has a character that is not allowed", "no '/', ':' or white space"
        )
    if text in ("all", "default"):
        raise Invalid(
            f"interface name {text!r} is a word in the kernel's settings", "use another name, for example eth0"
        )
    return text


class Migration(msgspec.Struct, frozen=True, kw_only=True):
    """The backend to which a network migrates; ``number`` distinguishes a migration from earlier ones."""

    backend: str
    options: dict[str, str] = {}
    mtu: int
    number: int


class Egress(msgspec.Struct, frozen=True):
    """An address by which a network's packets leave to the outside; ``host`` is the id of the one that should hold it.

    Without one, any host that takes part in the network may hold it. ``number`` distinguishes this wish from earlier
    ones, which may be the same.
    """

    address: str
    host: str = ""
    number: int = 0

    @property
    def prefix(self) -> Prefix:
        """Return the address, parsed."""
        return prefix(self.address).single()


MTUS = (1280, 65535)
"""IPv6 needs 1280 (RFC 8200 section 5); IPv4 packets end at 65535."""


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """A network: pools of addresses, and the backend by which its endpoints reach each other.

    ``expose`` names the runtimes that have it as a network of their own, on every host. ``egress`` has at most one
    address of each family: what leaves the network to the outside does so by it.
    """

    name: str
    pools: tuple[str, ...]
    subnet_len: dict[str, int]
    backend: str
    options: dict[str, str] = {}
    mtu: int = 1500
    masquerade: bool = True
    internal: bool = False
    ipam: Ipam = "block"
    gateways: tuple[str, ...] = ()
    migration: Migration | None = None
    expose: tuple[Runtime, ...] = ()
    policy: NetworkPolicy = "default-allow"
    egress: tuple[Egress, ...] = ()

    @property
    def prefixes(self) -> tuple[Prefix, ...]:
        """Return the pools, parsed."""
        return tuple(prefix(text) for text in self.pools)

    @property
    def pairs(self) -> tuple[tuple[Prefix, Prefix], ...]:
        """Return each pool with its gateway: with the pool's length on a bridge, without (/32, /128) if routed."""
        return _pairs(self.pools, self.gateways, routed=self.routed)

    @property
    def exits(self) -> dict[int, Egress]:
        """Return the egress addresses by their families."""
        return {one.prefix.family: one for one in self.egress}

    @property
    def on_host(self) -> bool:
        """Return whether its containers are in the host's own network namespace, with nothing of their own."""
        return self.backend == "host"

    @property
    def routed(self) -> bool:
        """Return whether endpoints are routed (/32 and /128 on a veth) instead of ports of a bridge."""
        return self.backend != "bridge" or self.options.get("mode") == "routed"

    @property
    def mtus(self) -> tuple[int, int]:
        """Return the MTU of endpoints' interfaces, and their largest packet if that is smaller, else 0.

        While the network migrates, endpoints accept packets of either backend, and send what both carry.
        """
        other = self.migration.mtu if self.migration else self.mtu
        return max(self.mtu, other), min(self.mtu, other) if other != self.mtu else 0

    @property
    def target(self) -> Network | None:
        """Return the network as it will be at the end of its migration; None if it does not migrate."""
        if (move := self.migration) is None:
            return None
        return msgspec.structs.replace(
            self, backend=move.backend, options=move.options, mtu=move.mtu, migration=None
        )

    @property
    def ways(self) -> tuple[Network, ...]:
        """Return the network once for each backend by which it receives: the new one first."""
        new = self.target
        return (self,) if new is None else (new, self)

    @property
    def bridge(self) -> str:
        """Return the bridge's name: ``ls-NAME``, or a hash if that is too long for an interface name."""
        digest = hashlib.blake2b(self.name.encode(), digest_size=6).hexdigest()
        return f"ls-{self.name if len(self.name) <= 12 else digest}"


@functools.lru_cache(maxsize=1024)
def _pairs(pools: tuple[str, ...], gateways: tuple[str, ...], *, routed: bool) -> tuple[tuple[Prefix, Prefix], ...]:
    """Return the pairs of a network: each update of names asks for those of all networks, several times."""
    found = []
    for pool, gateway in zip(map(prefix, pools), map(prefix, gateways), strict=True):
        found.append((pool, gateway if routed else Prefix(gateway.packed, pool.length)))
    return tuple(found)


class Port(msgspec.Struct, frozen=True, order=True, omit_defaults=True, gc=False):
    """A published port; ``host_ip`` empty means every address of the host.

    ``sources`` are the CIDRs from which clients may come in by it, none: from everywhere.
    """

    host_ip: str
    host_port: int
    port: int
    protocol: Protocol
    sources: tuple[str, ...] = ()

    def __str__(self) -> str:
        at = f"[{self.host_ip}]:" if ":" in self.host_ip else f"{self.host_ip}:" if self.host_ip else ""
        return f"{at}{self.host_port}->{self.port}/{self.protocol}"


class PortRange(msgspec.Struct, frozen=True, omit_defaults=True):
    """A request for one free host port from ``first`` to ``last``, which leads to ``port``; ``sources`` as in Port."""

    host_ip: str
    first: int
    last: int
    port: int
    protocol: Protocol
    sources: tuple[str, ...] = ()


class Bandwidth(msgspec.Struct, frozen=True, rename="camel", gc=False):
    """Limits in bits per second and bits of burst, seen from the container (CNI's capability of this name)."""

    ingress_rate: int = 0
    ingress_burst: int = 0
    egress_rate: int = 0
    egress_burst: int = 0


class Endpoint(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One attached interface; ``id`` (the container's) and ``ifname`` together are its identity.

    ``netns`` is the namespace's inode, ``netns_path`` the path by which the agent reached it, and
    ``netns_cookie`` the kernel's own number for it; all are empty for a container on the host's network.
    ``metric`` is that of its default routes, and distinguishes it from its container's other interfaces: the
    first has 0, and a later one takes over when the first is removed. ``path_mtu`` is the largest packet that
    it sends if that is less than its interface's MTU, else 0.

    Docker takes the container's end from the host's namespace and sets it up itself. ``delivered`` is the
    name of that end there, and the endpoint's identity, because the agent learns Docker's name only later.

    A later plugin of a CNI chain may change MAC and MTU. ``mac`` and ``mtu`` are then the plugin's values.
    ``born_mac`` is the MAC at the attach, from which its link-local address is made, and ``tuned_mtu`` is the
    MTU that it keeps, however large its network's is. Both are empty if nobody has changed anything.

    ``engine`` is the engine that attached its container by a network of its own, and that detaches it.
    """

    id: str
    ifname: str
    name: str = ""
    network: str
    host: str = ""
    addresses: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    mac: str = ""
    mtu: int = 0
    path_mtu: int = 0
    host_ifname: str = ""
    ports: tuple[Port, ...] = ()
    labels: dict[str, str] = {}
    netns: int = 0
    netns_path: str = ""
    netns_cookie: int = 0
    bandwidth: Bandwidth | None = None
    metric: int = 0
    delivered: str = ""
    born_mac: str = ""
    tuned_mtu: int = 0
    engine: Engine = ""

    @property
    def limited(self) -> bool:
        """Return whether only some sources may come in by one of its ports."""
        return any(port.sources for port in self.ports)

    @property
    def managed(self) -> Engine:
        """Return the engine that must detach the container; earlier versions wrote no ``engine``."""
        return self.engine or ("docker" if self.delivered else "")

    @property
    def identity(self) -> tuple[str, str]:
        """Return (id, ifname), or (id, delivered) if the container's end is handed to its runtime."""
        return self.id, self.delivered or self.ifname

    @property
    def namespace(self) -> tuple[int, int]:
        """Return the container's namespace: the kernel reuses an inode, but never with the same cookie."""
        return self.netns, self.netns_cookie

    @property
    def called(self) -> str:
        """Return its container's name for people; if only an id is known, the id, marked if it is an endpoint's."""
        return self.name or (f"{self.managed.title()}'s endpoint {self.id[:12]}" if self.delivered else self.id)

    @property
    def prefixes(self) -> tuple[Prefix, ...]:
        """Return the addresses, parsed."""
        return tuple(prefix(text) for text in self.addresses)


def host_ifname(routed: bool, container: str, ifname: str) -> str:
    """Return the host end's name: ``lsr`` (routed) or ``lsp`` (bridge port) and 12 hex digits of the identity."""
    digest = hashlib.blake2b(
        f"{container}\0{ifname}".encode(errors="surrogateescape"), digest_size=6
    ).hexdigest()
    return ("lsr" if routed else "lsp") + digest


class Allowance(msgspec.Struct, frozen=True, order=True):
    """Endpoints of ``source`` may open connections to ``target``, to one port or (port 0) to all."""

    source: str
    target: str
    protocol: str = ""
    port: int = 0


class Reservation(msgspec.Struct, frozen=True, order=True):
    """Addresses of a network that endpoints get only if they ask for them."""

    network: str
    cidr: str


CAN_REACH = "can-reach="
"""Prefix of a setting that names, instead of an interface, an address which the underlay must reach."""


class Underlay(msgspec.Struct, frozen=True, gc=False):
    """A host's connection to the other hosts: its interface, addresses with their lengths, and MTU.

    ``advertise`` are the addresses by which others reach it if they differ (behind a NAT); else empty.
    ``advertise_port`` is the UDP port that belongs to them, 0: the port at which it listens. A ``hidden``
    host is behind a NAT that lets nobody in: in encrypted networks other hosts wait until it contacts them.
    By ``mac`` a controller finds the host's switch port. ``macs`` are all MACs that its frames may have: a
    bond's ports have their own.
    """

    ifname: str
    addresses: tuple[str, ...]
    mtu: int = 1500
    advertise: tuple[str, ...] = ()
    advertise_port: int = 0
    hidden: bool = False
    mac: str = ""
    macs: tuple[str, ...] = ()

    def address(self, family: int) -> Prefix | None:
        """Return the address of a family by which others reach the host, without length; None if it has none."""
        for text in (*self.advertise, *self.addresses):
            if (found := prefix(text)).family == family:
                return found.single()
        return None

    def within(self, pool: Prefix) -> str:
        """Return the host's underlay address if it is in the pool, '' if not."""
        found = self.address(pool.family)
        return found.address if found is not None and pool.holds(found) else ""

    def bound(self, family: int) -> bytes:
        """Return the address of a family on the underlay's link; b'' if it has none.

        A tunnel sends from it; behind a NAT, others know the host by another address.
        """
        return next((p.packed for p in map(prefix, self.addresses) if p.family == family), b"")

    @property
    def outer(self) -> int:
        """Return the family of tunnels: IPv4 if the host has any, else IPv6; 4 for a host without an uplink."""
        return 6 if self.address(4) is None and self.address(6) is not None else 4


class Host(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A host as all others know it. ``settings`` are those that belong to a host, never a network's options.

    ``reads`` is the newest schema of records that its agent can write. ``withdraws`` is its promise to give
    up its addresses after so many seconds without the store, 0: never. ``keys`` are its public keys by
    backend, ``next_keys`` those that it is about to use, and ``takes`` the next keys of other hosts, by their
    ids, from which it accepts packets. ``control`` are addresses with TCP ports of the control plane that it
    knows, ``192.0.2.1:2379``: every host keeps its containers from them.
    ``enforces`` says that its agent enforces policies, which agents before 0.2.0 do not, ``filters`` that its kernel
    passes the frames of bridges to the rules of policies (br_netfilter), ``egresses`` that its agent knows networks'
    egress addresses, ``tiers`` that it knows tiers of policies, requests of ICMP in them, and policies about ports of
    containers on the host's own network, ``dns_peers`` that it knows DNS names as peers in them, and ``hastens`` that
    it knows the option ``fast`` of networks.
    """

    id: str
    name: str
    version: str = ""
    underlay: Underlay | None = None
    settings: dict[str, str] = {}
    reads: int = 1
    withdraws: float = 0
    keys: dict[str, str] = {}
    next_keys: dict[str, str] = {}
    takes: dict[str, str] = {}
    control: tuple[str, ...] = ()
    enforces: bool = False
    filters: bool = False
    egresses: bool = False
    tiers: bool = False
    dns_peers: bool = False
    hastens: bool = False

    def within(self, pool: Prefix) -> str:
        """Return the host's underlay address if it is in the pool, '' if not, or if the host is behind a NAT."""
        return "" if self.underlay is None or self.underlay.hidden else self.underlay.within(pool)


class Offer(msgspec.Struct, frozen=True, gc=False):
    """A way by which a host receives for a network now; ``data`` is opaque to all but its backend."""

    data: dict[str, str] = {}
    generation: int = 0


class Lease(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A host's claim in a network: its blocks, its own address of each family there, and how it receives.

    ``endpoints`` has an Offer by the backend's name; several while the network migrates.
    """

    network: str
    host: str
    prefixes: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    endpoints: dict[str, Offer] = {}

    @property
    def blocks(self) -> tuple[Prefix, ...]:
        """Return the prefixes, parsed."""
        return tuple(prefix(text) for text in self.prefixes)

    def address(self, family: int) -> Prefix | None:
        """Return the host's own address in the network, without length; None if it has none of the family."""
        for text in self.addresses:
            if (":" in text) == (family == 6):
                return prefix(text).single()
        return None


class AttachRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request by a runtime or a user. ``ifname`` empty: the next free ethN. ``ips`` empty: one of each family.

    ``ports_bound``: the runtime itself listens at the ports, as Podman does to reserve them. ``engine``: as
    in Endpoint.
    """

    id: str
    network: str
    ifname: str = ""
    name: str = ""
    ips: tuple[str, ...] = ()
    mac: str = ""
    ports: tuple[Port, ...] = ()
    port_ranges: tuple[PortRange, ...] = ()
    ports_bound: bool = False
    labels: dict[str, str] = {}
    bandwidth: Bandwidth | None = None
    engine: Engine = ""
