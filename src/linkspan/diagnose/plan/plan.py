"""States as the commands that a person would type: what linkspan does, in words that everybody knows.

Each state gives the command lines that make it, for ``sh``. Typed in the order of ``ordered``, into a host
that has none of it, they make the same objects that the drivers make; a test types them and pings.
"""

from __future__ import annotations

import base64
import re
import shlex
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath

from linkspan.core.addresses import SOCKET_FAMILY, mac_text
from linkspan.core.reconcile import behind_links
from linkspan.core.states.host import (
    GROUP,
    HOST,
    ROUTE_PROTOCOL,
    Address,
    Bridge,
    FdbEntry,
    ForeignQdisc,
    ForwardAccept,
    Interface,
    Ipip,
    LinkSysctl,
    Neighbour,
    NftChain,
    NftElement,
    NftSet,
    NftTable,
    PolicyRule,
    Route,
    State,
    Sysctl,
    TokenBucket,
    TrustedSource,
    TunnelPrefix,
    Veth,
    Vxlan,
    Wireguard,
)
from linkspan.core.states.ipsec import IpsecChild, IpsecConnection, IpsecCredential, IpsecLink
from linkspan.core.states.programs import SECRET, File, LearntRoutes, Process, Secret
from linkspan.core.states.wireguard import AllowedIp, WireguardKey, WireguardPeer
from linkspan.diagnose.plan import ipsec, wireguard
from linkspan.kernel.drivers.ipip_table import TABLE
from linkspan.kernel.drivers.iptables import COMMENT
from linkspan.kernel.drivers.neighbours import TUNNELS
from linkspan.kernel.drivers.nftables_objects import element_text, set_text

Paths = Callable[[int], str]
"""From a namespace's inode to a path that leads to it."""

_NAMED = PurePosixPath("/run/netns")
_JUMP = re.compile(r"\b(?:jump|goto) ([^\s;,}]+)")

STATE_DIR = '"${STATE_DIR:-/var/lib/linkspan}"'
"""The state folder for a reader who has none yet."""


def commands(state: State, paths: Paths, state_dir: str = STATE_DIR) -> tuple[str, ...]:
    """Return the command lines that make the state, in order.

    ``paths`` finds a container's namespace, and ``state_dir`` is the state folder as the shell reads it.
    """
    match state:
        case Sysctl() | LinkSysctl():
            return (_inside(state.netns, paths) + f"sysctl -w {shlex.quote(f'{state.path}={state.value}')}",)
        case NftTable() | NftSet() | NftChain() | NftElement():
            return tuple(f"nft {shlex.quote(text)}" for text in _nft(state))
        case Bridge() | Veth() | Interface():
            return tuple(_link(state, paths))
        case Vxlan() | Ipip() | Wireguard():
            return tuple(_tunnel(state))
        case Neighbour() | FdbEntry() | TunnelPrefix():
            return (_entry(state, state_dir),)
        case Address():
            nodad = " nodad" if state.prefix.family == 6 else " brd +" if state.prefix.length < 31 else ""
            ip = _ip(state.netns, paths)
            return (f"{ip} addr replace {state.prefix} dev {shlex.quote(state.device)}{nodad}",)
        case Route():
            return (_route(state, paths),)
        case PolicyRule():
            return (_rule(state, paths),)
        case TokenBucket(device, rate, burst, netns):
            limits = f"tbf rate {rate * 8}bit burst {burst}b latency 25ms"
            return (_inside(netns, paths) + f"tc qdisc replace dev {shlex.quote(device)} root {limits}",)
        case ForwardAccept() | TrustedSource():
            return tuple(_others(state))
        case File():
            return (_file(state),)
        case Secret():
            return (_secret(state),)
        case LearntRoutes():
            return (f": # {_PURPOSES[LearntRoutes]}: they are its own to change",)
        case WireguardKey() | WireguardPeer() | AllowedIp():
            return (wireguard.command(state),)
        case IpsecLink():
            return tuple(ipsec.link(state))
        case IpsecCredential() | IpsecConnection() | IpsecChild():
            return (ipsec.command(state, state_dir),)
        case Process():
            return (f"setsid --fork {shlex.join(state.argv)} </dev/null",)
    return (f": # no command is known for {type(state).__name__}",)


def ordered(states: Iterable[State]) -> list[State]:
    """Return the states in an order in which they can be typed.

    By rank, and what is on a link after that; of chains, one comes after those it jumps to; of routes, one by a
    gateway after the direct ones, among which is the way to the gateway.
    """
    every = list(states)
    place = behind_links(every)
    ranked = sorted(every, key=lambda s: (place(s), isinstance(s, Route) and bool(s.gateway)))
    chains = {s.key: s for s in ranked if isinstance(s, NftChain)}
    done: dict[State, None] = {}
    met: set[State] = set()

    def visit(chain: NftChain) -> None:
        met.add(chain)
        for rule in chain.rules:
            for name in _JUMP.findall(rule):
                target = chains.get(("NftChain", chain.family, chain.table, name))
                if target is not None and target not in met:
                    visit(target)
        done.setdefault(chain)

    for state in ranked:
        if isinstance(state, NftChain):
            if state not in met:
                visit(state)
        else:
            done.setdefault(state)
    return list(done)


def why(source: tuple[str, ...]) -> str:
    """Return in a few words for what the states of a source are there."""
    match source:
        case ("network", name):
            return f"network {name}"
        case ("attachment", container, ifname):
            return f"container {container[:12]}, interface {ifname}"
        case ("container", _):
            return "all networks of a container together"
        case ("peer", network, host):
            return f"network {network}, to reach host {host}"
        case ("names", network):
            return f"names in network {network}"
        case ("names",):
            return "names for containers in several networks"
        case ("names", *networks):
            return f"names for containers in networks {', '.join(networks[:-1])} and {networks[-1]}"
        case ("host", *_):
            return "this host, for all networks"
    return " ".join(source)


def purpose(state: State) -> str:
    """Return in a few words what an object of this kind does."""
    return _PURPOSES[type(state)]


_PURPOSES: dict[type[State], str] = {
    Sysctl: "a setting of the kernel, put back at uninstall",
    LinkSysctl: "a setting of one link, which goes with it",
    NftTable: "holds all of linkspan's firewall rules of one family",
    NftSet: "what the rules look up: one more container is one more element",
    NftChain: "rules, the same however many containers there are",
    NftElement: "one entry that the rules look up",
    ForwardAccept: "another's firewall would drop what the host forwards",
    TrustedSource: "firewalld would drop what comes from the pool",
    Bridge: "a switch in the kernel, to which containers are plugged",
    Veth: "a cable: one end on the host, the other in the container",
    Interface: "the container's end of the cable, switched on",
    Vxlan: "a tunnel to all other hosts: frames in UDP",
    Ipip: "a tunnel to all other hosts: packets in packets",
    **ipsec.PURPOSES,
    Wireguard: "a tunnel to all other hosts: encrypted packets in UDP",
    WireguardKey: "the private key of this host, and the port at which it receives",
    WireguardPeer: "another host, by its public key, and where it is sent to first",
    AllowedIp: "for which host packets to this prefix are encrypted; nobody else may send from it",
    Neighbour: "which MAC the next one has: another host's end of the tunnel, or a gateway",
    FdbEntry: "at which address of the underlay that MAC is reached",
    TunnelPrefix: "what the user-space tunnel sends to which host, and takes from it",
    Address: "an address on a link",
    Route: "where packets to these addresses go",
    PolicyRule: "which table routes packets from this address: they must leave by its interface",
    TokenBucket: "a limit on the rate of what leaves by a link",
    ForeignQdisc: "another program's queueing discipline, which may drop packets",
    File: "what a helper program reads",
    Secret: "what a helper program reads, with a password in it",
    LearntRoutes: "routes that the BGP speaker puts into the kernel",
    Process: "a helper program that outlives the agent",
}


def _name(netns: int, paths: Paths) -> str:
    """Return the name of a namespace that ``ip -n`` finds, or ''."""
    path = PurePosixPath(paths(netns))
    return path.name if path.parent in (_NAMED, PurePosixPath("/var/run/netns")) else ""


def _inside(netns: int, paths: Paths) -> str:
    return "" if netns == HOST else f"nsenter --net={shlex.quote(paths(netns))} "


def _ip(netns: int, paths: Paths) -> str:
    if netns != HOST and (name := _name(netns, paths)):
        return f"ip -n {shlex.quote(name)}"
    return _inside(netns, paths) + "ip"


def _nft(state: State) -> Iterator[str]:
    match state:
        case NftTable(family, name):
            yield f"add table {family} {name}"
        case NftSet(family, table, name, _, data):
            yield f"add {'map' if data else 'set'} {family} {table} {name} {set_text(state)}"
        case NftChain(family, table, name, hook, rules):
            yield f"add chain {family} {table} {name}" + (f" {{ {hook} }}" if hook else "")
            yield from (f"add rule {family} {table} {name} {rule}" for rule in rules)
        case NftElement(family, table, name):
            yield f"add element {family} {table} {name} {{ {element_text(state)} }}"


def _link(state: Bridge | Veth | Interface, paths: Paths) -> Iterator[str]:
    name = shlex.quote(state.name)
    up = " up" if state.up else ""
    match state:
        case Bridge():
            # An MTU given at birth would not keep the bridge from following its ports' (br_change_mtu).
            yield f"ip link add {name} address {mac_text(state.mac)} type bridge group_fwd_mask 0x4000"
            yield f"ip link property add dev {name} altname {shlex.quote(state.altname)}"
            yield f"ip link set {name} mtu {state.mtu}{up}"
        case Veth():
            peer = shlex.quote(state.peer_name)
            target = shlex.quote(_name(state.peer_netns, paths) or paths(state.peer_netns))
            yield (
                f"ip link add {name} mtu {state.mtu} address {mac_text(state.mac)} "
                f"type veth peer name {peer} mtu {state.mtu} netns {target}"
            )
            yield f"ip link property add dev {name} altname {shlex.quote(state.altname)}"
            if state.master:
                yield f"ip link set {name} master {shlex.quote(state.master)}"
            if state.hairpin:
                yield f"bridge link set dev {name} hairpin on"
            if up:
                yield f"ip link set {name} up"
        case Interface():
            ip = _ip(state.netns, paths)
            yield f"{ip} link set lo up"
            yield f"{ip} link set {name} address {mac_text(state.mac)} mtu {state.mtu}{up}"


def _tunnel(state: Vxlan | Ipip | Wireguard) -> Iterator[str]:
    name = shlex.quote(state.name)
    match state:
        case Vxlan(_, vni, mac, _, port, local):
            what = f"vxlan id {vni} dstport {port} local {_text(local)} nolearning"
            yield f"ip link add {name} address {mac_text(mac)} type {what}"
        case Ipip(tun=True) | Wireguard(tun=True):
            yield f"ip tuntap add dev {name} mode tun"
        case Ipip():
            yield f"ip link add {name} type ipip local {_text(state.local)}"
        case Wireguard():
            yield f"ip link add {name} type wireguard"
    yield f"ip link property add dev {name} altname {shlex.quote(state.altname)}"
    group = f" group {GROUP}" if isinstance(state, Wireguard) else ""
    yield f"ip link set {name} mtu {state.mtu}{group}{' up' if state.up else ''}"


def _entry(state: Neighbour | FdbEntry | TunnelPrefix, state_dir: str) -> str:
    match state:
        case Neighbour(device, address, mac):
            ours = "" if device.startswith(TUNNELS) else f" protocol {ROUTE_PROTOCOL}"
            where = f"lladdr {mac_text(mac)} dev {shlex.quote(device)}"
            return f"ip neigh replace {_text(address)} {where} nud permanent{ours}"
        case FdbEntry(device, mac, remote):
            where = f"dev {shlex.quote(device)} dst {_text(remote)}"
            return f"bridge fdb replace {mac_text(mac)} {where} self permanent"
        case TunnelPrefix(prefix, remote):
            return f"echo '{prefix} {_text(remote)}' >>{state_dir}/{TABLE}"


def _text(packed: bytes) -> str:
    return socket.inet_ntop(SOCKET_FAMILY[4 if len(packed) == 4 else 6], packed)


def _route(state: Route, paths: Paths) -> str:
    family = state.destination.family
    target = str(state.destination) if state.destination.length else "default"
    words = [_ip(state.netns, paths), f"-{family}", "route replace"]
    words += [target] if state.device else ["unreachable", target]
    if state.gateway:
        words.append(f"via {_text(state.gateway)}")
    if state.device:
        words.append(f"dev {shlex.quote(state.device)}")
    if state.onlink:
        words.append("onlink")
    if state.if_id:
        words.append(f"encap xfrm if_id {state.if_id}")
    if state.source:
        words.append(f"src {_text(state.source)}")
    if state.metric:
        words.append(f"metric {state.metric}")
    if state.mtu:
        words.append(f"mtu {state.mtu}")
    if state.table:
        words.append(f"table {state.table}")
    return " ".join([*words, f"proto {ROUTE_PROTOCOL}"])


def _rule(state: PolicyRule, paths: Paths) -> str:
    source = str(state.prefix) if state.prefix.length else "all"
    specific = " suppress_prefixlength 0" if state.specific else ""
    words = [_ip(state.netns, paths), f"-{state.prefix.family}", f"rule add pref {state.priority} from {source}"]
    return " ".join([*words, f"lookup {state.table or 'main'}{specific} protocol {ROUTE_PROTOCOL}"])


def _others(state: ForwardAccept | TrustedSource) -> Iterator[str]:
    match state:
        case ForwardAccept(chain, prefix):
            tables = "iptables" if prefix.family == 4 else "ip6tables"
            for side in ("-s", "-d"):
                comment = shlex.quote(f"{COMMENT}{prefix}")
                yield f"{tables} -w -I {shlex.quote(chain)} 1 {side} {prefix} -m comment --comment {comment} -j ACCEPT"
        case TrustedSource(prefix):
            yield f"firewall-cmd --zone=trusted --add-source={prefix}"


def _secret(state: Secret) -> str:
    """Return a command that reads the password from its own file, so that nobody sees it."""
    source, target = shlex.quote(state.source), shlex.quote(state.path)
    before, after = (shlex.quote(part) for part in state.text.split(SECRET))
    return f"(umask 077; printf '%s\"%s\"%s' {before} \"$(cat {source})\" {after} >{target})"


def _file(state: File) -> str:
    if not state.content:
        return f"install -D -m {state.mode:04o} /dev/null {shlex.quote(state.path)}"
    target = f"install -D -m {state.mode:04o} /dev/stdin {shlex.quote(state.path)}"
    try:
        text = state.content.decode()
    except UnicodeDecodeError:
        text = "\0"
    if text.isascii() and text.endswith("\n") and "\0" not in text and "EOF" not in text.splitlines():
        return f"{target} <<'EOF'\n{text}EOF"
    return f"echo {base64.b64encode(state.content).decode()} | base64 -d | {target}"
