"""linkspan beside what others use: Docker's overlay and bridge, netavark's bridge, and the same by hand.

All virtual hosts are on one switch, and everything is measured in turn, round after round, in one run:

1. From host to host: the bare underlay; VXLAN and plain routes by hand, with a table that masquerades; an attachable
   overlay network of two Docker engines in a swarm; linkspan's VXLAN, without and with fast=true, and host-gw.
2. Between two containers of one host: Docker's bridge, netavark's bridge (Podman), linkspan.
3. From a client on the segment to a port that is published by each of the three.

A ratio is the median of the rounds' ratios, because both measurements of a round share the machine's load.

    sudo .venv/bin/python bench/peers.py [--quick] [--profile]

With --profile it says instead, for the ways whose targets were missed, which parts of the kernel take the CPU time of
a new connection, of a request by TCP, and of a gigabyte through a published port. This counts all that the machine
does, so nothing else may run on it.

Needs iperf3, docker.io and podman (scripts/packages-test), and linux-perf for --profile. The whole program runs in
network and mount namespaces of its own.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import cpu_profile
import report
from cpu_profile import LEAD, Recording, Sample
from datapath import HAND, PORT, Way, bare_underlay, exchanged, made_by_hand, ours, plugged, serving, tcp
from fast import answered, echoes, fast, request
from report import Metric, p, progress, result

from linkspan.lab import agents, build, commands, containers, topology, underlay
from linkspan.lab.record import Lab

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from support.runtimes.docker_engine import Docker
from support.runtimes.podman_engine import IMAGE as PODMAN_IMAGE
from support.runtimes.podman_engine import Podman
from support.runtimes.virtual_host import VirtualHost

LAB = "lkpside"
OVERLAY, BRIDGE, ONE_HOST = "10.91.0.0/16", "10.92.0.0/16", "10.93.0.0/16"
SMALL = 64
"""Bytes of a UDP packet that is sent without a pause."""
ONE, EIGHT = "TCP, one stream", "TCP, eight streams"
PACKETS = "UDP packets a second"
ECHO, LATE, REQUEST = "ICMP round trip", "ICMP round trip, p99", "TCP request"
NEW, COST = "new connections a second", "CPU a gigabyte"
UNITS = {
    ONE: "Gbit/s", EIGHT: "Gbit/s", PACKETS: "1000/s", ECHO: "us", LATE: "us", REQUEST: "us", NEW: "1/s", COST: "s"
}  # fmt: skip
SWARM, DOCKER, NETAVARK = "Docker's overlay", "Docker's bridge", "netavark's bridge"
VXLAN, FAST, HOST_GW, LOCAL = "vxlan by linkspan", "vxlan with fast=true", "host-gw by linkspan", "linkspan, one host"
BY_HAND = "vxlan by hand"
PUBLISHED = "{}, published"
TARGETS: list[tuple[str, str, str, str]] = [
    (VXLAN, SWARM, ONE, ">= 1"), (FAST, SWARM, ONE, ">= 1.05"),
    (VXLAN, SWARM, ECHO, "<= 1"), (FAST, SWARM, ECHO, "<= 0.85"),
    (VXLAN, SWARM, REQUEST, "<= 1"), (FAST, SWARM, REQUEST, "<= 0.85"),
    (VXLAN, SWARM, NEW, ">= 1"), (FAST, SWARM, NEW, ">= 1"),
    (VXLAN, BY_HAND, ONE, ">= 1"), (HOST_GW, "host-gw by hand", ONE, ">= 1"),
    (LOCAL, DOCKER, ONE, ""), (LOCAL, DOCKER, ECHO, ""), (LOCAL, DOCKER, NEW, ""), (LOCAL, NETAVARK, NEW, ""),
    (PUBLISHED.format(LOCAL), PUBLISHED.format(DOCKER), ONE, ">= 1"),
    (PUBLISHED.format(LOCAL), PUBLISHED.format(DOCKER), NEW, ">= 1"),
    (PUBLISHED.format(LOCAL), PUBLISHED.format(NETAVARK), NEW, ""),
]  # fmt: skip
"""What is compared: ours, theirs, the figure, and the target."""
ACROSS, THROUGH = (VXLAN, FAST, BY_HAND, SWARM), (PUBLISHED.format(LOCAL), PUBLISHED.format(DOCKER))
"""Ways of the profile: from host to host, and through a published port."""

_ACCEPTS = """
import socket, sys
server = socket.create_server(("", int(sys.argv[1])), backlog=1024)
print("ready", flush=True)
while True:
    server.accept()[0].close()
"""
_CONNECTS = """
import socket, struct, sys, time
address, port, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
count, begun = 0, time.monotonic()
while time.monotonic() - begun < seconds:
    with socket.create_connection((address, port), 5) as client:
        client.recv(1)  # the server's end: the connection was made, and not only begun
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # no TIME_WAIT
    count += 1
print(count / (time.monotonic() - begun))
"""


# ------------------------------------------------------------------ the others


@contextlib.contextmanager
def engine_host(lab: Lab, number: int, folder: Path) -> Iterator[VirtualHost]:
    """Give a virtual host for an engine on the lab's segment, at address ``number``."""
    name = f"{LAB}-e{number}"
    place = folder / name
    place.mkdir()
    host = VirtualHost(name, place)
    try:
        port, peer = f"e{number}", f"peer name {underlay.CABLE} mtu {lab.mtu} netns {name}"
        cable = f"link add {port} mtu {lab.mtu} type veth {peer}"
        commands.ip(lab.switch, (cable, f"link set {port} master {underlay.segment(1)} up"))
        address = topology.address(1, 4, str(number))
        commands.ip(name, (f"link set {underlay.CABLE} up", f"addr add {address} dev {underlay.CABLE}"))
        host.run("sh", "-c", "umount /sys/fs/cgroup/unified || true")
        yield host
    finally:
        host.close()


def named(host: VirtualHost, name: str, pid: str) -> str:
    """Give the namespace of an engine's container a name, and return it."""
    commands.run("ip", "netns", "attach", f"{host.name}-{name}", pid)
    return f"{host.name}-{name}"


def in_docker(engine: Docker, name: str, options: str) -> str:
    """Start a container; return the name of its namespace."""
    engine.container(name, options)
    return named(engine.host, name, engine.run(f"inspect -f '{{{{.State.Pid}}}}' {name}"))


def in_podman(engine: Podman, name: str, options: str) -> str:
    """Start a container; return the name of its namespace."""
    engine.run(f"run -d --name {name} {options} {PODMAN_IMAGE} sleep 1000000")
    return named(engine.host, name, engine.run(f"inspect -f '{{{{.State.Pid}}}}' {name}"))


def swarm(engines: list[Docker], addresses: list[str]) -> Way:
    """Make a swarm of two engines, and a container on each of them in an attachable overlay network."""
    first, second = engines
    first.run(f"swarm init --advertise-addr {addresses[0]}")
    token = first.run("swarm join-token -q worker")
    second.run(f"swarm join --advertise-addr {addresses[1]} --token {token} {addresses[0]}:2377")
    first.run(f"network create -d overlay --attachable --subnet {OVERLAY} over")
    ends = [in_docker(engine, f"over{n}", "--network over") for n, engine in enumerate(engines, 1)]
    return Way(SWARM, ends[0], ends[1], second.address("over2", "over"))


def bridged(name: str, host: VirtualHost, run: Callable[[str], object], start: Callable[[str, str], str]) -> list[str]:
    """Make an engine's bridge with two containers, of which the second publishes a port; return their namespaces."""
    progress(f"{name} on {host.name}")
    run(f"network create --subnet {BRIDGE} own")
    return [start("one", "--network own"), start("two", f"--network own -p {PORT}:{PORT}")]


def locally(lab: Lab) -> tuple[Way, Way]:
    """Attach two containers to a bridge on one host, of which the second publishes a port; return both ways to it."""
    client = agents.client(lab, "h1")
    client.call("POST", "/v1/networks", {"name": "local", "pools": [ONE_HOST], "backend": "bridge"})
    agents.await_network(lab, lab.hosts[:1], "local")
    containers.add(lab, "h1", "local-1", "local", [])
    name = f"{LAB}-local-2"
    commands.add(name)
    path = f"/run/netns/{name}"
    published = {"host_ip": "", "host_port": PORT, "port": PORT, "protocol": "tcp"}
    body = {"id": "local-2", "network": "local", "namespace_path": path, "ports": [published]}
    with Path(path).open() as opened:
        endpoint = client.call("POST", "/v1/attach", body | {"namespace_fd": opened.fileno()})
    address = topology.bare(endpoint["addresses"][0])
    host = lab.host("h1")
    return (
        Way(LOCAL, lab.container("local-1").namespace, name, address),
        Way(PUBLISHED.format(LOCAL), f"{LAB}-x1", name, topology.bare(host.addresses[0])),
    )


# ------------------------------------------------------------------ measuring


def packets(way: Way, seconds: float) -> float:
    """Return how many thousand small UDP packets a second arrive, sent without a pause."""
    with serving(way.server, "iperf3", "--server", "--port", str(PORT)):
        commands.await_(lambda: bool(commands.run("ss", "-Hltn", f"sport = :{PORT}", netns=way.server).strip()))
        said = commands.run(
            *("iperf3", "--client", way.address, "--port", str(PORT), "--time", f"{seconds:.0f}", "--json"),
            *("--udp", "--bitrate", "0", "--length", str(SMALL)),
            netns=way.client,
        )
    whole = json.loads(said)["end"]["sum"]
    return float(whole["packets"] - whole["lost_packets"]) / float(whole["seconds"]) / 1000


def connections(way: Way, seconds: float) -> float:
    """Return how many TCP connections a second are made and ended, one after the other."""
    with serving(way.server, sys.executable, "-ISc", _ACCEPTS, str(PORT), word=True):
        argv = (sys.executable, "-ISc", _CONNECTS, way.address, str(PORT), f"{seconds:.1f}")
        return float(commands.run(*argv, netns=way.client))


def busy() -> float:
    """Return the seconds that the machine's cores have worked (proc_stat(5))."""
    whole = Path("/proc/stat").read_text().partition("\n")[0]
    user, nice, system, _idle, _wait, irq, soft, *_ = map(int, whole.split()[1:])
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


def stream(way: Way, seconds: int) -> dict[str, float]:
    """Measure one TCP stream, and what all cores worked for a gigabyte of it."""
    before = busy()
    rate = tcp(way, 1, seconds)
    return {ONE: rate, COST: (busy() - before) / (rate / 8 * seconds)}


def trips(way: Way, count: int) -> dict[str, float]:
    """Measure the round trips."""
    found = echoes(way, count)
    return {ECHO: statistics.median(found), LATE: p(found, 99), REQUEST: request(way, count)}


def tests(way: Way, seconds: int, count: int) -> Iterator[Callable[[], dict[str, float]]]:
    """Yield what is measured: of a published port what passes TCP."""
    yield partial(stream, way, seconds)
    yield lambda: {NEW: connections(way, seconds)}
    if "published" not in way.name:
        yield lambda: {EIGHT: tcp(way, 8, seconds)}
        yield lambda: {PACKETS: packets(way, seconds)}
        yield partial(trips, way, count)


def rounds(ways: list[Way], quick: bool) -> None:
    """Measure each way in turn; the first round, a short one, warms up."""
    count, seconds, trips_ = (1, 1, 1000) if quick else (7, 2, 3000)
    for number in range(count + 1):
        for way in ways if number % 2 else reversed(ways):
            progress(f"round {number} of {count}: {way.name}")
            for test in tests(way, seconds if number else 1, trips_ if number else 300):
                for what, value in test().items():
                    if number:
                        way.add(what, value)
    progress("")


def results(ways: list[Way]) -> dict[str, Metric]:
    """Return all figures, and the ratios with their targets."""
    by = {way.name: way for way in ways}
    found = {f"{way.name}: {what}": result(way.median(what), UNITS[what]) for way in ways for what in way.figures}
    for mine, theirs, what, target in TARGETS:
        pairs = zip(by[mine].figures[what], by[theirs].figures[what], strict=True)
        ratio = statistics.median(one / other for one, other in pairs)
        found[f"{what}, {mine} / {theirs}"] = result(ratio, "ratio", target)
    return found


def tell(ways: list[Way], found: dict[str, Metric]) -> None:
    """Print the figures for a reader, as Markdown."""
    print("| way | " + " | ".join(f"{what} ({unit})" for what, unit in UNITS.items()) + " |")
    print("|---" * (1 + len(UNITS)) + "|")
    for way in ways:
        cells = (f"{way.median(what):.3g}" if what in way.figures else "" for what in UNITS)
        print(f"| {way.name} | " + " | ".join(cells) + " |")
    print()
    report.table("ratio", {name: one for name, one in found.items() if " / " in name})


@contextlib.contextmanager
def made(folder: Path) -> Iterator[list[Way]]:
    """Make all hosts and ways, and take them away afterwards."""
    lab = topology.planned(topology.Wishes(lab=LAB, hosts=2, containers_per_host=0))
    with contextlib.ExitStack() as stack:
        stack.callback(build.down, LAB)
        build.up(lab)
        own = plugged(lab, 1, 2)
        ways = [bare_underlay(lab)]
        ways += [made_by_hand(backend, own) for backend in HAND]
        ways += [ours(lab, "vxlan"), fast(lab), ours(lab, "host-gw"), *locally(lab)]
        hosts = [stack.enter_context(engine_host(lab, 110 + n, folder)) for n in range(3)]
        addresses = [topology.bare(topology.address(1, 4, str(110 + n))) for n in range(3)]
        engines = [Docker(host) for host in hosts[:2]]
        for engine in engines:
            progress(f"dockerd on {engine.host.name}")
            engine.start()
        ways.append(swarm(engines, addresses))
        podman = Podman(hosts[2])
        for name, at, ends in (
            (DOCKER, addresses[0], bridged(DOCKER, hosts[0], engines[0].run, partial(in_docker, engines[0]))),
            (NETAVARK, addresses[2], bridged(NETAVARK, hosts[2], podman.run, partial(in_podman, podman))),
        ):
            inner = json.loads(commands.run("ip", "-j", "-4", "addr", "show", "eth0", netns=ends[1]))
            ways += [
                Way(name, ends[0], ends[1], inner[0]["addr_info"][0]["local"]),
                Way(PUBLISHED.format(name), own[0].namespace, ends[1], at),
            ]
        yield ways


def measure(folder: Path, quick: bool) -> dict[str, Metric]:
    """Measure all ways in turn."""
    with made(folder) as ways:
        rounds(ways, quick)
    found = results(ways)
    tell(ways, found)
    return found


# ------------------------------------------------------------------ the profile


def requests(way: Way, seconds: float) -> float:
    """Return how many requests by TCP a second are answered, one after the other."""
    with answered(way) as client:
        count, begun = 0, time.monotonic()
        while (took := time.monotonic() - begun) < seconds:
            exchanged(client, 100)
            count += 100
    return count / took


def gigabytes(way: Way, seconds: float) -> float:
    """Return how many gigabytes a second one TCP stream carries."""
    return tcp(way, 1, math.ceil(seconds)) / 8


PROFILED: list[tuple[str, str, tuple[str, ...], Callable[[Way, float], float]]] = [
    ("a new connection", "us", ACROSS, connections),
    ("a request by TCP", "us", ACROSS, requests),
    ("a gigabyte through a published port", "ms", THROUGH, gigabytes),
    ("a new connection through a published port", "us", THROUGH, connections),
]
"""What is done, the unit of its CPU time, the ways, and what does it all the time and returns how often a second."""
PER_SECOND = {"us": 1e6, "ms": 1e3}
TAIL = 0.5
"""Seconds for which a test goes on when the last sample was taken."""


def shares(
    folder: Path, way: Way, test: Callable[[Way, float], float], seconds: float
) -> tuple[float, list[Sample]]:
    """Let a test run, and return how often a second it did its work, and samples of ``seconds`` in its midst."""
    recording = Recording(folder / "perf.data", seconds)
    rate = test(way, LEAD + seconds + TAIL)
    return rate, recording.samples()


def profile(folder: Path, quick: bool) -> dict[str, Metric]:
    """Divide the CPU time of each piece of work by the parts of the kernel, and print a table for each sort of work."""
    cpu_profile.check()
    count, seconds = (1, 1.0) if quick else (5, 2.0)
    own = {Path(sys.executable).name[:15], "iperf3"}  # a program's name has 15 letters (proc_pid_comm(5))
    metrics: dict[str, Metric] = {}
    with made(folder) as ways:
        by = {way.name: way for way in ways}
        for what, unit, names, test in PROFILED:
            found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
            taken: list[Sample] = []
            for number in range(count):
                for name in names if number % 2 else reversed(names):
                    progress(f"round {number + 1} of {count}: {what}, {name}")
                    rate, one = shares(folder, by[name], test, seconds)
                    spent = cpu_profile.spent(one, own)
                    found[name].append({g: s / seconds / rate * PER_SECOND[unit] for g, s in spent.items()})
                    taken += one
            progress("")
            metrics |= tell_shares(what, unit, found)
            print("\nMost of `other`:", ", ".join(cpu_profile.unknown(taken, own)) or "nothing")
    return metrics


def tell_shares(what: str, unit: str, found: dict[str, list[dict[str, float]]]) -> dict[str, Metric]:
    """Print the median of each group's CPU time, by way, and return all as metrics."""
    print(f"\n| CPU time of {what} ({unit}) | " + " | ".join(found) + " |\n|---" + "|---" * len(found) + "|")
    metrics, rows = {}, next(iter(found.values()))[0]
    for group in (*rows, "all"):
        cells = []
        for way, rounds_ in found.items():
            value = statistics.median(sum(one.values()) if group == "all" else one[group] for one in rounds_)
            metrics[f"{what}, {way}: {group}"] = result(value, unit)
            cells.append(f"{value:.1f}")
        print(f"| {group} | " + " | ".join(cells) + " |")
    return metrics


if __name__ == "__main__":
    for program in ("iperf3", "dockerd", "podman"):
        if shutil.which(program) is None:
            sys.exit(f"error: no {program}: apt-get install iperf3 docker.io podman")
    report.run(
        measure,
        "linkspan's packets beside Docker's, Podman's and those by hand",
        "a short round: 2 minutes",
        {"profile": (profile, "instead: which parts of the kernel take the CPU time, where targets were missed")},
    )
