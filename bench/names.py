"""Names benchmark: answers of names, and the delay until another host answers a new container's name.

A lab of two hosts (VXLAN) in whose store 1,000 containers stand beside those that are there. The server of
the first host is held on one core, and asked by a client on another: from the host as many questions as it
answers with 32 under way (a container may ask 10,000 a second), then from the container 5,000 a second, each
timed. Then containers come on the second host, and the first one's server is asked until it knows them.

    sudo .venv/bin/python bench/names.py [--quick]

The whole program runs in network and mount namespaces of its own, so that nothing of it can stay on the
machine.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import msgspec
import report
from report import Metric, p, progress, result

from linkspan.core.model import Endpoint, Lease
from linkspan.kernel.io.namespaces import open_namespace
from linkspan.lab import agents, build, sockets, topology
from linkspan.lab.record import Lab
from linkspan.store.factory import open_store

LAB = "lkpnames"
OTHERS = 1000
WINDOW = 32
RATE, AT_ONCE = 5000, 5
"""Questions a second, and how many follow each other between two rests of the client."""
GATEWAY = "10.244.0.1"


def question(name: str, number: int) -> bytes:
    """Return a query for an A record (RFC 1035 section 4.1)."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!6H", number, 0x0100, 1, 0, 0, 0) + labels + b"\0\0\1\0\1"


def publish(lab: Lab, over: threading.Event) -> None:
    """Put 1,000 more containers of a third host into the store, and say for it that it lives (a thread's work)."""

    async def put() -> None:
        store = open_store(topology.store_url(lab, lab.hosts[0]), lab.folder, "")
        lease = Lease(network="demo", host="h9")  # by it the first host knows that h9 has containers there
        await store.transaction({"leases/demo/h9": msgspec.json.encode(lease)})
        for begin in range(0, OTHERS, 50):
            await store.transaction(dict(map(record, range(begin, begin + 50))))
        while not over.is_set():
            await store.transaction({"alive/h9": b"h9"})
            await asyncio.sleep(1)
        await store.close()

    asyncio.run(put())


def record(number: int) -> tuple[str, bytes]:
    """Return a container's record: the key, and the value."""
    address = f"10.244.{200 + number // 250}.{2 + number % 250}/32"
    name = f"many{number}"
    made = Endpoint(id=name, ifname="eth0", name=name, network="demo", host="h9", addresses=(address,))
    return f"endpoints/h9/{name}/eth0", msgspec.json.encode(made)


def server() -> int:
    """Return the process of the first host's server."""
    mark = f"LINKSPAN_PROCESS=/run/linkspan-lab/{LAB}/h1/state:names-demo".encode()
    for process in Path("/proc").iterdir():
        with suppress(OSError):
            if process.name.isdigit() and mark in (process / "environ").read_bytes().split(b"\0"):
                return int(process.name)
    sys.exit("error: no server of names runs: is dnsmasq installed?")


def client(place: str) -> socket.socket:
    """Return a socket of the first host, or of its container."""
    with sockets.inside(f"{LAB}-{place}"):
        way = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    way.settimeout(2)
    way.connect((GATEWAY, 53))
    return way


def known(way: socket.socket, name: str) -> bool:
    """Ask for one name; tell whether it has an address."""
    try:
        way.send(question(name, 1))
        return bool(struct.unpack_from("!H", way.recv(512), 6)[0])
    except ConnectionRefusedError:  # the server is about to start
        return False


def throughput(way: socket.socket, names: list[str], seconds: float) -> float:
    """Return how many questions a second are answered, WINDOW of them under way at any time."""
    asked = [question(name, n & 0xFFFF) for n, name in enumerate(names)]
    for n in range(WINDOW):
        way.send(asked[n])
    begin, count = time.perf_counter(), 0
    while (took := time.perf_counter() - begin) < seconds:
        way.recv(512)
        way.send(asked[count % len(asked)])
        count += 1
    for _ in range(WINDOW):
        way.recv(512)
    return count / took


def latencies(way: socket.socket, names: list[str], seconds: float) -> list[float]:
    """Return the milliseconds of each question at RATE a second."""
    found = []
    due = time.perf_counter()
    for n in range(int(seconds * RATE)):
        if n % AT_ONCE == 0:
            due += AT_ONCE / RATE
            time.sleep(max(0.0, due - time.perf_counter()))
        begin = time.perf_counter()
        way.send(question(names[n % len(names)], n & 0xFFFF))
        way.recv(512)
        found.append((time.perf_counter() - begin) * 1000)
    return found


def coming(way: socket.socket, lab: Lab, times: int) -> list[float]:
    """Return the milliseconds from a container's attach on the second host to its name on the first one."""
    found = []
    ask = agents.client(lab, "h2")
    for n in range(times):
        name = f"new{n}"
        subprocess.run(["ip", "netns", "add", name], check=True)
        fd = open_namespace(f"/run/netns/{name}")
        body = {"id": name, "name": name, "network": "demo", "namespace_fd": fd, "namespace_path": f"/run/netns/{name}"}
        ask.call("POST", "/v1/attach", body)
        begin = time.perf_counter()
        os.close(fd)
        while not known(way, name):
            time.sleep(0.002)
        found.append((time.perf_counter() - begin) * 1000)
        time.sleep(random.random() * 0.3)  # noqa: S311 - at no fixed place of the server's rests
        ask.call("POST", "/v1/detach", {"id": name})
        subprocess.run(["ip", "netns", "delete", name], check=True)
    return found


def measure(folder: Path, quick: bool) -> dict[str, Metric]:
    """Measure it all."""
    del folder
    lab = topology.planned(topology.Wishes(lab=LAB, hosts=2))
    build.up(lab)
    over = threading.Event()
    publisher = threading.Thread(target=publish, args=(lab, over))
    publisher.start()
    try:
        way = client("c1")
        while not (known(way, "c2") and known(way, f"many{OTHERS - 1}")):
            time.sleep(0.05)
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(server(), cores[:1])
        os.sched_setaffinity(0, cores[1:] or cores)
        names = [f"many{n}" for n in range(OTHERS)]
        progress("questions a second")
        rate = throughput(client("h1"), names, 1 if quick else 10)
        progress("each question")
        each = latencies(way, names, 1 if quick else 10)
        progress("containers that come")
        came = coming(way, lab, 5 if quick else 30)
        progress("")
        found = {
            "questions a second, one core": result(rate, "1/s", f">= {RATE}"),
            f"a question at {RATE}/s, median": result(p(each, 50), "ms"),
            f"a question at {RATE}/s, p99": result(p(each, 99), "ms", "<= 2"),
            "a new container's name on another host, median": result(p(came, 50), "ms"),
            "a new container's name on another host, longest": result(max(came), "ms", "<= 1000"),
        }
        report.table(f"names, {OTHERS} of them", found)
        return found
    finally:
        over.set()
        publisher.join()
        build.down(LAB)


if __name__ == "__main__":
    report.run(measure, "how fast names are answered", "fewer repetitions")
