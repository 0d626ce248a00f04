"""IPsec backend (RFC 4301): ESP encrypts and authenticates packets between hosts; IKEv2 agrees on the keys.

A packet's walk, container A on host 1 to B (10.244.2.9) on host 2, if the kernel has ESP:

1. A's default route leads to the host end of its veth; host 1 looks up a *route*: 10.244.2.0/24 dev lsipsec, ``encap
   xfrm if_id`` host 2's number, src host 1's own address in the network.
2. lsipsec is the one XFRM interface of all peers; the if_id finds the *policy* and the pair of ESP associations with
   host 2, whose outer addresses are the hosts' underlay addresses. Packets leave as protocol 50, or in UDP port 4500
   if a NAT is in between.
3. On host 2 the association's SPI finds the key, and the kernel drops packets that are forged or replayed. A packet
   comes out of lsipsec with a *mark* that identifies its peer, and the guard admits it only if mark and source
   belong together (the sets ``marks``). A /32 route leads to B's veth.

If the kernel has no ESP, strongSwan's daemon encrypts in user space (kernel-libipsec): packets pass its TUN,
``ipsec0``, and always use UDP port 4500. Its policies have only addresses, so there is a child association
for each pair of an own prefix and one of the peer's. A packet with another source matches no association, and
is dropped. A peer has at most PAIRS of them. Both kinds of host work together: if one of two encrypts in user
space, both use pairs.

A peer costs a connection and a child association (in user space: one for each pair), and a route and a set
element for each prefix. Nothing else changes on other hosts.

Identity: a certificate with the host's name (subjectAltName) from an authority that all trust, or one key
that all hosts share. With certificates a compromised host can send from its own blocks only, and a revocation
list shuts it out. With a shared key it can claim any name. Secrets are files; settings and states have paths,
never contents.

The daemon is an instance of our own, with its configuration, control socket and log in the state folder. It
outlives the agent, renews keys and reconnects to silent peers by itself. Without the daemon no packet leaves:
XFRM has no associations, or the TUN is gone with its routes (``core/seal.py`` has the rest).

Overhead: an ESP packet in UDP over IPv4 has 20 (IPv4) + 8 (UDP) + 8 (ESP) + 8 (IV) + 16 (ICV) + at most 5
bytes of padding. The backend subtracts 100, because the daemon's TUN takes 1400 bytes at most, and all hosts
of a network have one MTU.

Rejected: an XFRM interface for each peer (as many devices as hosts); policies without an interface (inner
packets are routed by the underlay's device, and a policy that is missing means in clear); transport mode over
a tunnel of another backend (libipsec cannot); Libreswan and racoon2 (the first has no vici, the second no
maintained IKEv2).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping

from linkspan.backends.ipsec import strongswan_config
from linkspan.backends.ipsec.settings import identity, settings
from linkspan.backends.multi_host import (
    admitted,
    network_states,
    offered,
    own,
    own_addresses,
    reached,
    sent_to,
    tunnel_sysctls,
    underlay,
)
from linkspan.backends.routed import RoutedBackend
from linkspan.core import seal
from linkspan.core.addresses import FAMILIES, Prefix, prefix, whole
from linkspan.core.errors import Unavailable
from linkspan.core.host_view import Facts, HostView, Peer
from linkspan.core.model import Host, Lease, Network
from linkspan.core.needs import Need
from linkspan.core.ruleset import element
from linkspan.core.states.host import Route, State
from linkspan.core.states.ipsec import (
    ANYWHERE,
    CHARON,
    IKE_PORTS,
    PREFIX,
    IpsecChild,
    IpsecConnection,
    IpsecCredential,
    IpsecLink,
    Strongswan,
)
from linkspan.core.states.programs import File, Process

KERNEL, USER = "lsipsec", "ipsec0"
"""The device: the kernel's, or the one that the daemon makes, which it names itself."""
PAIRS = 64
"""Child associations with one peer in user space: each is negotiated on its own, 64 take a second (measured)."""
TUN_MTU = 1400
"""Bytes: TUN_DEFAULT_MTU of strongSwan's kernel-libipsec plugin; it reads at most this at once."""
OVERHEAD = 100
RULE, TABLE = 40000, 76
"""Rule and table of the daemon's own routes in user space: looked up after every table that matters."""


class IpsecBackend(RoutedBackend):
    """One daemon and one device for all networks."""

    name = "ipsec"
    summary = "IPsec: a container's packet goes to the other host encrypted, in ESP"
    overhead: Mapping[int, int] = {4: OVERHEAD, 6: OVERHEAD}
    encrypts = True
    no_exit = "its associations are for the addresses of containers"
    has_settings = True
    programs: tuple[tuple[str, str], ...] = (("charon-systemd", "charon-systemd"),)

    def check_settings(self, host: Host) -> None:
        """Check the settings by which the host proves its identity. Raises Invalid."""
        settings(host)

    def announce(self, view: HostView, network: Network) -> Mapping[str, str]:
        """Return the address of this host's daemon, and what encrypts."""
        here = underlay(view, network)
        address = here.address(here.outer)
        if address is None:
            raise Unavailable(
                f"network {network.name}: the underlay {here.ifname} has no address", "give it an address"
            )
        # In a migration this host predicts another host's announcement without knowing its facts.
        found = view.facts.program(Strongswan)
        return {"address": address.address, "by": "kernel" if found is not None and found.kernel else "user"}

    def check_offer(self, lease: Lease, offer: Mapping[str, str]) -> None:
        """Accept only an offer with the address of the host's daemon."""
        sent_to(offer, "address")

    def lacks(self, facts: Facts) -> str:
        """Return that strongSwan's daemon encrypts in user space if the kernel has no ESP."""
        found = facts.program(Strongswan)
        return "ESP" if found is not None and not found.kernel else ""

    def host(self, view: HostView) -> Iterable[State]:
        """Return the daemon, its device, and this host's credentials."""
        served = [network for network in view.networks if _serves(network)]
        if not served:
            return
        found, here = _daemon(view, served[0]), underlay(view, served[0])
        assert view.host is not None
        conf = f"{found.folder}/{strongswan_config.CONF}"
        text = strongswan_config.main(found.folder, user_space=not found.kernel, rule=RULE, table=TABLE)
        yield File(conf, text.encode(), 0o600)
        yield Process(CHARON, ("/usr/bin/env", f"STRONGSWAN_CONF={conf}", found.daemon), files=(conf,))
        mtu = here.mtu - OVERHEAD
        yield IpsecLink(
            _device(view), mtu if found.kernel else min(mtu, TUN_MTU), "" if found.kernel else CHARON
        )
        yield from (IpsecCredential(kind, path) for kind, path in identity(view.host).credentials())

    def network(self, view: HostView, network: Network) -> Iterable[State]:
        """Return the states on the device: own addresses, settings, and the permission to leave by it.

        They are the same if this host cannot have the daemon (now), so that a closed network stays closed.
        """
        device = _device(view)
        yield from network_states(view, network)
        yield from seal.encrypting(device)
        yield from tunnel_sysctls(device, network)
        yield from own_addresses(view, network, device)
        if network.internal:
            yield element("internal_links", device)

    def peer(self, view: HostView, network: Network, peer: Peer) -> Iterable[State]:
        """Return the connection with its children, the routes, and what admits the peer's packets."""
        connection = _connection(view, network, peer)
        device, mark = _device(view), connection.mark
        targets = list(reached(peer))
        yield connection
        yield from _children(view, network, peer, connection.name, targets)
        for target in targets:
            if mark:
                exact = "_exact" if target.length == len(target.packed) * 8 else ""
                yield element(f"marks{exact}{target.family}", str(mark), target.address)
            else:
                yield admitted("ways", (device,), target)
            yield Route(target, device, source=own(view, network, target.family), if_id=mark)

    def needs(self, view: HostView, network: Network, peer: Peer) -> Iterable[Need]:
        """Return that IKE's ports reach the peer; of hosts behind a NAT only the associations show that."""
        address = _far(view, network, peer)
        if _hidden(view, peer) != (False, False):
            return
        source = underlay(view, network).bound(address.family)
        fix = "let UDP ports 500 and 4500 and IP protocol 50 pass between the hosts (firewalls, security groups)"
        for port in IKE_PORTS:
            what = f"UDP port {port} (IKE)"
            yield Need(what, "udp", source, address.packed, 576, fix, port, from_port=True, inside=_for_nobody)


def _for_nobody(_left: int) -> bytes:
    """Return a packet that every daemon drops unread: a NAT keepalive (RFC 3948 section 2.3)."""
    return b"\xff"


def name(host: str) -> str:
    """Return the daemon's name of the connection with a host."""
    return f"{PREFIX}{host}"


def _device(view: HostView) -> str:
    found = view.facts.program(Strongswan)
    return KERNEL if found is not None and found.kernel else USER


def _daemon(view: HostView, network: Network) -> Strongswan:
    """Return strongSwan's daemon. Raises Unavailable if this host cannot have it."""
    found = view.facts.program(Strongswan)
    if found is None:
        raise Unavailable(
            f"network {network.name}: backend ipsec needs strongSwan, and this host has none",
            "install the packages charon-systemd and strongswan-swanctl (their service is not needed, and may be off)",
        )
    if not found.kernel and not found.plugin:
        raise Unavailable(
            f"network {network.name}: the kernel has no XFRM interfaces, and strongSwan no plugin kernel-libipsec",
            "install the package libcharon-extra-plugins, or a kernel with CONFIG_XFRM_INTERFACE",
        )
    for port, who in found.holders:
        raise Unavailable(
            f"network {network.name}: UDP port {port}, which IKE needs, is in use by {who}",
            "stop that program: two IKE daemons cannot share a host's ports",
        )
    return found


def _far(view: HostView, network: Network, peer: Peer) -> Prefix:
    """Return the address of the peer's daemon. Raises Unavailable if this host cannot send there."""
    address = prefix(offered(network, peer, IpsecBackend.name)["address"])
    outer = underlay(view, network).outer
    if address.family != outer:
        raise Unavailable(
            f"host {peer.host.name} receives IPsec at {address.address}, and this host sends by IPv{outer}",
            f"give it an underlay address of IPv{outer}",
        )
    return address


def _connection(view: HostView, network: Network, peer: Peer) -> IpsecConnection:
    assert view.host is not None
    far, mine = _far(view, network, peer), identity(view.host)
    kernel = _daemon(view, network).kernel
    here_hidden, there_hidden = _hidden(view, peer)
    if here_hidden and there_hidden:
        raise Unavailable(
            f"host {peer.host.name} and this host are both behind a NAT, and IPsec cannot use a third host",
            "make one of them reachable (--advertise ADDR, UDP ports 500 and 4500), or use backend wireguard",
        )
    return IpsecConnection(
        name=name(peer.host.id),
        local=Prefix(underlay(view, network).bound(far.family), len(far.packed) * 8).address,
        remote=ANYWHERE if there_hidden else far.address,
        me=view.host.name,
        peer=peer.host.name,
        shared=mine.shared,
        strict="crl" in mine.files,
        first=here_hidden or (not there_hidden and view.host.id < peer.host.id),
        rekey=mine.rekey,
        probe=mine.probe,
        encapsulated=not kernel,
        mark=_mark(peer.host.id) if kernel else 0,
    )


def _hidden(view: HostView, peer: Peer) -> tuple[bool, bool]:
    """Return whether this host is behind a NAT that lets nobody in, and whether the peer is."""
    mine, theirs = view.host.underlay if view.host is not None else None, peer.host.underlay
    return mine is not None and mine.hidden, theirs is not None and theirs.hidden


def _mark(host: str) -> int:
    """Return a peer's number, unique on this host; of 31 bits, so that no tool reads it as negative."""
    return int.from_bytes(hashlib.blake2b(host.encode(), digest_size=4).digest(), "big") >> 1 or 1


def _children(
    view: HostView, network: Network, peer: Peer, connection: str, targets: Iterable[Prefix]
) -> Iterator[IpsecChild]:
    """Yield the pairs to encrypt: one for everything if both kernels can, else each pair of prefixes."""
    families = sorted({pool.family for pool in network.prefixes})
    if _daemon(view, network).kernel and offered(network, peer, IpsecBackend.name).get("by") == "kernel":
        yield from (IpsecChild(connection, whole(family), whole(family)) for family in families)
        return
    pairs = [
        IpsecChild(connection, here, there)
        for family in FAMILIES
        for here in _mine(view, network)
        for there in targets
        if here.family == there.family == family
    ]
    if len(pairs) > PAIRS:
        raise Unavailable(
            f"host {peer.host.name} and this host have {len(pairs)} pairs of prefixes in network {network.name}, "
            f"and IPsec in user space takes at most {PAIRS}",
            "use a kernel with CONFIG_XFRM_INTERFACE, larger blocks (--subnet-len), or fewer exact addresses",
        )
    yield from pairs


def _mine(view: HostView, network: Network) -> list[Prefix]:
    """Return all prefixes of this host: blocks, exact addresses, and its own address if it is outside them."""
    lease = view.lease(network.name)
    if lease is None:
        return []
    found = dict.fromkeys(
        [*lease.blocks, *(address for where, address in view.exact if where == network.name)]
    )
    for address in (prefix(text).single() for text in lease.addresses):
        if not any(one.holds(address) for one in found):
            found[address] = None
    return list(found)


def _serves(network: Network) -> bool:
    """Return whether the network uses the daemon, now or at the end of its migration."""
    ways = (network.backend, network.migration.backend if network.migration else "")
    return IpsecBackend.name in ways


BACKEND = IpsecBackend()
