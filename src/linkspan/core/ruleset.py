"""Ruleset of nftables, fixed for all networks: networks and containers are elements of its sets.

One more container is one more element and no new rule, so a packet's cost does not grow with their number.

    bridge linkspan   prerouting: a frame from a container's port must have its MAC and addresses
                      input: frames to the bridge itself (802.1D's addresses) skip prerouting, and are dropped here
    inet linkspan     guard        prerouting: by the name of the link to ``ours``, and from there to
                      routed       packets of a routed endpoint: its MAC and addresses, no loopback address
                      admitted     packets with a verified source: containers reach no part of the control plane
                      closed       after a translation: packets of a container; and ``refused``, those to the
                                   control plane
                      tunnels      packets out of a tunnel: from a pool, by a way of the peer that has it
                      fromN_LEN    packets from other hosts with a pool's source: only by its host's ways
                      forward      isolation between networks, internal networks
                      outwards     packets to tunnel and BGP ports: not out of a pool
                      outsiders    only if linkspan enabled forwarding: drops what the host did not forward before
                      input        what reaches the host itself
                      tunnelled    tunnel packets are accepted from peers only
                      errors       ICMP errors of containers: only about their own flows
                      asked        containers' queries to the host's resolvers go to their network's server;
                                   queries of a container in several networks go to a server of all of these
                      named        a network's names are answered to its own containers and to the host
                      viewed       names of several networks, to containers in all of them and to the host
                      counted      limits queries of each container; apart, because a kernel may lack ``ct count``
                      internal     what an internal network may use of the host
                      publish      published ports (DNAT), for the host's own packets
                      incoming     the same for incoming packets: some ports only from some sources (``limits``)
                      postrouting  masquerade
                      chosen, translated, leaving   only with egress addresses: what leaves their networks does
                                   so by the host that holds the address (``egress.py``)
                      sealed, sealed_in   only with encrypted networks: none of their packets leaves in clear, or is
                                   accepted in clear (``seal.py``)

Every packet pays for these rules, so each packet passes few: a chain for each kind of link, the cheapest test
first, and one lookup of (link, MAC, address) for a sender. Rules that few packets need are in a chain behind
one lookup, for both families together. Even an empty base chain costs each packet about as much as a lookup.
``forward`` accepts established flows before it looks up isolation; the guard has checked each of their packets
by then. Neither may come before the rules that keep containers from peers' tunnel ports: a flow could be older
than the peer.

Packets from another host with a pool's address as source are looked up by that address. The map ``sources``
leads from the pool to the chain for its network's block length (or to drop, where the pool does not cross
hosts). There the source, cut to the block, must be in ``ways`` with its input device (IPIP), in ``stations``
with the device and the peer's MAC (plain routes), or in ``vteps`` with the device and the VTEP's MAC (VXLAN:
the MAC identifies the peer; the device is that of the pool's network, or of an allowed one). Which devices
have VTEPs, and which tell peers by marks, their kinds declare (``Admission``). Addresses outside their host's
blocks are in the ``_exact`` variants of these sets. Packets that a gateway has checked (SDN) arrive on the
underlay with the gateway's MAC; both together are in ``gateways``. So all of these are plain hash sets: to
remove one of 4,000 elements from a set with ``flags interval`` takes 50 ms (measured).

The control plane (the store, the switches, what ``HostView.control`` names) is closed to containers where a
packet comes in, so before another program's DNAT sends it elsewhere, and again after that, because a DNAT may
lead to it. For the first, whatever the guard admits goes to the chain ``admitted``. Both check every packet,
because a connection may be older than the knowledge of the store. A store on this host is closed at each
address of the host, ``control_here``. No published port may replace an address of the control plane: a
container would then answer agents instead of it.

The sets of tunnels' outer addresses apply to a protocol's port as a whole: another program's VXLAN on this
machine needs a port of its own.

A ``drop`` is final whatever other tables say; an ``accept`` ends only the chain that it is in.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from linkspan.core.addresses import BITS, FAMILIES, GATEWAY_MAC, Prefix, prefix
from linkspan.core.host_view import Facts, HostView
from linkspan.core.kinds import Admission, Kinds
from linkspan.core.states.host import GROUP, NftChain, NftElement, NftSet, NftTable, State

INET, BRIDGE, TABLE = "inet", "bridge", "linkspan"
_IP = {4: "ip", 6: "ip6"}
_TYPE = {4: "ipv4_addr", 6: "ipv6_addr"}
_NFPROTO = {4: "ipv4", 6: "ipv6"}
_LOOPBACK = {4: "127.0.0.0/8", 6: "::1"}
_REJECT = "reject with icmpx admin-prohibited"

_QUESTIONS = "th dport 53 meta l4proto { tcp, udp }"
"""The port first, because it decides for most packets; packets without ports fail by the protocol."""

VIEW_PORTS = range(61440, 1 << 16)
"""Ports of the servers of several networks: above those that Linux gives to clients (ip_local_port_range ends
at 60999)."""
_VIEWS = f"th dport >= {VIEW_PORTS.start} meta l4proto {{ tcp, udp }}"

_AT_ONCE = 8
"""Queries by TCP that a container may have open: a server accepts 20 (MAX_PROCS in dnsmasq's config.h) in total."""
_RATE, _BURST = 10000, 5000
"""Queries by UDP per second and per burst for a container; one server answers 14,000 even on a busy machine."""
_REMEMBERED = 60
"""Seconds for which the rate of a container is remembered."""

_TUNNEL = "meta l4proto . th dport"
"""Key of a tunnel that has a port.

``tunnel_ports`` are the ports at which this host receives, ``tunnel_peers`` those who may send there. IPIP has no
port, and the bytes in that place differ from packet to packet: it has sets of its own.
"""

FROM_HOLDER = 0x4C540000
"""Mark of what a host that holds an egress address sends to the kernel's IPIP device, until the guard has seen it."""

_ADMIT = "goto admitted"
"""Instead of ``accept``, for every packet whose source the guard has verified."""

_CONTROL = "tcp dport @control_ports jump closed"
"""The port first: it excludes all but a few packets."""

_ERRORS = {
    4: "destination-unreachable, redirect, time-exceeded, parameter-problem",
    6: "destination-unreachable, packet-too-big, time-exceeded, parameter-problem",
}
_RESERVED = "01:80:c2:00:00:00-01:80:c2:00:00:0f"
"""IEEE 802.1D, table 7-10: addresses that no bridge forwards."""

_MANY = ("broadcast", "anycast", "multicast")
"""Types of addresses that a process of the host receives at, too, in nft's order: a limited port is closed there."""
_INCOMING = f"fib daddr type vmap {{ local : jump incoming, {', '.join(f'{kind} : jump limits' for kind in _MANY)} }}"

_NO_LOOPBACK = "ip daddr 127.0.0.0/8 drop"
"""With route_localnet on, a container could reach what listens on the host's 127.0.0.1 (CVE-2020-8558)."""


def skeleton(facts: Facts, kinds: Kinds) -> Iterable[State]:
    """Return both tables with their sets and chains; ``kinds`` has the names of our links."""
    yield from (NftTable(INET, TABLE), NftTable(BRIDGE, TABLE))
    yield from _sets()
    yield _chain(INET, "tunnels", "", [*_by_source(), *_by_exit(), "drop"])
    yield _chain(INET, "routed", "", _routed())
    yield _chain(INET, "ours", "", _ours(kinds))
    yield _chain(INET, "guard", "type filter hook prerouting priority raw; policy accept;", _guard(kinds))
    yield _chain(INET, "admitted", "", ["tcp dport @control_ports jump refused", "accept"])
    yield _chain(INET, "refused", "", _refused())
    yield _chain(INET, "closed", "", _closed(kinds))
    closed = [family for family in FAMILIES if family not in facts.forwarding]
    if closed:
        yield _chain(INET, "outsiders", "", _outsiders(closed))
        yield from (element(f"closed{family}", link) for family, link in facts.closed_links)
        yield from (element(f"old{family}", link) for family, link in facts.old_links)
        yield from (element("within", link, link) for link in facts.bridges)
    hook = "type filter hook forward priority filter; policy accept;"
    yield _chain(INET, "outwards", "", _outwards())
    yield _chain(INET, "forward", hook, _forward(closed=bool(closed)))
    yield _chain(INET, "errors", "", _errors())
    yield _chain(INET, "internal", "", _internal())
    yield _chain(INET, "named", "", _named())
    yield _chain(INET, "viewed", "", _viewed())
    yield _chain(INET, "asked", "", _asked())
    yield _chain(INET, "tunnelled", "", _tunnelled())
    yield _chain(INET, "input", "type filter hook input priority filter; policy accept;", _input())
    yield _chain(INET, "counted", "type filter hook input priority filter + 1; policy accept;", _counted())
    kept, limits, led = ([rule for family in FAMILIES for rule in of(family)] for of in (_kept, _limits, _led))
    yield _chain(INET, "publish", "", [*kept, *led])
    yield _chain(INET, "limits", "", limits)
    yield _chain(INET, "incoming", "", [*kept, "jump limits", *led])
    for name in ("prerouting", "output"):
        # At ``output`` nft 1.0.6 (Debian 12) does not know the name of this priority.
        hook = f"type nat hook {name} priority {'-100' if name == 'output' else 'dstnat'}; policy accept;"
        # Another host was responsible for what arrives by a tunnel: packets of its own containers, or its
        # server's queries.
        links = ("ls-*", "lsr*") if name == "prerouting" else ()
        asked = [f'iifname "{link}" {_QUESTIONS} jump asked' for link in links]
        # A translated ::1 would get no answer: the kernel accepts it only on lo, and has no route_localnet
        # for IPv6.
        loopback = ["ip6 daddr ::1 return"] if name == "output" else []
        ports = "fib daddr type local jump publish" if name == "output" else _INCOMING
        late = _late() if name == "output" else []
        yield _chain(INET, name, hook, [*asked, *late, *loopback, ports])
    hook = "type nat hook postrouting priority srcnat; policy accept;"
    yield _chain(INET, "postrouting", hook, _postrouting())
    yield _chain(BRIDGE, "port", "", _port())
    # -300 is NF_BR_PRI_NAT_DST_BRIDGED (linux/netfilter_bridge.h), which nft calls dstnat in this family.
    hook = "type filter hook prerouting priority dstnat; policy accept;"
    yield _chain(BRIDGE, "guard", hook, ['iifname "lsp*" jump port'])
    # Frames to these addresses skip prerouting, and a bridge learns from them, too.
    hook = "type filter hook input priority filter; policy accept;"
    yield _chain(BRIDGE, "reserved", hook, [f'ether daddr {_RESERVED} iifname "lsp*" drop'])


def _chain(family: str, name: str, hook: str, rules: Iterable[str]) -> NftChain:
    return NftChain(family, TABLE, name, hook, tuple(rules))


def _sets() -> Iterable[NftSet]:
    for table in (INET, BRIDGE):
        yield NftSet(table, TABLE, "macs", "ifname . ether_addr")
        for family in FAMILIES:
            yield NftSet(table, TABLE, f"senders{family}", f"ifname . ether_addr . {_TYPE[family]}")
    yield NftSet(INET, TABLE, "internal_links", "ifname")
    yield NftSet(INET, TABLE, "within", "ifname . ifname")
    yield NftSet(INET, TABLE, "tunnel_ports", "inet_proto . inet_service")
    yield NftSet(INET, TABLE, "speaker_ports", "inet_service")
    for name in ("gateways", "egress_ways"):
        yield NftSet(INET, TABLE, name, "ifname . ether_addr")
    for name in ("control_ports", "control_here"):
        yield NftSet(INET, TABLE, name, "inet_service")
    yield NftSet(INET, TABLE, "egress_tunnels", "ifname . mark")
    for name in ("ipip_local", "ipip_peers", "ipip_holders"):
        yield NftSet(INET, TABLE, name, _TYPE[4])
    for family in FAMILIES:
        type_ = _TYPE[family]
        for name in ("pools", "masquerade", "internal", "egress_nets"):
            yield NftSet(INET, TABLE, f"{name}{family}", type_, interval=True)
        yield NftSet(INET, TABLE, f"sources{family}", type_, "verdict", interval=True)
        for exact in ("", "_exact"):
            yield NftSet(INET, TABLE, f"vteps{exact}{family}", f"ifname . ether_addr . {type_}")
            yield NftSet(INET, TABLE, f"stations{exact}{family}", f"ifname . ether_addr . {type_}")
            yield NftSet(INET, TABLE, f"ways{exact}{family}", f"ifname . {type_}")
            yield NftSet(INET, TABLE, f"marks{exact}{family}", f"mark . {type_}")
        yield NftSet(INET, TABLE, f"tunnel_peers{family}", f"{type_} . inet_proto . inet_service")
        yield NftSet(INET, TABLE, f"control{family}", f"{type_} . inet_service")
        for name in ("closed", "old"):
            yield NftSet(INET, TABLE, f"{name}{family}", "ifname")
        for name in ("bgp_peers", "servers", "resolvers", "forwarders"):
            yield NftSet(INET, TABLE, f"{name}{family}", type_)
        yield NftSet(INET, TABLE, f"asking_tcp{family}", type_, dynamic=True)
        yield NftSet(INET, TABLE, f"asking_udp{family}", type_, dynamic=True, timeout=_REMEMBERED)
        yield NftSet(INET, TABLE, f"asking{family}", f"{type_} . {type_}", interval=True)
        yield NftSet(INET, TABLE, f"server_of{family}", type_, type_, interval=True)
        yield NftSet(INET, TABLE, f"view_of{family}", type_, f"{type_} . inet_service")
        yield NftSet(INET, TABLE, f"views{family}", f"{type_} . inet_service")
        yield NftSet(INET, TABLE, f"viewing{family}", f"{type_} . {type_} . inet_service")
        yield NftSet(INET, TABLE, f"allowed{family}", f"{type_} . {type_}", interval=True)
        yield NftSet(
            INET,
            TABLE,
            f"allowed_ports{family}",
            f"{type_} . {type_} . inet_proto . inet_service",
            interval=True,
        )
        target = f"{type_} . inet_service"
        yield NftSet(INET, TABLE, f"publish{family}", "inet_proto . inet_service", target)
        yield NftSet(INET, TABLE, f"publish_at{family}", f"{type_} . inet_proto . inet_service", target)
        for at in ("", f"{type_} . "):
            name, port = f"{'_at' if at else ''}{family}", f"{at}inet_proto . inet_service"
            yield NftSet(INET, TABLE, f"limited{name}", port)
            yield NftSet(INET, TABLE, f"permitted{name}", f"{type_} . {port}", interval=True)


def _guard(kinds: Kinds) -> Iterable[str]:
    yield 'iifname "ls*" jump ours'
    for name in _outside(kinds):
        yield f'iifname "{name}" iifgroup {GROUP} goto tunnels'  # by name as well: others may use the group
    yield 'iifname "lo" accept'
    yield from _by_source()


def _by_source() -> Iterable[str]:
    yield from (f"{_IP[family]} saddr vmap @sources{family}" for family in FAMILIES)


def _by_exit() -> Iterable[str]:
    # Answers from outside, by the host through which their network leaves (``egress``).
    for family in FAMILIES:
        for by in ("ether saddr @egress_ways", "meta mark @egress_tunnels"):
            yield f"iifname . {by} {_IP[family]} daddr @egress_nets{family} {_ADMIT}"


def _outside(kinds: Kinds) -> list[str]:
    """Return the names of devices that encrypt whose name is not ours to choose."""
    return [name for name in kinds.grouped_tunnels if not name.startswith("ls")]


def _ours(kinds: Kinds) -> Iterable[str]:
    yield 'iifname "lsr*" goto routed'
    yield from (f'iifname "{name}" goto tunnels' for name in kinds.plain_tunnels)
    for link in (name for name in kinds.grouped_tunnels if name.startswith("ls")):
        yield f'iifname "{link}" iifgroup {GROUP} goto tunnels'
        yield f'iifname "{link}" drop'  # another program's
    # A port's frames arrive on its bridge; a port that was removed from it must not become a routed link
    # without a guard.
    yield 'iifname "lsp*" drop'
    yield f'iifname "ls-*" {_NO_LOOPBACK}'
    yield f'iifname "ls-*" {_ADMIT}'


def _routed() -> Iterable[str]:
    yield _NO_LOOPBACK
    yield "iifname . ether saddr . ip saddr != @senders4 drop"
    yield f"meta nfproto ipv4 {_ADMIT}"
    yield "ip6 saddr :: iifname . ether saddr != @macs drop"
    yield "ip6 saddr != :: iifname . ether saddr . ip6 saddr != @senders6 drop"
    yield "icmpv6 type { nd-router-advert, nd-redirect } drop"
    yield _ADMIT


def control(view: HostView) -> Iterable[State]:
    """Return the elements that close the control plane to containers."""
    for address, port in view.control:
        yield element(f"control{prefix(address).family}", address, str(port))
    for port in view.control_here:
        yield element("control_here", str(port))
    for port in sorted({port for _, port in view.control} | set(view.control_here)):
        yield element("control_ports", str(port))


def _closed(kinds: Kinds) -> Iterable[str]:
    yield 'iifname "lo" return'  # the host's own, perhaps with a gateway's address as source
    yield 'iifname "ls*" jump refused'
    yield from (f'iifname "{name}" iifgroup {GROUP} jump refused' for name in _outside(kinds))
    yield from (f"{_IP[family]} saddr @pools{family} jump refused" for family in FAMILIES)


def _refused() -> Iterable[str]:
    for family in FAMILIES:
        yield f"{_IP[family]} daddr . tcp dport @control{family} reject with tcp reset"
    yield "tcp dport @control_here fib daddr type local reject with tcp reset"


def _forward(*, closed: bool) -> Iterable[str]:
    yield f"ct status dnat {_CONTROL}"
    yield f"{_TUNNEL} @tunnel_ports jump outwards"
    yield "tcp dport @speaker_ports jump outwards"
    yield "@nh,72,8 0x4 ip daddr @ipip_peers ip saddr @pools4 drop"
    yield "ct state established,related accept"
    if closed:
        yield 'iifname != "ls*" oifname != "ls*" jump outsiders'
    for family in FAMILIES:
        ip = _IP[family]
        # With br_netfilter a bridge's own multicast passes here (a neighbour solicitation!), in and out by the bridge.
        out, into = "oifname != @internal_links", "iifname != @internal_links"
        yield f"{out} {ip} saddr @internal{family} {ip} daddr != @pools{family} {_REJECT}"
        yield f"{into} {ip} daddr @internal{family} {ip} saddr != @pools{family} {_REJECT}"
        yield f"{ip} saddr . {ip} daddr @allowed{family} accept"
        yield f"{ip} saddr . {ip} daddr . meta l4proto . th dport @allowed_ports{family} accept"
        # A published port belongs to the host: an internal network does not reach it, everybody else does.
        yield f"{ip} saddr @internal{family} {ip} daddr @pools{family} {_REJECT}"
    yield "ct status dnat accept"
    for family in FAMILIES:
        ip = _IP[family]
        yield f"{ip} saddr @pools{family} {ip} daddr @pools{family} {_REJECT}"


def _outwards() -> Iterable[str]:
    # Masqueraded, a container's own tunnel packet (or BGP session) would reach a peer with the address of its
    # host. This holds for every destination: a peer accepts packets at each of its addresses, and this host
    # does not know all of them.
    for family in FAMILIES:
        leaving = f"{_IP[family]} saddr @pools{family} {_IP[family]} daddr != @pools{family}"
        yield f"{_TUNNEL} @tunnel_ports {leaving} drop"
        yield f"tcp dport @speaker_ports {leaving} drop"


def _outsiders(families: list[int]) -> Iterable[str]:
    # Between links that existed before: for links made later, other programs decide on forwarding.
    yield "iifname . oifname @within accept"  # a bridge's own frames, with br_netfilter
    for family in families:
        ip, between = _IP[family], f"iifname @closed{family} oifname @old{family}"
        yield f"{between} {ip} saddr != @pools{family} {ip} daddr != @pools{family} drop"


def crossing(pool: Prefix, length: int) -> NftElement:
    """Return the element that leads sources of a pool from other hosts to the chain for its blocks' length."""
    return element(f"sources{pool.family}", pool_text(pool), data=(f"jump {_chain_of(pool, length)}",))


def _chain_of(pool: Prefix, length: int) -> str:
    return f"from{pool.family}_{length}"


def admission(pool: Prefix, length: int, kinds: Kinds) -> NftChain:
    """Return the chain that admits sources of a pool from other hosts by their own ways; blocks have this length.

    It serves all networks with this length, so it has the ways of every backend.
    """
    family = pool.family
    source = f"{_IP[family]} saddr"
    mask = Prefix(b"\xff" * len(pool.packed), length).network().address
    block = () if length == BITS[family] else (f"{source} & {mask}",)
    gated = f"iifname . ether saddr @gateways {_ADMIT}"
    # Check the usual gateway's MAC first, which costs others next to nothing; any other gateway's comes last.
    rules = [f"ether saddr {GATEWAY_MAC} {gated}"]
    for name in kinds.admitting(Admission.VTEP):
        vtep = f'iifname "{name}" iifname . ether saddr'
        rules += [f"{vtep} . {part} @vteps{family} {_ADMIT}" for part in block]
        rules += [f"{vtep} . {source} @vteps_exact{family} {_ADMIT}", f'iifname "{name}" drop']
    rules += [f"iifname . ether saddr . {part} @stations{family} {_ADMIT}" for part in block]
    rules.append(f"iifname . ether saddr . {source} @stations_exact{family} {_ADMIT}")
    # Another program's: many IPsec daemons use such a name.
    rules += [f'iifname "{name}" iifgroup != {GROUP} drop' for name in _outside(kinds)]
    rules += [f"iifname . {part} @ways{family} {_ADMIT}" for part in block]
    rules.append(f"iifname . {source} @ways_exact{family} {_ADMIT}")
    for name in kinds.admitting(Admission.MARK):
        mark, clear = f'iifname "{name}" meta mark', f"meta mark set 0x00000000 {_ADMIT}"
        rules += [f"{mark} . {part} @marks{family} {clear}" for part in block]
        rules.append(f"{mark} . {source} @marks_exact{family} {clear}")
    return _chain(INET, _chain_of(pool, length), "", [*rules, gated, "drop"])


def _tunnelled() -> Iterable[str]:
    # Whatever the destination: a VXLAN socket accepts packets to any address of the host.
    for family in FAMILIES:
        yield f"{_IP[family]} saddr . {_TUNNEL} != @tunnel_peers{family} drop"
    yield "accept"


def _input() -> Iterable[str]:
    yield f"{_TUNNEL} @tunnel_ports jump tunnelled"
    yield f"ct status dnat {_CONTROL}"
    for family, icmp in ((4, "icmp"), (6, "icmpv6")):
        yield f"{icmp} type {{ {_ERRORS[family]} }} {_IP[family]} saddr @pools{family} jump errors"
    # Protocol 4 (RFC 2003) by its offset in the header: nft's name for it depends on /etc/protocols.
    yield "@nh,72,8 0x4 ip daddr @ipip_local ip saddr != @ipip_peers drop"
    yield f"@nh,72,8 0x4 ip saddr @ipip_holders meta mark set {FROM_HOLDER:#010x}"
    yield f"{_QUESTIONS} jump named"
    yield f"{_VIEWS} jump viewed"
    for ours in ('iifname "ls*"', f"iifgroup {GROUP}"):
        yield f"{ours} iifname @internal_links jump internal"


def _errors() -> Iterable[str]:
    # An error about a flow between hosts would reduce the path MTU to a peer to 552 bytes, for all
    # containers.
    for family in FAMILIES:
        yield f"ct original {_IP[family]} saddr @pools{family} return"
        yield f"ct reply {_IP[family]} saddr @pools{family} return"
    yield "drop"


def _internal() -> Iterable[str]:
    yield "ct state established,related accept"
    yield "meta l4proto { icmp, ipv6-icmp } accept"
    yield f"{_QUESTIONS} accept"
    yield _REJECT


def _named() -> Iterable[str]:
    yield 'iifname "lo" accept'
    for family in FAMILIES:
        ip = _IP[family]
        yield f"{ip} saddr . {ip} daddr @asking{family} accept"  # the guard has verified the source
        yield f"{ip} daddr @servers{family} {_REJECT}"


def _viewed() -> Iterable[str]:
    yield 'iifname "lo" accept'
    for family in FAMILIES:
        ip = _IP[family]
        yield f"{ip} saddr . {ip} daddr . th dport @viewing{family} accept"
        yield f"{ip} daddr . th dport @views{family} {_REJECT}"


def _counted() -> Iterable[str]:
    yield f"th dport < {VIEW_PORTS.start} th dport != 53 accept"
    yield 'iifname "lo" accept'
    for family in FAMILIES:
        ip = _IP[family]
        many = f"{_RATE}/second burst {_BURST} packets"
        open_ = f"add @asking_tcp{family} {{ {ip} saddr ct count over {_AT_ONCE} }}"
        by_udp = f"update @asking_udp{family} {{ {ip} saddr limit rate over {many} }}"
        for server in (f"th dport 53 {ip} daddr @servers{family}", f"{ip} daddr . th dport @views{family}"):
            yield f"{server} meta l4proto tcp ct state new {open_} reject with tcp reset"
            yield f"{server} meta l4proto udp {by_udp} drop"


def _asked() -> Iterable[str]:
    # If a runtime takes no server from a plugin, containers ask the host's resolvers: their network's server
    # answers instead. This excludes the resolvers that the server itself asks, at any length: a query would
    # go round in a loop.
    for family in FAMILIES:
        ip = _IP[family]
        view = f"meta l4proto {{ tcp, udp }} dnat {ip} to {ip} saddr map @view_of{family}"
        yield f"{ip} daddr @servers{family} {view}"
        yield from (f"{ip} saddr @{who}{family} return" for who in ("resolvers", "forwarders"))
        yield f"{ip} daddr @resolvers{family} {view}"
        yield f"{ip} daddr @resolvers{family} dnat {ip} to {ip} saddr map @server_of{family}"


def _late() -> Iterable[str]:
    # A server's answer begins a connection only if its question's is forgotten, because the client has another server
    # now. With it, whatever the client asks by that socket would belong to this connection, which is not redirected.
    yield from (f"udp sport 53 {_IP[family]} saddr @servers{family} drop" for family in FAMILIES)


def _kept(family: int) -> Iterable[str]:
    ip = _IP[family]
    # a container that publishes port 53 does not get these
    yield f"{ip} daddr @servers{family} {_QUESTIONS} accept"
    yield f"{ip} daddr . tcp dport @control{family} accept"
    # A port that was published before there was a speaker would let a container answer for its host.
    yield f"tcp dport 179 {ip} saddr @bgp_peers{family} accept"


def _limits(family: int) -> Iterable[str]:
    # Only a flow's first packet comes here. The host's own never do, whatever source they have.
    ip = _IP[family]
    for at, port in (("_at", f"{ip} daddr . meta l4proto . th dport"), ("", "meta l4proto . th dport")):
        yield f"{port} @limited{at}{family} {ip} saddr . {port} != @permitted{at}{family} {_REJECT}"


def _led(family: int) -> Iterable[str]:
    ip = _IP[family]
    yield f"dnat {ip} to {ip} daddr . meta l4proto . th dport map @publish_at{family}"
    yield f"dnat {ip} to meta l4proto . th dport map @publish{family}"


def _postrouting() -> Iterable[str]:
    for family in FAMILIES:
        ip = _IP[family]
        # The answer to a container that comes back in by a published port would bypass the host: by layer 2,
        # or to itself.
        yield f"ct status dnat {ip} saddr @pools{family} {ip} daddr @pools{family} masquerade fully-random"
        yield f"{ip} saddr {_LOOPBACK[family]} {ip} daddr @pools{family} masquerade fully-random"
        yield f'oifname != "ls*" {ip} saddr @masquerade{family} {ip} daddr != @pools{family} masquerade fully-random'


def _port() -> Iterable[str]:
    yield "iifname . ether saddr . ip saddr != @senders4 drop"
    yield "udp sport { 67, 547 } drop"
    yield "ether type ip accept"
    yield "iifname . ether saddr != @macs drop"
    yield "iifname . arp saddr ether != @macs drop"
    yield "arp saddr ip != 0.0.0.0 iifname . ether saddr . arp saddr ip != @senders4 drop"
    yield "ip6 saddr != :: iifname . ether saddr . ip6 saddr != @senders6 drop"
    # A host without an address may ask whether an address is free, for a router, and for multicast (RFC 4862,
    # RFC 3810).
    asked = "nd-router-solicit, nd-neighbor-solicit, mld2-listener-report"
    yield f"ip6 saddr :: icmpv6 type != {{ {asked} }} drop"
    yield "ip6 saddr :: meta l4proto != ipv6-icmp drop"
    yield "icmpv6 type { nd-router-advert, nd-redirect } drop"
    yield "icmpv6 type nd-neighbor-advert iifname . ether saddr . icmpv6 taddr != @senders6 drop"
    yield "ether type != { arp, ip6 } drop"


def tunnel_port(protocol: str, port: int) -> NftElement:
    """Return the element of a tunnel port: only peers reach it, and no container reaches a peer's."""
    return element("tunnel_ports", protocol, str(port))


def tunnel_peer(address: Prefix, protocol: str, port: int) -> NftElement:
    """Return the element by which a peer may send to a tunnel port from an address."""
    return element(f"tunnel_peers{address.family}", address.address, protocol, sys.intern(str(port)))


def element(name: str, *parts: str, data: tuple[str, ...] = (), table: str = INET) -> NftElement:
    """Return an element of one of our sets; a thousand peers have the set's name in memory once."""
    return NftElement(table, TABLE, sys.intern(name), parts, data)


def pool_text(pool: Prefix) -> str:
    """Return a pool as nft prints it: a /32 or /128 without its length."""
    return pool.address if pool.size == 1 else str(pool)
