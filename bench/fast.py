"""Round trips inside a VXLAN network: with fast=true, without, and by the objects of Docker's overlay, made by hand.

Four virtual hosts on one switch. Two have agents, with one network of each sort. On the other two are the objects that
Docker's overlay driver makes: a namespace with a bridge, in which one port is the container's and the other a VXLAN
device. They have the engine's tables, too, because of which connection tracking looks at each packet: one of the host,
and one of the container, for its DNS server. In turn, round after round: the round trip of an ICMP echo of 64 bytes, of
a UDP packet and of a request by TCP of as many, and one TCP stream (iperf3). A ratio is the median of the rounds'
ratios, because both measurements of a round share the machine's load.

    sudo .venv/bin/python bench/fast.py [--quick]

Needs iperf3. The whole program runs in network and mount namespaces of its own.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import statistics
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import report
from datapath import Way, bare_underlay, exchanged, masquerading, ours, plugged, serving, tcp, udp
from report import Metric, progress, result

from linkspan.lab import agents, build, commands, containers, sockets, topology
from linkspan.lab.record import Host, Lab

LAB = "lkpfast"
FAST, OVERLAY = "10.247.0.0/16", "10.90.0"
POOL = f"{OVERLAY}.0/24"
FAST_TARGET, DOCKER_TARGET = "<= 0.85", "<= 0.85"
"""A trial of the same chains, typed by hand, had 0.82 of the path without them, and 1.06 of Docker's objects. Those had
no tables, and packets no tracking, in that trial. Beside objects with the engine's tables the target is that beside
the engine itself (bench/peers.py)."""
SIZE = 64
PORT = 5302
VNI, VXLAN_PORT, MTU = 43, 4790, 1450
"""Another port than linkspan's: VNIs of one port share a socket."""

NAME_SERVER = """
table ip docker {
    chain output {
        type nat hook output priority dstnat
        ip daddr 127.0.0.11 udp dport 53 dnat to 127.0.0.11:5353
        ip daddr 127.0.0.11 tcp dport 53 dnat to 127.0.0.11:5353
    }
    chain postrouting {
        type nat hook postrouting priority srcnat
        ip saddr 127.0.0.11 udp sport 5353 snat to :53
        ip saddr 127.0.0.11 tcp sport 5353 snat to :53
    }
}
"""
"""A container on a network of its own asks the engine's DNS server at 127.0.0.11, which listens at another port."""

_ANSWER = """
import socket, sys
server = socket.create_server(("", int(sys.argv[1])))
print("ready", flush=True)
connection, _ = server.accept()
connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
while data := connection.recv(int(sys.argv[2])):
    connection.send(data)
"""


def overlay(ends: list[Host]) -> Way:
    """Make Docker's objects on two hosts; return the way between their containers."""
    for number, host in enumerate(ends, 1):
        inner, container = f"{LAB}-overlay-{number}", f"{LAB}-container-{number}"
        commands.add(inner)
        commands.add(container)
        other = topology.bare(ends[2 - number].addresses[0])
        local = topology.bare(host.addresses[0])
        lines = [
            f"ip link add vx type vxlan id {VNI} local {local} dstport {VXLAN_PORT} nolearning",
            f"ip link set vx netns {inner}",
            f"ip -n {inner} link add br0 type bridge",
            f"ip -n {inner} link add veth0 mtu {MTU} type veth peer name eth0 mtu {MTU} netns {container}",
            *(f"ip -n {inner} link set {link} master br0 up" for link in ("vx", "veth0")),
            f"ip -n {inner} link set br0 up",
            f"bridge -n {inner} fdb append 00:00:00:00:00:00 dev vx dst {other}",
            f"ip -n {container} link set eth0 up",
            f"ip -n {container} addr add {OVERLAY}.{number}/24 dev eth0",
        ]
        commands.run("sh", "-e", given="\n".join([*lines, *masquerading("docker", POOL)]), netns=host.namespace)
        commands.run("nft", "-f", "-", given=NAME_SERVER, netns=container)
    return Way("as Docker's overlay, by hand", f"{LAB}-container-1", f"{LAB}-container-2", f"{OVERLAY}.2")


def fast(lab: Lab) -> Way:
    """Attach a container on each of the two hosts to a fast network."""
    wish = {"name": "quick", "pools": [FAST], "backend": "vxlan", "options": {"fast": "true"}}
    agents.client(lab, "h1").call("POST", "/v1/networks", wish)
    agents.await_network(lab, lab.hosts[:2], "quick")
    ends = [containers.add(lab, f"h{n}", f"quick-{n}", "quick", []) for n in (1, 2)]
    for host in ("h1", "h2"):
        commands.await_(lambda host=host: _standing(lab, host)["endpoints"] == 1)  # type: ignore[misc]
        if why := _standing(lab, host)["obstacle"]:
            sys.exit(f"error: {host}: {why}")
    client, server = (lab.container(f"quick-{n}").namespace for n in (1, 2))
    return Way("vxlan with fast=true", client, server, topology.bare(ends[1]["addresses"][0]))


def _standing(lab: Lab, host: str) -> dict[str, object]:
    found: dict[str, object] = agents.client(lab, host).call("GET", "/v1/networks/quick")["fast"]
    return found


def echo(way: Way, count: int) -> float:
    """Return the median round trip of an ICMP echo, in microseconds."""
    return statistics.median(echoes(way, count))


def echoes(way: Way, count: int) -> list[float]:
    """Return the round trips of ICMP echoes, in microseconds."""
    with sockets.inside(way.client):
        client = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    times = []
    with client:
        client.settimeout(2)
        client.connect((way.address, 0))
        for number in range(count):
            request = _request(number)
            started = time.perf_counter_ns()
            client.send(request)
            while client.recv(2048)[24:28] != request[4:8]:
                pass
            times.append((time.perf_counter_ns() - started) / 1e3)
    return times


def _request(number: int) -> bytes:
    """Return an ICMP echo request (RFC 792)."""
    body = struct.pack("!HH", 76, number & 0xFFFF) + bytes(SIZE - 8)
    total = 0x0800 + sum(struct.unpack(f"!{len(body) // 2}H", body))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!BBH", 8, 0, ~total & 0xFFFF) + body


@contextlib.contextmanager
def answered(way: Way) -> Iterator[socket.socket]:
    """Give a TCP connection to a server that answers each request."""
    with serving(way.server, sys.executable, "-ISc", _ANSWER, str(PORT), str(SIZE), word=True):
        with sockets.inside(way.client):
            client = socket.create_connection((way.address, PORT), 2)
        with client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield client


def request(way: Way, count: int) -> float:
    """Return the median round trip of a request by TCP, in microseconds."""
    with answered(way) as client:
        return exchanged(client, count)


TESTS: dict[str, Callable[[Way, int], float]] = {
    "ICMP round trip": echo,
    "UDP round trip": udp,
    "TCP request": request,
}


def rounds(ways: list[Way], quick: bool) -> None:
    """Measure each way in turn; the first round, a short one, warms up."""
    count, trips, seconds = (3, 1000, 1) if quick else (11, 3000, 2)
    for number in range(count + 1):
        for way in ways if number % 2 else reversed(ways):
            for what, test in TESTS.items():
                value = test(way, trips if number else 300)
                if number:
                    way.add(what, value)
            value = tcp(way, 1, seconds if number else 1)
            if number:
                way.add("TCP, one stream", value)
        progress(f"round {number} of {count}")
    progress("")


def results(ways: list[Way]) -> dict[str, Metric]:
    """Return all metrics."""
    found: dict[str, Metric] = {}
    by = {way.name: way for way in ways}
    for way in ways:
        for what in way.figures:
            found[f"{way.name}: {what}"] = result(way.median(what), "Gbit/s" if "stream" in what else "us")
    quick = by["vxlan with fast=true"]
    for other, target in (("vxlan by linkspan", FAST_TARGET), ("as Docker's overlay, by hand", DOCKER_TARGET)):
        for what, values in quick.figures.items():
            ratio = statistics.median(a / b for a, b in zip(values, by[other].figures[what], strict=True))
            aim = target if what == "ICMP round trip" else ""
            found[f"{what}, fast / {other}"] = result(ratio, "ratio", *([aim] if aim else []))
    return found


def measure(_folder: Path, quick: bool) -> dict[str, Metric]:
    """Make all hosts and ways, and measure."""
    lab = topology.planned(topology.Wishes(lab=LAB, hosts=2, containers_per_host=0))
    build.up(lab)
    try:
        ways = [
            bare_underlay(lab),
            ours(lab, "vxlan"),
            fast(lab),
            overlay(plugged(lab, 1, 2)),
        ]
        rounds(ways, quick)
    finally:
        build.down(LAB)
    found = results(ways)
    print("| way | " + " | ".join(ways[0].figures) + " |\n" + "|---" * (1 + len(ways[0].figures)) + "|")
    for way in ways:
        print(f"| {way.name} | " + " | ".join(f"{way.median(what):.1f}" for what in way.figures) + " |")
    print()
    report.table("ratio", {name: one for name, one in found.items() if " / " in name})
    return found


if __name__ == "__main__":
    if shutil.which("iperf3") is None:
        sys.exit("error: no iperf3: apt-get install iperf3")
    report.run(measure, "round trips inside a VXLAN network, fast and not", "three short rounds: about 40 s")
