"""Underlay of a lab: a switch with a bridge for each segment, what joins the segments, and a cable to each host.

One router with all routes joins the segments, or each segment has routers of its own (routers.py), which meet
on a link of theirs, the core: one more bridge of the switch.

All failures that `lab break` causes by rules are made here, in the lab's own table on switch and router. So
nothing that a user or a test does to a host's rules repairs or worsens them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from linkspan.core.addresses import derived_mac, mac_text
from linkspan.lab import commands, switches
from linkspan.lab.record import Host, Lab, Router
from linkspan.lab.topology import bare, behind, etcd_address, etcd_ports, families, gateways

CABLE = "eth0"
CORE, CORE_CABLE = "core", "eth1"
TABLE = "linkspan-lab"
PARTITION = "partition:"
STORE_CUT = "store-cut"
LEARNING = 32
"""Most hosts that learn each other's MACs: all namespaces share 1,024 entries for neighbours (gc_thresh3)."""


def segment(number: int) -> str:
    """Return the name of a segment's bridge."""
    return f"seg{number}"


def make(lab: Lab) -> None:
    """Make switch and router."""
    commands.add(lab.switch)
    # The machine's rules for bridged packets (bridge-nf-call) must not affect the underlay.
    quiet = "for f in /proc/sys/net/bridge/bridge-nf-call-*; do [ ! -e $f ] || echo 0 >$f; done"
    commands.run("sh", "-c", quiet, netns=lab.switch)
    numbers = range(1, lab.segments + 1)
    if lab.switches:
        switches.start(lab)
        commands.ip(lab.switch, _management(lab))
        return
    commands.ip(lab.switch, (line for number in numbers for line in _bridge(lab, number)))
    if lab.router:
        commands.add(lab.router)
        _forward(lab.router)
        commands.ip(lab.switch, (line for number in numbers for line in _router_cable(lab, number)))
        commands.ip(lab.router, (line for number in numbers for line in _router_end(lab, number)))
    if any(router.core for router in lab.routers):
        commands.ip(lab.switch, (f"link add {CORE} mtu {lab.mtu} type bridge", f"link set {CORE} up"))
    for router in lab.routers:
        _plug_router(lab, router)


def _management(lab: Lab) -> Iterator[str]:
    """Yield what connects etcd to the first switch."""
    if lab.store == "etcd":
        yield _address(etcd_address(lab, 1), switches.SPINE)
        yield f"link set {switches.SPINE} up"


def _bridge(lab: Lab, number: int) -> Iterator[str]:
    name = segment(number)
    yield f"link add {name} mtu {lab.mtu} type bridge"
    if lab.store == "etcd" and not lab.alone:
        yield _address(etcd_address(lab, number), name)
    yield f"link set {name} up"


def _router_cable(lab: Lab, number: int) -> Iterator[str]:
    port = f"router{number}"
    peer = f"peer name eth{number} mtu {lab.mtu} netns {lab.router}"
    yield f"link add {port} mtu {lab.mtu} type veth {peer}"
    yield f"link set {port} master {segment(number)} up"


def _router_end(lab: Lab, number: int) -> Iterator[str]:
    yield f"link set eth{number} up"
    for texts in gateways(lab, number):
        yield _address(texts[0], f"eth{number}")


def _forward(router: str) -> None:
    keys = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")
    commands.run("sysctl", "-qw", *(f"{key}=1" for key in keys), netns=router)


def _plug_router(lab: Lab, router: Router) -> None:
    """Make the namespace of a BGP speaker, and its cables into its segment and, if it forwards, the core."""
    commands.add(router.namespace)
    for device, bridge, addresses in (
        (CABLE, segment(router.segment), router.addresses),
        (CORE_CABLE, CORE, router.core),
    ):
        if addresses:
            port = router.name if device == CABLE else f"{router.name}-core"
            peer = f"peer name {device} mtu {lab.mtu} netns {router.namespace}"
            commands.ip(
                lab.switch,
                (f"link add {port} mtu {lab.mtu} type veth {peer}", f"link set {port} master {bridge} up"),
            )
            lines = [_address(text, device) for text in addresses]
            commands.ip(router.namespace, [*lines, f"link set {device} up"])
    if not router.reflector:
        # With two routers on each side, an answer may come by the other one.
        loose = ("net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0")
        commands.run("sysctl", "-qw", *loose, netns=router.namespace)
        _forward(router.namespace)


def _address(text: str, device: str) -> str:
    return f"addr replace {text} dev {device}{' nodad' if ':' in text else ''}"


def plug(lab: Lab, host: Host) -> None:
    """Make a host's namespace, and its cable into the switch."""
    commands.add(host.namespace)
    if 6 in families(lab):
        key = "net.ipv6.conf.{}.disable_ipv6=0"
        commands.run("sysctl", "-qw", *(key.format(x) for x in ("all", "default")), netns=host.namespace)
    if host.nat:
        _plug_nat(lab, host)
        connect(lab, host)
        return
    peer = f"peer name {CABLE} address {_mac(lab, host)} mtu {lab.mtu} netns {host.namespace}"
    master = "" if lab.switches else f" master {segment(host.segment)}"
    commands.ip(
        lab.switch,
        (f"link add {host.name} mtu {lab.mtu} type veth {peer}", f"link set {host.name}{master} up"),
    )
    if lab.switches:
        switches.plug(lab, host)
    connect(lab, host)


def _plug_nat(lab: Lab, host: Host) -> None:
    """Make the NAT before a host: it has the host's place on the segment, and lets nobody in."""
    commands.delete(host.nat)
    commands.add(host.nat)
    outer = f"peer name {CABLE} mtu {lab.mtu} netns {host.nat}"
    inner = f"peer name {CABLE} mtu {lab.mtu} netns {host.namespace}"
    port = (
        f"link add {host.name} mtu {lab.mtu} type veth {outer}",
        f"link set {host.name} master {segment(host.segment)} up",
    )
    commands.ip(lab.switch, port)
    ways = [f"via {bare(text)}" for texts in gateways(lab, host.segment) for text in texts[:1]]
    lines = [
        f"link add {CORE_CABLE} mtu {lab.mtu} type veth {inner}",
        *(_address(text, CABLE) for text in host.outside),
        _address(behind(host), CORE_CABLE),
        f"link set {CABLE} up",
        f"link set {CORE_CABLE} up",
        *(f"route replace default {way}" for way in ways),
    ]
    commands.ip(host.nat, lines)
    _forward(host.nat)
    masquerade = f'type nat hook postrouting priority srcnat; oifname "{CABLE}" masquerade fully-random'
    closed = f'type filter hook forward priority filter; iifname "{CABLE}" ct state new drop'
    chains = f"chain out {{ {masquerade}; }}\nchain in {{ {closed}; }}"
    commands.run("nft", "-f", "-", given=f"table ip {TABLE} {{\n{chains}\n}}\n", netns=host.nat)


def connect(lab: Lab, host: Host) -> None:
    """Set up a host's cable, its addresses and its route to the other segments."""
    lines = [f"link set {CABLE} up", *(_address(text, CABLE) for text in host.addresses)]
    if host.nat:
        lines.append(f"route replace default via {bare(behind(host))}")
    for texts in gateways(lab, host.segment) if not host.nat else ():
        ways = [f"via {bare(text)}" for text in texts]
        lines.append(
            f"route replace default {ways[0] if len(ways) == 1 else ' '.join(f'nexthop {w}' for w in ways)}"
        )
    lines += neighbours(lab, host)
    commands.ip(host.namespace, lines)


def neighbours(lab: Lab, host: Host) -> list[str]:
    """Return lines for ``ip -batch``: the others of a host's segment as permanent neighbours, if the hosts are many.

    The kernel's limit counts no permanent ones. A host behind a NAT learns its neighbours, and is learnt.
    """
    if len(lab.hosts) <= LEARNING or host.nat:
        return []
    others = [one for one in lab.hosts if one.segment == host.segment and one.name != host.name and not one.nat]
    return [
        f"neigh replace {bare(text)} lladdr {_mac(lab, other)} dev {CABLE} nud permanent"
        for other in others
        for text in other.addresses
    ]


def _mac(lab: Lab, host: Host) -> str:
    """Return the MAC of a host's cable: the same after a reboot, because its neighbours remember it."""
    return mac_text(derived_mac(lab.name, host.name))


def unplug(lab: Lab, host: Host) -> None:
    """Unplug a host's cable from the switch; one that is gone already is no error."""
    if commands.there(lab.switch):
        if lab.switches:
            switches.unplug(lab, host)
        commands.run("sh", "-c", f"ip link delete {host.name} 2>/dev/null || true", netns=lab.switch)


# Cuts


def put_cuts(lab: Lab) -> None:
    """Make the lab's tables on switch and router match the hosts' ``broken``."""
    switch, router = [*_bridge_rules(lab)], [*_routed_rules(lab)]
    stores = [*_store_rules(lab)]
    _load(lab.switch, "bridge", [_chain("forward", switch)])
    _load(lab.switch, "inet", [_chain("input", stores)])
    for netns in filter(None, (lab.router, *(one.namespace for one in lab.routers if not one.reflector))):
        _load(netns, "inet", [_chain("forward", router)])


def _load(netns: str, family: str, chains: Iterable[str]) -> None:
    table = f"{family} {TABLE}"
    body = "\n".join(chains)
    commands.run(
        "nft",
        "-f",
        "-",
        given=f"table {table} {{}}\ndelete table {table}\ntable {table} {{\n{body}}}\n",
        netns=netns,
    )


def _chain(hook: str, rules: list[str]) -> str:
    lines = "".join(f"  {rule}\n" for rule in rules)
    return f" chain {hook} {{\n  type filter hook {hook} priority -200;\n{lines} }}\n"


def _partitions(lab: Lab) -> Iterator[tuple[Host, Host]]:
    for host in lab.hosts:
        for word in host.broken:
            if word.startswith(PARTITION):
                yield host, lab.host(word.removeprefix(PARTITION))


def _bridge_rules(lab: Lab) -> Iterator[str]:
    """Return rules for hosts on one segment: no frame passes from one's port to the other's."""
    for a, b in _partitions(lab):
        if a.segment == b.segment:
            yield f'iifname "{a.name}" oifname "{b.name}" drop'
            yield f'iifname "{b.name}" oifname "{a.name}" drop'


def _routed_rules(lab: Lab) -> Iterator[str]:
    """Return rules for hosts on two segments: no router forwards between their addresses, nor their containers'."""
    for a, b in _partitions(lab):
        if a.segment != b.segment:
            for one, other in itertools.product(_addresses(lab, a), _addresses(lab, b)):
                if (":" in one) == (":" in other):
                    family = "ip6" if ":" in one else "ip"
                    yield f"{family} saddr {one} {family} daddr {other} drop"
                    yield f"{family} saddr {other} {family} daddr {one} drop"


def _addresses(lab: Lab, host: Host) -> list[str]:
    """Return a host's addresses, and those of its containers, which cross routers unchanged with bgp."""
    inner = [
        address
        for container in lab.containers
        if container.host == host.name
        for address in container.addresses
    ]
    return [bare(text) for text in (*host.addresses, *inner)]


def _store_rules(lab: Lab) -> Iterator[str]:
    ports = ", ".join(map(str, etcd_ports(lab)))
    for host in lab.hosts:
        if STORE_CUT in host.broken:
            for text in host.addresses:
                yield f"{'ip6' if ':' in text else 'ip'} saddr {bare(text)} tcp dport {{ {ports} }} drop"
