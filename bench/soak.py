"""Soak benchmark: sixty real agents under churn and failures for ten minutes, with an etcd of three members.

A lab of 60 hosts (VXLAN) with five containers each. Each host's first container pings those of two other hosts all the
while; containers come and go, and their names are asked for on other hosts. In turn etcd's leader is killed and comes
back, two hosts do not reach each other for a while, and ten agents are killed and start again
(tests/support/lab/soak.py).

    sudo .venv/bin/python bench/soak.py [--quick]

The whole program runs in network and mount namespaces of its own, so that nothing of it can stay on the machine. It
needs 6 GB of memory. All hosts share one kernel's table of neighbours (1,024 learnt entries, as a rule): so the lab
gives each host the MACs of the others, and each sends packets of containers to a few others only.
"""

from __future__ import annotations

import sys
from pathlib import Path

import report
from report import Metric, progress, result

from linkspan.lab import build, topology

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from support.lab.soak import Soak

LAB = "lkpsoak"
HOSTS, CONTAINERS, KILLED, SECONDS = 60, 5, 10, 600.0
QUICK_HOSTS, QUICK_CONTAINERS, QUICK_KILLED, QUICK_SECONDS = 8, 3, 2, 60.0


def measure(_folder: Path, quick: bool) -> dict[str, Metric]:
    """Run everything; returns the metrics."""
    hosts, each = (QUICK_HOSTS, QUICK_CONTAINERS) if quick else (HOSTS, CONTAINERS)
    wishes = topology.Wishes(lab=LAB, hosts=hosts, store="etcd", store_members=3, containers_per_host=each)
    lab = topology.planned(wishes)
    progress(f"{hosts} hosts come")
    try:
        build.up(lab)
        seconds, killed = (QUICK_SECONDS, QUICK_KILLED) if quick else (SECONDS, KILLED)
        soak = Soak(lab, seconds, killed, progress)
        done = soak.run()
    finally:
        build.down(LAB)
    progress("")
    found = {
        "hosts": result(hosts, ""),
        "containers that came": result(done.came, ""),
        "leases and blocks that changed": result(len(done.changed), "", "<= 0"),
        "pings between hosts that were whole": result(done.pings - done.cut, ""),
        "of these lost": result(len(done.lost), "", "<= 0"),
        "pings lost between hosts that were parted": result(done.cut, "", ">= 1"),
        "names asked for": result(done.asked, ""),
        "names that were not right in time": result(len(done.wrong), "", "<= 0"),
        "until a name was right, longest": result(done.slowest, "s", "<= 5"),
        "living hosts that were taken for dead": result(len(done.dead), "", "<= 0"),
    }
    report.table(f"{hosts} hosts", found)
    for what, which in (("not right", done.wrong), ("changed", done.changed), ("taken for dead", done.dead)):
        if which:
            print(f"{what}: {', '.join(which[:20])}")
    for sent in done.lost[:20]:
        print(f"lost: {sent.pair.source.name} on {sent.pair.source.host} to {sent.pair.target.name}")
    return found


if __name__ == "__main__":
    report.run(measure, "sixty hosts under churn and failures", "8 hosts: about 2 minutes")
