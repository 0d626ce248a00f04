"""View of one host's kernel, as a trace asks for it: this machine's (`kernel_answers`), or a test's.

Every method is about the present state of the kernel and changes nothing. ``netns`` is a namespace's inode,
0 the host's own; addresses and MACs are bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from linkspan.core.wire import Wire
from linkspan.diagnose.trace.packet import Packet, Span
from linkspan.kernel.probe.path_mtu import Passed
from linkspan.kernel.probe.xfrm_and_rules import Rule, XfrmPolicy

LOCAL, UNICAST, BLACKHOLE, UNREACHABLE, PROHIBIT = 2, 1, 6, 7, 8
"""Types of route, RTN_* of linux/rtnetlink.h."""

NUD_INCOMPLETE, NUD_FAILED = 0x01, 0x20
"""States of a neighbour in which its MAC is not known, linux/neighbour.h."""

REJECT_AFTER = 180
"""Seconds after which WireGuard ends a session; a new one is asked for after 120 (its paper, 6.1)."""


class Secured(msgspec.Struct, frozen=True):
    """An encrypting device's entry for an address: it belongs to the peer with ``key``, at ``remote``, ``port``.

    ``own`` is the device's own public key, and ``own_port`` where it listens. ``since`` is how many seconds
    ago the peer proved that it has its key, -1: never. ``keepalive`` is the number of seconds of silence
    after which a keepalive is sent, 0: never.
    """

    own: str
    key: str
    remote: bytes = b""
    port: int = 0
    since: float = -1
    keepalive: int = 0
    own_port: int = 0

    @property
    def proven(self) -> bool:
        """Return whether the peer still has the key: with keepalives there would otherwise be another session."""
        return self.since >= 0 and (not self.keepalive or self.since <= REJECT_AFTER + self.keepalive)


class Associated(msgspec.Struct, frozen=True):
    """A pair of ESP associations: with which host (its id), to ``remote`` and (in UDP) ``port``, else 0; SPIs in hex.

    ``mark`` is on packets that come out of it, 0 if there is none.
    """

    host: str
    remote: bytes
    port: int
    spi_in: str
    spi_out: str
    cipher: str
    mark: int = 0


class Lookup(msgspec.Struct, frozen=True):
    """The kernel's answer to a route lookup; ``matched`` is the route's destination, ``error`` an errno.

    ``hops`` is the route's TTL for local packets, 0 for the usual one. ``learnt`` is the BGP peer from which
    the route came, or why none was learnt; '' if BGP is not involved.
    """

    kind: int = 0
    device: str = ""
    gateway: bytes = b""
    source: bytes = b""
    mtu: int = 0
    matched: str = ""
    error: int = 0
    learnt: str = ""
    hops: int = 0


class Port(msgspec.Struct, frozen=True):
    """A bridge port's settings (bridge(8)): ``floods`` unicast to an unknown MAC, ``broadcasts`` ARP's requests."""

    forwards: bool = True
    isolated: bool = False
    locked: bool = False
    learns: bool = True
    floods: bool = True
    broadcasts: bool = True


class Device(msgspec.Struct, frozen=True):
    """A link; ``carrier`` says that its other end is up too, ``port`` has its settings as a bridge's port.

    ``group`` is its device group, ``silent`` says that it neither asks nor answers for MACs (``arp off``),
    and ``filters`` that it is a bridge with VLAN filtering. ``calls`` are the families whose rules a bridge's frames
    pass by its own switches, if br_netfilter is loaded.
    """

    name: str
    kind: str
    up: bool
    carrier: bool
    mtu: int
    mac: bytes
    master: str = ""
    port: Port | None = None
    group: int = 0
    silent: bool = False
    filters: bool = False
    calls: frozenset[int] = frozenset()


class Attached(msgspec.Struct, frozen=True):
    """Programs, filters and queueing at a device that trace cannot read, in words, for each direction."""

    ingress: tuple[str, ...] = ()
    egress: tuple[str, ...] = ()


class Forwarding(msgspec.Struct, frozen=True):
    """A bridge's FDB entry: the port behind which a MAC is; ``own``: the host itself receives its frames."""

    port: str
    own: bool = False


IN, OUT, FORWARD = 0, 1, 2
"""Directions of XFRM policies, linux/xfrm.h."""


class IptablesTable(msgspec.Struct, frozen=True):
    """A table of iptables: ``chains`` have rules, as words of iptables-save, and ``policies`` those of its own."""

    name: str
    chains: Mapping[str, tuple[tuple[str, ...], ...]]
    policies: Mapping[str, str]
    legacy: bool = False


class Neighbour(msgspec.Struct, frozen=True):
    """An entry of the neighbour table; ``state`` is NUD_*."""

    mac: bytes
    state: int

    @property
    def known(self) -> bool:
        """Return whether the kernel has a MAC for it."""
        return bool(self.mac) and not self.state & (NUD_INCOMPLETE | NUD_FAILED)


class Chain(msgspec.Struct, frozen=True):
    """An nftables chain with its rules' expressions, as nft lists them in JSON; ``hook`` empty: not a base chain.

    ``devices`` are those of a chain of family netdev, or with hook ingress.
    """

    family: str
    table: str
    name: str
    kind: str = ""
    hook: str = ""
    priority: int = 0
    policy: str = "accept"
    rules: tuple[tuple[Mapping[str, Any], ...], ...] = ()
    devices: tuple[str, ...] = ()


class KernelView(Protocol):
    """The state of one host's kernel."""

    def route(self, netns: int, packet: Packet, arriving: str = "") -> Lookup:
        """Return where the packet goes next; ``arriving`` is the device by which it came, '' if it starts here."""

    def device(self, netns: int, name: str) -> Device | None:
        """Return a link, None where there is none of this name."""

    def addresses(self, netns: int) -> Mapping[bytes, str]:
        """Return every address of the namespace with its device."""

    def neighbour(self, netns: int, device: str, address: bytes) -> Neighbour | None:
        """Return the entry for the address on the device."""

    def rules(self, netns: int, family: int) -> tuple[Rule, ...]:
        """Return the policy rules (``ip rule``), in the order of evaluation."""

    def takers(self, netns: int, device: str) -> tuple[str, ...]:
        """Return the devices that take all packets of a device: macvlans on it in mode passthru."""

    def below(self, netns: int, device: str) -> tuple[str, ...]:
        """Return the devices through which a device sends: a VLAN's link, the ports of a bridge or bond."""

    def attached(self, netns: int, device: str) -> Attached:
        """Return what is attached to a device that cannot be read."""

    def policies(self, netns: int) -> tuple[XfrmPolicy, ...]:
        """Return the namespace's XFRM policies, in the order of evaluation."""

    def bridge_port(self, bridge: str, mac: bytes) -> Forwarding | None:
        """Return the FDB entry that the host's bridge has for the MAC."""

    def tunnels(self) -> tuple[Wire, ...]:
        """Return the host's devices that encapsulate."""

    def remote(self, device: str, mac: bytes, address: bytes) -> bytes:
        """Return the underlay address to which a tunnel sends: by a VXLAN's FDB, or a helper's table; b'' without."""

    def exit(self, source: bytes) -> bytes:
        """Return the underlay address to which a helper sends what leaves to the outside from a source; b'' without."""

    def secured(self, address: bytes) -> Secured | None:
        """Return what the host's encrypting device does with an address, None if no peer of it has it."""

    def associated(self, address: bytes, spi: str = "") -> Associated | None:
        """Return the ESP associations that reach an address, or those that receive this SPI."""

    def answering(self, netns: int, device: str, source: bytes, address: bytes) -> bytes | None:
        """Ask on the link who has an address, and return its MAC (b'' on links without); None if nobody answers."""

    def passing(self, source: bytes, target: bytes, sizes: Iterable[int]) -> Passed:
        """Ping from the host with packets of these sizes, unfragmented, and return which passed."""

    def setting(self, netns: int, path: str) -> str:
        """Return a kernel setting, '' if it does not exist."""

    def chains(self, netns: int) -> tuple[Chain, ...]:
        """Return the namespace's nftables chains, except those of iptables' tables."""

    def holds(self, netns: int, chain: Chain, name: str, key: tuple[str, ...]) -> bool:
        """Return whether a set or map of the chain's table has a key. Raises KernelError if it cannot be asked."""

    def elements(self, netns: int, chain: Chain, name: str) -> Sequence[Any]:
        """Return the elements of a set of the chain's table, as nft lists them in JSON. Raises KernelError."""

    def mapping(self, netns: int, chain: Chain, name: str) -> Sequence[Any]:
        """Return a map's pairs of key and data, as nft lists them in JSON. Raises KernelError."""

    def iptables(self, netns: int, family: int) -> tuple[IptablesTable, ...]:
        """Return the namespace's tables of iptables, of both variants."""

    def listens(self, netns: int, packet: Packet) -> bool:
        """Return whether a socket in the namespace listens for the packet; always for protocols without ports."""


def client_ports(asked: KernelView, netns: int) -> Span:
    """Return the ports from which a namespace chooses one for a client (ip-sysctl, ip_local_port_range)."""
    first, _, last = asked.setting(netns, "net/ipv4/ip_local_port_range").partition("\t")
    return (int(first), int(last)) if first and last else (0, 0)
