"""Data path benchmark: the bare underlay, the same path by hand with `ip`, and linkspan's.

Four virtual hosts on one switch: two with agents, and two where VXLAN, or plain routes, and a table that
masquerades are made by hand. Everything is measured in turn, round after round, in one run: one TCP stream
and four (iperf3), and the round trip of a small UDP packet. IPIP has no peer by hand where the kernel has no
ipip device: there it goes through linkspan's own endpoint in user space.

    sudo .venv/bin/python bench/datapath.py [--quick]

Needs iperf3. The whole program runs in network and mount namespaces of its own, so that nothing of it can
stay on the machine.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import report
from report import Metric, progress, result

from linkspan.lab import agents, build, commands, containers, matrix, processes, sockets, topology, underlay
from linkspan.lab.record import Host, Lab

LAB = "lkpdata"
POOLS = {"vxlan": "10.244.0.0/16", "host-gw": "10.245.0.0/16", "ipip": "10.246.0.0/16"}
HAND = {"vxlan": "10.88", "host-gw": "10.89"}
TARGET, IPIP_TARGET = ">= 0.98", ">= 1"
PORT = 5202
BARE = "bare underlay"
UNDERLAY_MTU, VXLAN_OVERHEAD = 1500, 50
VNI, VXLAN_PORT = 42, 4789
"""RFC 7348 section 5; any VNI will do."""

_ECHO = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", int(sys.argv[1])))
print("ready", flush=True)
while True:
    data, sender = s.recvfrom(2048)
    s.sendto(data, sender)
"""


@dataclass
class Way:
    """Two ends, and what was measured between them."""

    name: str
    client: str
    server: str
    address: str
    figures: dict[str, list[float]] = field(default_factory=dict)

    def add(self, what: str, value: float) -> None:
        """Note a figure."""
        self.figures.setdefault(what, []).append(value)

    def median(self, what: str) -> float:
        """Return the median of a figure's rounds."""
        return statistics.median(self.figures[what])


def plugged(lab: Lab, *numbers: int) -> list[Host]:
    """Make hosts without an agent on the lab's segment."""
    hosts = [Host(f"x{n}", f"{lab.name}-x{n}", 1, [topology.address(1, 4, str(100 + n))]) for n in numbers]
    for host in hosts:
        underlay.plug(lab, host)
    return hosts


def bare_underlay(lab: Lab) -> Way:
    """Return the way between two more hosts of the segment, which nobody gives a rule or tracks a connection."""
    client, server = plugged(lab, 3, 4)
    return Way(BARE, client.namespace, server.namespace, topology.bare(server.addresses[0]))


# ------------------------------------------------------------------ by hand


def _mac(number: int) -> str:
    return f"02:00:00:00:00:{number:02x}"


def by_hand(backend: str, number: int, ends: list[Host]) -> Iterator[str]:
    """Yield what leads from host ``number`` to the other one, as `ip` and `bridge` commands."""
    other = 3 - number
    there = topology.bare(ends[other - 1].addresses[0])
    block = f"{HAND[backend]}.{other}"
    if backend == "host-gw":
        yield f"ip route add {block}.0/24 via {there}"
        return
    mtu = UNDERLAY_MTU - VXLAN_OVERHEAD
    local = topology.bare(ends[number - 1].addresses[0])
    yield f"ip link add vx type vxlan id {VNI} local {local} dstport {VXLAN_PORT} nolearning"
    yield f"ip link set vx address {_mac(number)} mtu {mtu} up"
    yield f"ip addr add {HAND[backend]}.{number}.0/32 dev vx"
    yield f"ip neigh add {block}.0 lladdr {_mac(other)} dev vx nud permanent"
    yield f"bridge fdb add {_mac(other)} dev vx dst {there} self permanent"
    yield f"ip route add {block}.0/24 via {block}.0 dev vx onlink"


def container_by_hand(backend: str, number: int) -> Iterator[str]:
    """Yield the commands that give a host one container: a veth pair, routed, and the table that masquerades."""
    name, net = f"{LAB}-hand-{backend}-{number}", HAND[backend]
    mtu = UNDERLAY_MTU - (VXLAN_OVERHEAD if backend == "vxlan" else 0)
    end = f"v{backend.replace('-', '')}"
    yield f"ip link add {end} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {name}"
    yield f"ip link set {end} up"
    yield f"ip addr add 169.254.1.1/32 dev {end}"
    yield f"ip route add {net}.{number}.2/32 dev {end}"
    yield f"ip -n {name} link set eth0 up"
    yield f"ip -n {name} addr add {net}.{number}.2/32 dev eth0"
    yield f"ip -n {name} route add 169.254.1.1 dev eth0"
    yield f"ip -n {name} route add default via 169.254.1.1"
    yield from masquerading(end, f"{net}.0.0/16")


def masquerading(table: str, pool: str) -> Iterator[str]:
    """Yield the commands for a table that masquerades what leaves a pool."""
    yield f"nft add table ip {table}"
    yield f"nft 'add chain ip {table} post {{ type nat hook postrouting priority srcnat; }}'"
    yield f"nft add rule ip {table} post ip saddr {pool} ip daddr != {pool} masquerade"


def made_by_hand(backend: str, ends: list[Host]) -> Way:
    """Make the way, and return it."""
    for number, host in enumerate(ends, 1):
        commands.add(f"{LAB}-hand-{backend}-{number}")
        lines = [*container_by_hand(backend, number), *by_hand(backend, number, ends)]
        commands.run("sh", "-e", given="\n".join(["sysctl -qw net.ipv4.ip_forward=1", *lines]), netns=host.namespace)
    names = [f"{LAB}-hand-{backend}-{number}" for number in (1, 2)]
    return Way(f"{backend} by hand", names[0], names[1], f"{HAND[backend]}.2.2")


# ------------------------------------------------------------------ linkspan's


def ours(lab: Lab, backend: str) -> Way:
    """Attach a container on each of the two hosts to a network of the backend."""
    if backend != lab.backend:
        wish = {"name": backend, "pools": [POOLS[backend]], "backend": backend}
        agents.client(lab, "h1").call("POST", "/v1/networks", wish)
        agents.await_network(lab, lab.hosts[:2], backend)
    network = lab.network if backend == lab.backend else backend
    names = [f"{backend}-{number}" for number in (1, 2)]
    ends = [containers.add(lab, f"h{n}", name, network, []) for n, name in enumerate(names, 1)]
    client, server = (lab.container(name).namespace for name in names)
    return Way(f"{backend} by linkspan", client, server, topology.bare(ends[1]["addresses"][0]))


# ------------------------------------------------------------------ measuring


@contextlib.contextmanager
def serving(netns: str, *argv: str, word: bool = False) -> Iterator[None]:
    """Run a server in a namespace meanwhile; with ``word`` it says when it listens."""
    process = subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{netns}", *argv],
        stdout=subprocess.PIPE if word else subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        if process.stdout:
            process.stdout.readline()
        yield
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def tcp(way: Way, streams: int, seconds: int) -> float:
    """Return the Gbit/s that arrive."""
    with serving(way.server, "iperf3", "--server", "--port", str(PORT)):
        if not commands.await_(lambda: _listens(way)):
            sys.exit(f"error: {way.name}: nothing listens at {way.address}")
        said = commands.run(
            *("iperf3", "--client", way.address, "--port", str(PORT), "--time", str(seconds)),
            *("--parallel", str(streams), "--json"),
            netns=way.client,
        )
    return float(json.loads(said)["end"]["sum_received"]["bits_per_second"]) / 1e9


def _listens(way: Way) -> bool:
    listed = commands.run("ss", "-Hltn", f"sport = :{PORT}", netns=way.server)
    return bool(listed.strip())


def udp(way: Way, count: int) -> float:
    """Return the median round trip of a UDP packet of 64 bytes, in microseconds."""
    with serving(way.server, sys.executable, "-ISc", _ECHO, str(PORT), word=True):
        with sockets.inside(way.client):
            client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        client.settimeout(2)
        client.connect((way.address, PORT))
        with client:
            return exchanged(client, count)


def exchanged(client: socket.socket, count: int) -> float:
    """Return the median time between 64 bytes that a socket sends and their answer, in microseconds."""
    times = []
    for _ in range(count):
        started = time.perf_counter_ns()
        client.send(bytes(64))
        client.recv(2048)
        times.append((time.perf_counter_ns() - started) / 1e3)
    return statistics.median(times)


def rounds(ways: list[Way], quick: bool) -> None:
    """Measure each way in turn; the first round, a short one, warms up."""
    count, seconds, trips = (1, 1, 1000) if quick else (5, 2, 3000)
    tests: dict[str, Callable[[Way, int], float]] = {
        "TCP, one stream": lambda way, time_: tcp(way, 1, time_),
        "TCP, four streams": lambda way, time_: tcp(way, 4, time_),
        "UDP round trip": lambda way, _: udp(way, trips),
    }
    for number in range(count + 1):
        for what, test in tests.items():
            for way in ways if number % 2 else reversed(ways):
                value = test(way, seconds if number else 1)
                if number:
                    way.add(what, value)
            progress(f"round {number} of {count}: {what}")
    progress("")


def results(ways: list[Way]) -> dict[str, Any]:
    """Return all metrics, with the targets where there are any."""
    found: dict[str, Any] = {}
    by = {way.name: way for way in ways}
    for way in ways:
        for what in way.figures:
            found[f"{way.name}: {what}"] = result(way.median(what), "us" if "UDP" in what else "Gbit/s")
    for backend in HAND:
        mine, hand = by[f"{backend} by linkspan"], by[f"{backend} by hand"]
        for what in mine.figures:
            ratio = mine.median(what) / hand.median(what)
            if "UDP" in what:  # a rate: round trips a second
                ratio = 1 / ratio
            found[f"{backend}: {what}, linkspan / by hand"] = result(ratio, "ratio", TARGET)
    one = by["ipip by linkspan"].median("TCP, one stream")
    found["ipip: TCP, one stream"] = result(one, "Gbit/s", IPIP_TARGET)
    return found


def without_rules(lab: Lab, ways: list[Way], quick: bool) -> dict[str, Any]:
    """Measure the cost of the rules: once more, with a masquerading table by hand instead of linkspan's tables."""
    for host in lab.hosts:
        processes.kill(lab.folder, lambda name=host.name: processes.agents(lab.folder, name), f"host {host.name}")  # type: ignore[misc]
        rules = ["nft flush ruleset", *masquerading("hand", lab.pools[0])]
        commands.run("sh", "-e", given="\n".join(rules), netns=host.namespace)
    hand, mine = (Way(way.name, way.client, way.server, way.address) for way in ways)
    rounds([hand, mine], quick)
    found = {}
    for what in mine.figures:
        ratio = mine.median(what) / hand.median(what)
        ratio = 1 / ratio if "UDP" in what else ratio
        found[f"vxlan: {what}, linkspan without its rules / by hand"] = result(ratio, "ratio")
    return found


def tell(ways: list[Way], found: dict[str, Any]) -> None:
    """Print the figures for a reader, as Markdown."""
    print("| way | TCP, one stream | four streams | UDP round trip |\n|---|---|---|---|")
    for way in ways:
        one, four, trip = (way.median(what) for what in way.figures)
        print(f"| {way.name} | {one:.2f} Gbit/s | {four:.2f} Gbit/s | {trip:.0f} us |")
    print()
    shown = {name: m for name, m in found.items() if m["target"] or "without its rules" in name}
    report.table("target", shown)


def measure(_folder: Path, quick: bool) -> dict[str, Metric]:
    """Make all hosts and ways, and measure."""
    lab = topology.planned(topology.Wishes(lab=LAB, hosts=2, containers_per_host=0))
    build.up(lab)
    try:
        own = plugged(lab, 1, 2)
        ways = [bare_underlay(lab)]
        for backend in POOLS:
            ways += [made_by_hand(backend, own)] if backend in HAND else []
            ways += [ours(lab, backend)]
        if silent := matrix.awaited(lab):
            raise matrix.sentence(silent)
        rounds(ways, quick)
        found = results(ways)
        found |= without_rules(lab, [way for way in ways if way.name.startswith("vxlan")], quick)
        found["ipip is the kernel's"] = result(float(_kernel_ipip(lab)), "0 or 1")
    finally:
        build.down(LAB)
    tell(ways, found)
    return found


def _kernel_ipip(lab: Lab) -> bool:
    (link,) = json.loads(commands.run("ip", "-n", lab.host("h1").namespace, "-d", "-j", "link", "show", "lsipip"))
    return bool(link["linkinfo"]["info_kind"] == "ipip")


if __name__ == "__main__":
    if shutil.which("iperf3") is None:
        sys.exit("error: no iperf3: apt-get install iperf3")
    report.run(measure, "throughput and round trip: bare, by hand, by linkspan", "one round of one second: about 40 s")
