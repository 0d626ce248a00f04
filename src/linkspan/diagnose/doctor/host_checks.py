"""Checks of the host's own settings: forwarding, filters, firewalls, full tables."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator

from linkspan.core.addresses import Prefix, prefix
from linkspan.core.model import Network
from linkspan.core.states.host import HOST
from linkspan.diagnose.doctor.checks import Check, Checks, Status, Surroundings
from linkspan.diagnose.trace import netfilter_hooks
from linkspan.diagnose.trace.kernel_view import KernelView
from linkspan.diagnose.trace.packet import Packet
from linkspan.diagnose.trace.verdict import Frame, Verdict
from linkspan.kernel.drivers import firewalld
from linkspan.kernel.drivers.links import BRIDGE_PORTS
from linkspan.kernel.io import link_messages
from linkspan.kernel.io.link_messages import names_of
from linkspan.kernel.io.netlink import Socket
from linkspan.kernel.probe import iptables_rules

FORWARDING = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}
FILLED = 0.8
"""Fill level of a table that causes a warning: a burst of connections fills the rest within seconds."""
_SOMEWHERE = {4: prefix("192.0.2.1"), 6: prefix("2001:db8::1")}  # RFC 5737, RFC 3849


def forwarding(asked: KernelView, around: Surroundings) -> Iterator[Check]:
    """Yield whether the host forwards, so that containers reach other networks and the outside."""
    for family in around.families() or (4,):
        path = FORWARDING[family]
        name, setting = f"forwarding IPv{family}", path.replace("/", ".")
        value = asked.setting(HOST, path)
        if value == "":
            yield Check(name, "fail", f"the kernel has no IPv{family}", f"use IPv{10 - family} pools only")
        elif value != "0":
            yield Check(name, "ok", f"{setting}={value}")
        elif around.families():
            fix = f"sysctl -w {setting}=1, and find what set it to 0: grep -r forward /etc/sysctl.d /etc/sysctl.conf"
            yield Check(
                name, "fail", f"{setting}=0: the host drops packets of containers to other links than their bridge", fix
            )
        else:
            yield Check(name, "ok", f"{setting}=0; linkspan sets it with the first network")


def rp_filter(asked: KernelView, _around: Surroundings) -> Iterator[Check]:
    """Yield whether rp_filter is strict: it drops packets that arrive by another link than the route back."""
    value = asked.setting(HOST, "net/ipv4/conf/all/rp_filter")
    if value == "1":
        yield Check(
            "rp_filter",
            "warn",
            "net.ipv4.conf.all.rp_filter=1 (strict): a packet is dropped if the route back uses another link",
            "on a host with several uplinks: sysctl -w net.ipv4.conf.all.rp_filter=2",
        )
    else:
        yield Check("rp_filter", "ok", f"net.ipv4.conf.all.rp_filter={value or 'absent'}: not strict")


def br_netfilter(asked: KernelView, _around: Surroundings) -> Iterator[Check]:
    """Yield the state of br_netfilter: it makes iptables' FORWARD see packets within one bridge."""
    value = asked.setting(HOST, "net/bridge/bridge-nf-call-iptables")
    if value == "":
        yield Check("br_netfilter", "ok", "not loaded: bridged frames do not pass iptables")
    elif value == "0":
        detail = "loaded and off: bridged frames do not pass iptables, except in networks with policies"
        yield Check("br_netfilter", "ok", detail)
    else:
        detail = "on: frames within a bridge pass iptables' FORWARD, which is checked for each pool"
        yield Check("br_netfilter", "ok", detail)


def forward_policy(asked: KernelView, around: Surroundings) -> Iterator[Check]:
    """Yield FORWARD chains that drop packets of pools; linkspan's rules can only be added to such a chain."""
    if not around.networks:
        tables = [t for f in (4, 6) for t in asked.iptables(HOST, f) if t.policies.get("FORWARD") == "DROP"]
        detail = "policy DROP; linkspan will add its pools" if tables else "drops nothing by policy"
        yield Check("iptables FORWARD", "ok", detail)
    for network, pool in _pools(around):
        name = f"iptables FORWARD {pool}"
        verdicts = [netfilter_hooks.passed_iptables(asked, "forward", frame) for frame in _through(network, pool)]
        bad = next((v for v in verdicts if not v.passes), None)
        if bad is None:
            yield Check(name, "ok", "lets the pool through")
        else:
            detail = f"{bad.where} drops traffic of network {network.name}: {bad.rule}"
            yield Check(name, "fail", detail, _iptables_fix(bad))


def _iptables_fix(bad: Verdict) -> str:
    """Return the fix: linkspan's own rules overrule the policy of FORWARD, but no rule before them."""
    if bad.removal:
        command, *words = bad.removal
        return f"{shlex.join([iptables_rules.usual(command), *words])} (and where its rules are kept)"
    return "a running agent restores its rules within seconds: `linkspan status`, `linkspan diff`"


def nft_forward(asked: KernelView, around: Surroundings) -> Iterator[Check]:
    """Yield foreign nftables chains that drop forwarded packets; only their owner can make them accept."""
    if not around.networks:
        hooked = [c for c in asked.chains(HOST) if c.hook == "forward" and c.policy == "drop"]
        for chain in hooked:
            name = f"{chain.family} {chain.table} {chain.name}"
            detail = f"{name} has policy drop: it drops what its own rules do not accept"
            fix = f"let each pool through: nft insert rule {name} ip saddr POOL accept; and ip daddr POOL"
            yield Check("nft forward", "warn", detail, fix)
        if not hooked:
            yield Check("nft forward", "ok", "drops nothing by policy")
    for network, pool in _pools(around):
        if network.internal:
            continue  # linkspan itself refuses the packet that the check would send
        name, ip = f"nft forward {pool}", {4: "ip", 6: "ip6"}[pool.family]
        found = [netfilter_hooks.passed_foreign_nft(asked, "forward", frame) for frame in _through(network, pool)]
        drops = [(v.where, v.rule) for v in found if not v.passes]
        unless = [v.unless for v in found if v.unless]
        if not drops and not unless:
            yield Check(name, "ok", "lets the pool through")
            continue
        where, dropped = (drops or unless)[0]
        status: Status = "fail" if drops else "warn"
        rule = f"nft insert rule {where} {ip}"
        fix = f"{rule} saddr {pool} accept; {rule} daddr {pool} accept (and where its rules are kept)"
        yield Check(name, status, f"{where} drops traffic of network {network.name}: {dropped}", fix)


def _pools(around: Surroundings) -> Iterator[tuple[Network, Prefix]]:
    return ((network, pool) for network in around.networks for pool in network.prefixes)


def _through(network: Network, pool: Prefix) -> tuple[Frame, Frame]:
    """Return a packet of the pool to the outside, and its answer, at the forward hooks."""
    inside = pool.at(min(2, pool.size - 1)).packed
    link = network.bridge if not network.routed else "lsr0"
    outside = _SOMEWHERE[pool.family].packed
    there = Frame(Packet(inside, outside), link, "uplink")
    return there, Frame(Packet(outside, inside, established=True), "uplink", link)


def firewalld_zone(_asked: KernelView, around: Surroundings) -> Iterator[Check]:
    """Yield whether a zone of firewalld accepts the pool."""
    if not firewalld.running():
        yield Check("firewalld", "ok", "does not run")
    else:
        pools = ", ".join(p for n in around.networks for p in n.pools)
        detail = "runs; the agent keeps each pool in its zone trusted, again after every reload"
        yield Check("firewalld", "ok", detail + (f" ({pools})" if pools else ""))


def mtus(_asked: KernelView, around: Surroundings) -> Iterator[Check]:
    """Yield whether a network's largest packet in its tunnel fits the underlay."""
    here = around.underlay
    for network in around.networks if here else ():
        way = around.backends.get(network.backend)
        if here is None or way is None or not way.crosses_hosts:
            continue
        most = here.mtu - way.overhead[here.outer]
        name, detail = f"MTU {network.name}", f"{network.mtu} of {most} that {here.ifname} carries"
        if network.mtu > most:
            fix = f"linkspan network update {network.name} --mtu {most}, or raise the MTU of {here.ifname}"
            yield Check(name, "fail", f"{detail}: larger packets do not arrive", fix)
        else:
            yield Check(name, "ok", detail)


def conntrack(asked: KernelView, _around: Surroundings) -> Iterator[Check]:
    """Yield how full the connection table is: a full one drops every new connection."""
    count, most = (asked.setting(HOST, f"net/netfilter/nf_conntrack_{n}") for n in ("count", "max"))
    if not count.isdigit() or not most.isdigit() or not int(most):
        yield Check("conntrack", "skip", "the kernel does not report its connection table")
        return
    part = int(count) / int(most)
    status: Status = "fail" if part > 0.95 else "warn" if part > FILLED else "ok"
    fix = f"sysctl -w net.netfilter.nf_conntrack_max={2 * int(most)}" if status != "ok" else ""
    yield Check("conntrack", status, f"{count} of {most} connections ({part:.0%})", fix)


def neighbours(_asked: KernelView, around: Surroundings) -> Iterator[Check]:
    """Yield how full the neighbour table is: a full one resolves nobody new, in all namespaces of the machine."""
    limit = around.file("/proc/sys/net/ipv4/neigh/default/gc_thresh3")
    table = around.file("/proc/net/stat/arp_cache")
    if not limit.exists() or not table.exists():
        yield Check("neighbours", "skip", "the kernel does not report its neighbour table here")
        return
    most = int(limit.read_text())
    count = int(table.read_text().splitlines()[1].split()[0], 16)  # one line for each processor, with the same sum
    part = count / most if most else 1.0
    status: Status = "fail" if part > 0.95 else "warn" if part > FILLED else "ok"
    fix = f"sysctl -w net.ipv4.neigh.default.gc_thresh3={4 * most}" if status != "ok" else ""
    yield Check("neighbours", status, f"{count} of {most} entries ({part:.0%})", fix)


def bridge_ports(_asked: KernelView, around: Surroundings) -> Iterator[Check]:
    """Yield how full bridges are: one takes 1,023 ports."""
    bridges = [n for n in around.networks if n.backend == "bridge" and not n.routed]
    if not bridges:
        return
    counts = _ports()
    for network in bridges:
        yield _bridge(network, counts.get(network.bridge, 0))


def _bridge(network: Network, ports: int) -> Check:
    name, detail = f"bridge {network.bridge}", f"{ports} of {BRIDGE_PORTS} ports"
    fix = "put further containers on a network with --opt mode=routed, which has no such limit"
    if ports >= BRIDGE_PORTS:
        return Check(name, "fail", f"{detail}: it has no room for another container", fix)
    return Check(name, "warn", detail, fix) if ports > FILLED * BRIDGE_PORTS else Check(name, "ok", detail)


def _ports() -> dict[str, int]:
    """Return how many ports each bridge of the calling thread's namespace has."""
    with contextlib.closing(Socket()) as socket:
        links = link_messages.links(socket)
    names, masters = names_of(links), [link.master for link in links]
    return {names[m]: masters.count(m) for m in set(masters) if m in names}


CHECKS: Checks = (
    ("forwarding", forwarding),
    ("rp_filter", rp_filter),
    ("br_netfilter", br_netfilter),
    ("iptables FORWARD", forward_policy),
    ("nft forward", nft_forward),
    ("firewalld", firewalld_zone),
    ("conntrack", conntrack),
    ("neighbours", neighbours),
    ("bridge ports", bridge_ports),
    ("MTU", mtus),
)
