"""SDN: how fast flows get into a switch, how soon a new host is reached, and what the switch then forwards.

Three measurements in one lab with Open vSwitch (data path in user space): 1,000 prefixes into an empty bridge by the
controller's own engine, beside `ovs-ofctl add-flows` of the same flows, in turn; the time from a new host's lease to
its first answered ping, as in join.py; and one TCP stream, in turn by linkspan, between the same containers with one
flow by hand for each in the place of linkspan's, and between two hosts of the same switch where all is by hand.

By hand a packet's TTL and MACs are changed as by linkspan, and nothing else is done: no source is checked in the
switch, and where the hosts are by hand, too, these have plain routes and a table that masquerades, and none of
linkspan's rules (sources, isolation, tunnel ports).

    sudo .venv/bin/python bench/sdn.py [--quick]

Needs openvswitch-switch, ethtool and iperf3. The whole program runs in network and mount namespaces of its own, so that
nothing of it can stay on the machine.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import time
from pathlib import Path

import datapath
import join
import report
from report import Metric, p, progress, result

from linkspan.backends.sdn.backend import GATEWAY
from linkspan.backends.sdn.flows import switches as steered
from linkspan.controller.devices import Switch
from linkspan.core.addresses import GATEWAY_MAC, Prefix, derived_mac, mac_text, prefix
from linkspan.core.states.openflow import Claim, Flow, Held, Map, Served
from linkspan.kernel.drivers.openflow import OpenFlowDriver, added
from linkspan.lab import build, commands, matrix, processes, switches, topology, underlay
from linkspan.lab.record import Host, Lab

LAB = join.LAB
PREFIXES, HOSTS = 1000, 100
BRIDGE = "bench"
SEGMENT = 1448
"""Bytes of a stream in a packet of 1,500 (RFC 9293, with time stamps)."""
COOKIE = "0x68616e64"
"""Of flows by hand."""
FLOWS_TARGET, HOST_TARGET, SPEED_TARGET = "<= 5", "<= 300", ">= 0.95"


def held() -> tuple[Held, Map]:
    """Return 1,000 prefixes of 100 hosts at one switch."""
    pool = prefix("10.128.0.0/9")
    hosts = [f"x{number}" for number in range(HOSTS)]
    blocks = (Prefix((pool.first + (n << 8)).to_bytes(4, "big"), 24) for n in range(PREFIXES))
    claims = tuple(Claim("demo", block, hosts[n % HOSTS]) for n, block in enumerate(blocks))
    macs = tuple((host, mac_text(derived_mac("bench", host))) for host in hosts)
    served = Served("demo", (pool,), (prefix(GATEWAY),), GATEWAY_MAC, closed=True)
    places = tuple(sorted((host, (BRIDGE, n + 1)) for n, host in enumerate(hosts)))
    return Held((served,), claims, macs), Map((BRIDGE,), places)


def flows(lab: Lab, quick: bool) -> dict[str, Metric]:
    """Put 1,000 prefixes, by the engine and by hand, into a bridge without any."""
    database = f"--db=unix:{lab.folder / 'ovs' / 'db.sock'}"
    commands.run("ovs-vsctl", database, "add-br", BRIDGE, "--", "set", "bridge", BRIDGE, "datapath_type=netdev")
    address = f"unix:{lab.folder / 'ovs' / BRIDGE}.mgmt"
    claims, where = held()
    text = "\n".join(added(flow) for flow in steered(claims, where)[BRIDGE]) + "\n"
    mine, hand, steady = [], [], []
    for number in range(3 if quick else 10):
        commands.run("ovs-ofctl", "-O", "OpenFlow13", "del-flows", address)
        started = time.perf_counter()
        commands.run("ovs-ofctl", "-O", "OpenFlow13", "add-flows", address, "-", given=text)
        hand.append((time.perf_counter() - started) * 1e3)
        commands.run("ovs-ofctl", "-O", "OpenFlow13", "del-flows", address)
        switch = Switch(BRIDGE, address, OpenFlowDriver(BRIDGE, address, {}))
        started = time.perf_counter()
        wanted: list[Flow] = steered(claims, where)[BRIDGE]
        switch.want(wanted)
        change = switch.differs()
        assert not switch.reconciler.apply(change)
        mine.append((time.perf_counter() - started) * 1e3)
        started = time.perf_counter()
        assert not switch.differs().put
        steady.append((time.perf_counter() - started) * 1e3)
        progress(f"flows: {number}")
    progress("")
    commands.run("ovs-vsctl", database, "del-br", BRIDGE)
    a, b = statistics.median(mine), statistics.median(hand)
    return {
        f"{PREFIXES} prefixes by ovs-ofctl add-flows": result(b, "ms"),
        f"{PREFIXES} prefixes by the controller: worked out, compared, put": result(a, "ms"),
        "controller / ovs-ofctl add-flows": result(a / b, "ratio", FLOWS_TARGET),
        f"a look at {PREFIXES} prefixes with nothing to do": result(statistics.median(steady), "ms"),
    }


def joins(lab: Lab, quick: bool) -> dict[str, Metric]:
    """Let hosts join, one after the other; the first warms up."""
    times = [join.joined(lab, number) for number in range(4 if quick else 13)][1:]
    return {
        "a new host: lease to first answered ping: p50": result(p(times, 50), "ms", HOST_TARGET),
        "a new host: p95": result(p(times, 95), "ms"),
    }


def _flow(lab: Lab, host: Host, pool: str) -> str:
    """Return a flow by hand that leads a prefix to a host: what linkspan's do to a packet, without their checks."""
    mac = mac_text(derived_mac(lab.name, host.name))
    actions = f"dec_ttl,set_field:{GATEWAY_MAC}->eth_src,set_field:{mac}->eth_dst,output:{host.name}"
    return f"cookie={COOKIE},priority=43000,ip,nw_dst={pool},actions={actions}"


def _used(lab: Lab) -> float:
    """Return the seconds of a core that the switch's daemon has used: what hosts receive is worked off in them, too."""
    (pid,) = processes.of_lab(lab.folder, lambda role, _: role == "ovs/ovs-vswitchd")
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # proc(5): utime, stime


def _ofctl(lab: Lab, verb: str, *words: str) -> None:
    commands.run("ovs-ofctl", "-O", "OpenFlow13", verb, switches.address(lab, lab.switches[0]), *words)


def _by_hand(lab: Lab) -> datapath.Way:
    """Make two hosts without agents at the same switch, with flows by hand that lead from one to the other."""
    bare = [Host(f"x{n}", f"{LAB}-x{n}", 1, [topology.address(1, 4, str(200 + n))]) for n in (1, 2)]
    for host in bare:
        lab.hosts.append(host)
        underlay.plug(lab, host)
    way = datapath.made_by_hand("host-gw", bare)
    for number, host in enumerate(bare, 1):
        _ofctl(lab, "add-flow", _flow(lab, host, f"{datapath.HAND['host-gw']}.{number}.0/24"))
    for _ in bare:
        lab.hosts.pop()
    way.name = "all by hand"
    return way


def speed(lab: Lab, quick: bool) -> dict[str, Metric]:
    """Measure one stream by linkspan, by flows by hand in the place of its own, and by all by hand, in turn."""
    hand = _by_hand(lab)
    one, two = ends = lab.containers[:2]
    mine = datapath.Way("linkspan", one.namespace, two.namespace, topology.bare(two.addresses[0]))
    flows = datapath.Way("flows by hand", mine.client, mine.server, mine.address)
    count, seconds = (2, 1) if quick else (15, 2)
    for number in range(count + 1):
        for way in (mine, flows, hand) if number % 2 else (hand, flows, mine):
            if way is flows:
                for end, host in zip(ends, lab.hosts, strict=True):
                    _ofctl(lab, "add-flow", _flow(lab, host, topology.bare(end.addresses[0])))
            begun, value = _used(lab), datapath.tcp(way, 1, seconds)
            used = (_used(lab) - begun) * 1e6 / (value * 1e9 * seconds / 8 / SEGMENT)
            if way is flows:
                for end in ends:
                    _ofctl(lab, "del-flows", f"cookie={COOKIE}/-1,ip,nw_dst={topology.bare(end.addresses[0])}")
            if number:
                way.add("TCP", value)
                way.add("CPU", used)
        progress(f"throughput: {number} of {count}")
    progress("")
    said = {"linkspan": mine, "the same hosts, flows by hand": flows, "all by hand, hosts without rules": hand}
    found = {f"one TCP stream: {name}": result(way.median("TCP"), "Gbit/s") for name, way in said.items()}
    found |= {f"the switch's daemon, a packet: {name}": result(way.median("CPU"), "us") for name, way in said.items()}
    for name, way in (("flows by hand", flows), ("all by hand", hand)):
        ratio = mine.median("TCP") / way.median("TCP")
        found[f"throughput, linkspan / {name}"] = result(ratio, "ratio", SPEED_TARGET)
    return found


def measure(_folder: Path, quick: bool) -> dict[str, Metric]:
    """Run everything; returns the metrics."""
    lab = topology.planned(topology.Wishes(lab=LAB, hosts=2, backend="sdn"))
    build.up(lab)
    try:
        if silent := matrix.awaited(lab):
            raise matrix.sentence(silent)
        found = flows(lab, quick) | joins(lab, quick) | speed(lab, quick)
    finally:
        build.down(LAB)
    report.table("what", found)
    return found


if __name__ == "__main__":
    for program in ("ovs-ofctl", "iperf3", "ethtool"):
        if shutil.which(program) is None:
            sys.exit(f"error: {program} is not installed")
    report.run(measure, "SDN: flows, a new host, throughput", "fewer rounds: about 25 s")
