"""States of a machine as frozen values: one class for each kind of object that linkspan makes.

Each value has a ``key``, the kernel's own key for the object, and the rest is its value. Two states with one
key are the same object, and equal states need no work. ``netns`` is the inode of the network namespace that
the object lives in, 0 for the host's own (the one in which the agent runs). Addresses and MACs are bytes;
only input and output use text.
"""

from __future__ import annotations

import sys

import msgspec

from linkspan.core.addresses import Prefix, mac_text

Key = tuple[str | int | bytes, ...]
"""The class's name first, then the kernel's key."""

HOST = 0
"""``netns`` of the host's own namespace."""

ROUTE_PROTOCOL = 76
"""Our routes' protocol number (rtnetlink(7)); free in iproute2's rt_protos as of 6.15."""

UNREACHABLE_METRIC = 4294967295
"""The largest metric: the route is used only if nothing else matches."""

LEARNT_METRIC = 1976
"""Metric of our BGP speaker's routes. It distinguishes them from another BIRD's, whose default is 32. While a
network migrates, a tunnel's routes win over it (those have 0, which the kernel makes 1024 for IPv6)."""

OTHERS = ("docker*", "br-*", "podman*", "cni*", "virbr*", "lxc*", "lxd*")
"""Bridges of other container and VM systems: these systems decide on their forwarding."""

ALTNAME = "linkspan:"
"""Every link of ours has an alternative name that begins so; a link without it is not ours."""

GROUP = 76
"""The device group of our devices that encrypt: rules cannot match an alternative name, and a name alone may
be that of another program's device, which has group 0."""


def link_name(text: str) -> str:
    """Return a link's name, which is in memory once: a thousand peers have states on one link."""
    return sys.intern(text)


class State(msgspec.Struct, frozen=True, gc=False):
    """One desired object on this machine.

    Kinds with a field ``amiss`` have attributes that linkspan leaves at the kernel's default, and that stop
    packets with any other value. A driver observes in ``amiss`` those that differ, in iproute2's words
    (``isolated on``), and a put corrects them. No desired state has any.
    """

    @property
    def key(self) -> Key:
        """Return the class's name, then the kernel's key for the object."""
        raise NotImplementedError

    @property
    def label(self) -> str:
        """Return the object's key for people: addresses as text; the inode of a namespace tells nobody anything."""
        prefix = getattr(self, "prefix", None) or getattr(self, "destination", None)
        if prefix is None:
            parts = self.key[1:]
            return " ".join(map(_word, parts[1:] if parts[0] == getattr(self, "netns", None) else parts))
        where = (getattr(self, name, "") for name in ("chain", "device"))
        return " ".join(str(part) for part in (prefix, *where) if part)


def _word(part: str | int | bytes) -> str:
    """Return a part of a key for people: a MAC has 6 bytes, an address 4 or 16."""
    if isinstance(part, bytes):
        return mac_text(part) if len(part) == 6 else Prefix(part, len(part) * 8).address
    return str(part)


class Sysctl(State, frozen=True, gc=False):
    """A kernel setting: ``path`` below /proc/sys, with slashes. Its earlier value is restored."""

    path: str
    value: str
    netns: int = HOST

    @property
    def key(self) -> Key:
        return ("Sysctl", self.netns, self.path)

    @property
    def label(self) -> str:
        return self.path


class LinkSysctl(State, frozen=True, gc=False):
    """A setting of a link of ours, removed with the link; ``path`` as for Sysctl."""

    path: str
    value: str
    netns: int = HOST

    @property
    def key(self) -> Key:
        return ("LinkSysctl", self.netns, self.path)

    @property
    def label(self) -> str:
        return self.path


class NftTable(State, frozen=True, gc=False):
    """An nftables table of ours; ``family`` is inet, bridge or netdev. The hooks of a dormant table see no packet."""

    family: str
    name: str
    amiss: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        return ("NftTable", self.family, self.name)


class NftSet(State, frozen=True, gc=False):
    """A set, or a map if ``data`` is given; ``type`` and ``data`` in nft's own words (``ifname . ether_addr``).

    Rules fill a ``dynamic`` set, packet by packet; its elements belong to the kernel, and are no state. They
    expire ``timeout`` seconds after the last packet; without ``timeout``, when the counted objects are gone.
    """

    family: str
    table: str
    name: str
    type: str
    data: str = ""
    interval: bool = False
    dynamic: bool = False
    timeout: int = 0

    @property
    def key(self) -> Key:
        return ("NftSet", self.family, self.table, self.name)


class NftChain(State, frozen=True, gc=False):
    """A chain with its rules in order, in nft's own words as it lists them; ``hook`` is empty for a plain chain."""

    family: str
    table: str
    name: str
    hook: str
    rules: tuple[str, ...]

    @property
    def key(self) -> Key:
        return ("NftChain", self.family, self.table, self.name)


class NftElement(State, frozen=True, gc=False):
    """An element of a set (or, with ``data``, of a map); the parts of a concatenation as nft prints them.

    An interface name is given bare, without quotes.
    """

    family: str
    table: str
    set: str
    parts: tuple[str, ...]
    data: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        return ("NftElement", self.family, self.table, self.set, *self.parts)


class NftLinkChain(NftChain, frozen=True, gc=False):
    """A chain of family netdev, which belongs to a link (``core/fast_path``).

    It gets what comes in by the link, and then has the link's name; or its rules send by the link, and its name ends
    with ``_`` and the link's. The kernel keeps the link's index in them.
    """

    @property
    def key(self) -> Key:
        return ("NftLinkChain", self.family, self.table, self.name)

    @property
    def link(self) -> str:
        """Return the link's name."""
        return self.name.rpartition("_")[2]


def ingress_hook(link: str) -> str:
    """Return the hook of a chain for what comes in by a link, as nft lists it."""
    return f'type filter hook ingress device "{link}" priority filter; policy accept;'


class NftExit(NftElement, frozen=True, gc=False):
    """An element of a map that leads to a link, its ``data``: the kernel keeps the link's index, not its name."""

    @property
    def key(self) -> Key:
        return ("NftExit", self.family, self.table, self.set, *self.parts)


class ForwardAccept(State, frozen=True, gc=False):
    """Two rules in another program's iptables chain that accept forwarding from and to a pool.

    ``chain`` is DOCKER-USER if it exists, else FORWARD. Ours are recognised by their comment.
    """

    chain: str
    prefix: Prefix

    @property
    def key(self) -> Key:
        return ("ForwardAccept", self.chain, self.prefix.packed, self.prefix.length)


class TrustedSource(State, frozen=True, gc=False):
    """A pool as a source of firewalld's zone ``trusted`` (at run time only: a reload forgets it)."""

    prefix: Prefix

    @property
    def key(self) -> Key:
        return ("TrustedSource", self.prefix.packed, self.prefix.length)


class Bridge(State, frozen=True, gc=False):
    """A bridge that is up, with a MAC of its own (otherwise it would take its lowest port's)."""

    name: str
    mac: bytes
    mtu: int
    up: bool = True
    amiss: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        return ("Bridge", self.name)

    @property
    def altname(self) -> str:
        """Return the alternative name that marks the bridge as ours."""
        return f"{ALTNAME}{self.name}"


class BridgeFilter(State, frozen=True, gc=False):
    """A bridge's frames pass the rules of IPv4 and IPv6, as packets that the host forwards do."""

    device: str
    amiss: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        return ("BridgeFilter", self.device)


class Veth(State, frozen=True, gc=False):
    """A veth pair: the host end ``name``, up, and its peer, created as ``peer_name`` in namespace ``peer_netns``.

    ``master`` is the bridge that the host end is a port of, or empty for a routed one. The alternative name
    ``linkspan:INODE:PEER`` shows an agent without a journal whose it is.
    """

    name: str
    mac: bytes
    mtu: int
    master: str
    peer_netns: int
    peer_name: str
    hairpin: bool = False
    up: bool = True
    amiss: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        return ("Veth", self.name)

    @property
    def altname(self) -> str:
        """Return the alternative name of the host end."""
        return f"{ALTNAME}{self.peer_netns}:{self.peer_name}"


class Interface(State, frozen=True, gc=False):
    """A container's end of a veth pair, up; created and removed with its Veth. The namespace's lo is up too."""

    netns: int
    name: str
    mac: bytes
    mtu: int
    up: bool = True

    @property
    def key(self) -> Key:
        return ("Interface", self.netns, self.name)


class Vxlan(State, frozen=True, gc=False):
    """A VXLAN device that is up and learns nothing; ``local`` is the packed underlay address that it sends from."""

    name: str
    vni: int
    mac: bytes
    mtu: int
    port: int
    local: bytes
    up: bool = True
    amiss: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        return ("Vxlan", self.name)

    @property
    def altname(self) -> str:
        """Return the alternative name that marks the device as ours."""
        return f"{ALTNAME}{self.name}"


class Ipip(State, frozen=True, gc=False):
    """The host's one IPIP device, up: the kernel's with external mode off, or a persistent TUN if ``tun``.

    Its peers are routes by their underlay addresses (kernel) or TunnelPrefix states (TUN). ``local`` is empty
    for a TUN: the helper has the address.
    """

    name: str
    mtu: int
    local: bytes
    tun: bool
    up: bool = True
    amiss: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        return ("Ipip", self.name)

    @property
    def altname(self) -> str:
        """Return the alternative name that marks the device as ours."""
        return f"{ALTNAME}{self.name}"


class Wireguard(State, frozen=True, gc=False):
    """The host's one WireGuard device, up: the kernel's, or if ``tun`` a persistent TUN that wireguard-go serves."""

    name: str
    mtu: int
    tun: bool
    up: bool = True
    amiss: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        return ("Wireguard", self.name)

    @property
    def altname(self) -> str:
        """Return the alternative name that marks the device as ours."""
        return f"{ALTNAME}{self.name}"


class TunnelPrefix(State, frozen=True, gc=False):
    """A row of the user-space IPIP helper's table: a prefix, and the packed underlay address behind which it is."""

    prefix: Prefix
    remote: bytes

    @property
    def key(self) -> Key:
        return ("TunnelPrefix", self.prefix.packed, self.prefix.length)


class TunnelExit(State, frozen=True, gc=False):
    """A row of the helper's second table: a pool, and the host through which its packets leave to the outside.

    ``remote`` is that host's packed underlay address.
    """

    prefix: Prefix
    remote: bytes

    @property
    def key(self) -> Key:
        return ("TunnelExit", self.prefix.packed, self.prefix.length)


class Neighbour(State, frozen=True, gc=False):
    """A permanent neighbour entry (ARP or ND) on a device of ours."""

    device: str
    address: bytes
    mac: bytes

    @property
    def key(self) -> Key:
        return ("Neighbour", self.device, self.address)


class FdbEntry(State, frozen=True, gc=False):
    """A permanent FDB entry of a VXLAN device of ours: the underlay address behind which a MAC is."""

    device: str
    mac: bytes
    remote: bytes
    amiss: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        return ("FdbEntry", self.device, self.mac)


class Address(State, frozen=True, gc=False):
    """An address on a link, never tentative (IFA_F_NODAD)."""

    device: str
    prefix: Prefix
    netns: int = HOST
    amiss: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        return ("Address", self.netns, self.device, self.prefix.packed, self.prefix.length)


class Route(State, frozen=True, gc=False):
    """A route with our protocol number, of the main table or of ``table``.

    ``device`` empty means ``unreachable``. ``gateway`` and ``source`` are packed addresses or empty. With
    ``onlink`` the kernel treats the gateway as on the link, whatever the routes say. ``mtu`` is the largest
    packet sent by the route, 0 for the device's. ``if_id`` identifies the peer on an XFRM interface of all
    peers.
    """

    destination: Prefix
    device: str = ""
    gateway: bytes = b""
    source: bytes = b""
    metric: int = 0
    netns: int = HOST
    onlink: bool = False
    mtu: int = 0
    if_id: int = 0
    table: int = 0
    amiss: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        table = (self.table,) if self.table else ()
        return ("Route", self.netns, self.destination.packed, self.destination.length, self.metric, *table)

    @property
    def label(self) -> str:
        table = f"table {self.table}" if self.table else ""
        return " ".join(part for part in (str(self.destination), self.device, table) if part)


class PolicyRule(State, frozen=True, gc=False):
    """A rule of a container's or the host's routing policy (ip-rule(8)), with our protocol number.

    ``table`` (0: the main one) routes packets from ``source`` (``prefix`` of length 0: from anywhere). With
    ``specific`` the default route of that table does not count (suppress_prefixlength 0). ``mark``, unless it is 0, is
    the one that the packets have.
    """

    netns: int
    priority: int
    prefix: Prefix
    table: int = 0
    specific: bool = False
    mark: int = 0

    @property
    def key(self) -> Key:
        source = self.prefix.packed, self.prefix.length
        return ("PolicyRule", self.netns, self.priority, *source, self.table, int(self.specific), self.mark)

    @property
    def label(self) -> str:
        marked = f" fwmark {self.mark:#x}" if self.mark else ""
        return f"{self.priority} from {self.prefix}{marked} lookup {self.table or 'main'}"


class EgressAddress(State, frozen=True, gc=False):
    """A network's egress address on a link of the host, which the kernel removes unless it is put again in time."""

    device: str
    prefix: Prefix

    @property
    def key(self) -> Key:
        return ("EgressAddress", self.device, self.prefix.packed)

    @property
    def label(self) -> str:
        return f"{self.prefix.address} {self.device}"


class TokenBucket(State, frozen=True, gc=False):
    """A tbf root qdisc: ``rate`` in bytes per second, ``burst`` in bytes."""

    device: str
    rate: int
    burst: int
    netns: int = HOST

    @property
    def key(self) -> Key:
        return ("TokenBucket", self.netns, self.device)


class ForeignQdisc(State, frozen=True, gc=False):
    """Another program's root qdisc on a link of ours, which may drop or delay every packet: never desired.

    A tbf counts as a TokenBucket.
    """

    device: str
    kind: str

    @property
    def key(self) -> Key:
        return ("ForeignQdisc", self.device)
