"""Join benchmark: from a new host's lease to the first ping that its own address in the network answers.

A lab of two hosts is up; a third joins with an id that the cluster has never seen, is measured, and is
removed, again and again. The block that it will claim follows from its id, so a container of another host
begins to ping its address before there is anything, each millisecond; the clock starts at the time that the
lease's block carries, which is taken just before it is written.

    sudo .venv/bin/python bench/join.py [--quick]

The whole program runs in network and mount namespaces of its own, so that nothing of it can stay on the
machine.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
import threading
import time
from pathlib import Path

import msgspec
import report
from report import Metric, p, progress, result

from linkspan.cluster.blocks import candidates, own_address
from linkspan.core.addresses import Prefix, prefix
from linkspan.lab import agents, build, commands, matrix, processes, sockets, topology, underlay
from linkspan.lab.record import Host, Lab
from linkspan.store.factory import open_store
from linkspan.store.records import BlockRecord, block_key

LAB = "lkpjoin"
LENGTH = 24
"""Block length of the lab's network, the default for a /16."""
FIRST = 100
"""The last number of the first new host's address: each has its own, for its neighbours remember the MAC."""
EVERY = 0.001
PATIENCE = 20.0
TARGET = "<= 100"
_ECHO, _REPLY = 8, 0  # RFC 792


class Pinger(threading.Thread):
    """Pings an address from a lab's container until it answers once; ``answered`` is the wall clock's time."""

    def __init__(self, netns: str, address: str) -> None:
        super().__init__()
        self.answered = 0.0
        self._address = address
        with sockets.inside(netns):
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self._socket.settimeout(EVERY)

    def run(self) -> None:
        """Send and listen."""
        end = time.monotonic() + PATIENCE
        number = 0
        while time.monotonic() < end:
            number += 1
            try:
                self._socket.sendto(_echo(number & 0xFFFF), (self._address, 0))
                while True:
                    packet, sender = self._socket.recvfrom(512)
                    if sender[0] == self._address and packet[(packet[0] & 15) * 4] == _REPLY:
                        self.answered = time.time()
                        return
            except TimeoutError:
                continue
            except OSError:  # an earlier ping's "unreachable"
                time.sleep(EVERY)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def _echo(number: int) -> bytes:
    words = struct.pack("!BBHHH", _ECHO, 0, 0, 0x4C4B, number)
    total = sum(struct.unpack("!4H", words))
    total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!BBHHH", _ECHO, 0, ~total & 0xFFFF, 0x4C4B, number)


def claimed_at(lab: Lab, block: Prefix) -> float:
    """Return when the block was claimed, as its record has it."""

    async def read() -> float:
        store = open_store(f"sqlite://{lab.folder / 'store'}", lab.folder)
        try:
            record = await store.get(block_key(lab.network, block))
        finally:
            await store.close()
        if record is None:
            sys.exit(f"error: the new host has not claimed {block}")
        return msgspec.json.decode(record.value, type=BlockRecord).at

    return asyncio.run(read())


def joined(lab: Lab, number: int) -> float:
    """Let a host join, and return the milliseconds from its lease to its first answer; then it is removed."""
    name = f"n{number}"
    host = Host(name, f"{LAB}-{name}", 1, [topology.address(1, 4, str(FIRST + number))])
    pool = prefix(lab.pools[0])
    hosts = agents.client(lab, "h1").call("GET", "/v1/hosts")
    owned = {prefix(text) for told in hosts for lease in told["leases"] for text in lease["prefixes"]}
    block = next(candidates(pool, LENGTH, name, owned))
    lab.hosts.append(host)
    underlay.plug(lab, host)
    pinger = Pinger(lab.container("c1").namespace, own_address(pool, block).address)
    pinger.start()
    try:
        agents.start(lab, [host])
        pinger.join()
        if not pinger.answered:
            sys.exit(f"error: host {name} does not answer after {PATIENCE:.0f} s")
        took = (pinger.answered - claimed_at(lab, block)) * 1e3
    finally:
        pinger.close()
        _removed(lab, host)
    return took


def _removed(lab: Lab, host: Host) -> None:
    processes.kill(lab.folder, lambda: processes.agents(lab.folder, host.name), f"host {host.name}")
    agents.client(lab, "h1").call("DELETE", f"/v1/hosts/{host.name}?force")
    underlay.unplug(lab, host)
    commands.delete(host.namespace)
    lab.hosts.remove(host)


def joins(quick: bool) -> list[float]:
    """Let hosts join, one after the other; the first warms up."""
    rounds = 5 if quick else 20
    lab = topology.planned(topology.Wishes(lab=LAB, hosts=2))
    build.up(lab)
    try:
        if silent := matrix.awaited(lab):
            raise matrix.sentence(silent)
        found = []
        for number in range(rounds + 1):
            found.append(joined(lab, number))
            progress(f"joins: {number} of {rounds}")
        progress("")
        return found[1:]
    finally:
        build.down(LAB)


def measure(_folder: Path, quick: bool) -> dict[str, Metric]:
    """Run everything; returns the metrics."""
    times = joins(quick)
    found = {
        "lease to first answered ping: p50": result(p(times, 50), "ms", TARGET),
        "lease to first answered ping: p95": result(p(times, 95), "ms"),
        "lease to first answered ping: shortest": result(min(times), "ms"),
        "joins": result(len(times), "times"),
    }
    report.table("what", found)
    return found


if __name__ == "__main__":
    report.run(measure, "from a new host's lease to its first answered ping", "fewer rounds: about 10 s")
