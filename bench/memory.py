"""Memory benchmark: an agent with 1,000 peers, with SQLite and with etcd.

A lab of two hosts (VXLAN); then the records of 1,000 hosts that are not there come into its store: host,
lease, block and liveness. When the first host has a route to each it has 15 s to settle, and is read.

    sudo .venv/bin/python bench/memory.py [--quick]

The whole program runs in network and mount namespaces of its own, so that nothing of it can stay on the
machine.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import report
from report import Metric, progress, result

from linkspan.core.addresses import Prefix, derived_mac, mac_text, prefix
from linkspan.core.model import Host, Lease, Offer, Underlay
from linkspan.lab import build, commands, processes, sockets, topology
from linkspan.lab.record import Lab
from linkspan.store.factory import open_store
from linkspan.store.records import BlockRecord, block_key, lease_key

LAB = "lkpmem"
PEERS = 1000
AT_ONCE = 25
"""Hosts in one transaction: four records each."""
SETTLE = 15.0
PATIENCE = 120.0
TARGET = "<= 80"


def records(network: str, number: int) -> dict[str, bytes]:
    """Return what a host has in the store; its block is far from those of the lab's own hosts."""
    name = f"peer{number}"
    block = Prefix(prefix("10.64.0.0/12").at(number << 8).packed, 24)
    address = prefix("198.18.0.0/15").at(number + 1).address
    offer = Offer({"mac": mac_text(derived_mac("vtep", name, network)), "address": address})
    lease = Lease(
        network=network,
        host=name,
        prefixes=(str(block),),
        addresses=(str(block.at(1).single()),),
        endpoints={"vxlan": offer},
    )
    host = Host(id=name, name=name, version="0.1.0", underlay=Underlay("eth0", (f"{address}/15",)))
    values: dict[str, msgspec.Struct] = {
        f"hosts/{name}": host,
        lease_key(network, name): lease,
        block_key(network, block): BlockRecord(name, time.time()),
    }
    return {**{key: msgspec.json.encode(value) for key, value in values.items()}, f"alive/{name}": b"x"}


async def fill(lab: Lab, url: str, folder: Path) -> None:
    """Let the store know of the hosts."""
    store = open_store(url, folder)
    try:
        for first in range(0, PEERS, AT_ONCE):
            puts = [records(lab.network, number) for number in range(first, first + AT_ONCE)]
            await store.transaction({key: value for one in puts for key, value in one.items()})
    finally:
        await store.close()


def resident(lab: Lab) -> float:
    """Return the first host's agent's resident memory in MB."""
    (pid,) = processes.agents(lab.folder, lab.hosts[0].name)
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


def grown(kind: str, folder: Path) -> tuple[float, float]:
    """Return an agent's megabytes with one peer, and with all."""
    lab = topology.planned(topology.Wishes(lab=LAB, hosts=2, store=kind, containers_per_host=1))
    lab.pools = ["10.64.0.0/10"]
    build.up(lab)
    try:
        before = resident(lab)
        with sockets.inside(lab.switch):
            asyncio.run(fill(lab, topology.store_url(lab, lab.hosts[0]), folder))

        def routes() -> int:
            shown = ["ip", "-n", lab.hosts[0].namespace, "route", "show"]
            return subprocess.run(shown, capture_output=True, check=True).stdout.count(b" via ")

        if not commands.await_(lambda: routes() >= PEERS, PATIENCE):
            sys.exit(f"error: {kind}: {routes()} routes of {PEERS} after {PATIENCE:.0f} s")
        time.sleep(SETTLE)
        return before, resident(lab)
    finally:
        build.down(LAB)


def measure(folder: Path, quick: bool) -> dict[str, Metric]:
    """Run everything; returns the metrics."""
    found = {}
    for kind in ["sqlite"] if quick or not shutil.which("etcd") else ["sqlite", "etcd"]:
        progress(f"memory: {kind}")
        before, after = grown(kind, folder)
        found[f"agent with 1 peer, {kind}"] = result(before, "MB")
        found[f"agent with {PEERS} peers, {kind}"] = result(after, "MB", TARGET)
    progress("")
    report.table("what", found)
    return found


if __name__ == "__main__":
    report.run(measure, "an agent's memory with 1,000 peers", "SQLite only: about 30 s")
