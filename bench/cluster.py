"""Time from three bare hosts to a network: three commands, a container on each host, the first answered ping.

Each round makes a bare lab (`linkspan lab up --bare`, not counted) and then types what docs/first-cluster.md shows, as
a user does: `cluster init` on h1, `cluster join` on h2 and then on h3, a network, and a container on each host. The
clock stops when c1 has an answer from c2 and c3, which are on other hosts. The program's own start is counted.

Then the loss of a voter: one lab, in which the three hosts have become voters by themselves (two minutes, not counted).
In each round the host of etcd's leader loses its link, and another host changes a record until that is done. The clock
runs from the loss to the end of that command.

    sudo .venv/bin/python bench/cluster.py [--quick]
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from report import Metric, p, progress, result, run, table

from linkspan.core.errors import Unavailable
from linkspan.lab import inside, record

LAB = "cluster"
ROUNDS, QUICK_ROUNDS = 10, 3
VOTERS = 300.0
"""Seconds for three hosts to become voters."""
PATIENCE = 60.0
"""Seconds for the first answered ping."""


def typed(*words: str, host: str = "") -> str:
    """Type a command of linkspan, on a host of the lab, and return its output. Raises Unavailable if it fails."""
    argv = [sys.executable, "-m", "linkspan.cli.main", *words]
    environment = None
    if host:
        lab = record.load(LAB)
        argv, environment = inside.command(lab, host, argv), inside.environment(lab, host)
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise Unavailable(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def answered(container: str) -> None:
    """Wait until c1 has an answer from a container. Raises Unavailable."""
    lab = record.load(LAB)
    address = lab.container(container).addresses[0].partition("/")[0]
    deadline = time.monotonic() + PATIENCE
    ping = inside.command(lab, "c1", ["ping", "-c1", "-W0.2", address])
    while subprocess.run(ping, capture_output=True, check=False).returncode:
        if time.monotonic() > deadline:
            raise Unavailable(f"{container} does not answer c1 after {PATIENCE:.0f} s")


def once() -> dict[str, float]:
    """Return the seconds of one round, by step, and of all steps together."""
    typed("lab", "up", "--bare", "--lab", LAB)
    try:
        begun = time.monotonic()
        token = json.loads(typed("cluster", "init", "-o", "json", host="h1"))["token"]
        steps = {"init": time.monotonic() - begun}
        for number, host in enumerate(("h2", "h3")):
            before = time.monotonic()
            typed("cluster", "join", token, host=host)
            steps[f"join {number + 1}"] = time.monotonic() - before
        before = time.monotonic()
        typed("network", "create", "demo", "--pool", "10.244.0.0/16", host="h1")
        for number in (1, 2, 3):
            typed("lab", "attach", f"h{number}", f"c{number}", "--lab", LAB)
        for container in ("c2", "c3"):
            answered(container)
        now = time.monotonic()
        return {**steps, "network, containers, ping": now - before, "whole": now - begun}
    finally:
        typed("lab", "down", "--lab", LAB)


def told() -> list[dict[str, object]]:
    """Return the members as h2 or h3 knows them, none while both have no answer."""
    for host in ("h2", "h3"):
        with contextlib.suppress(Unavailable):
            found: list[dict[str, object]] = json.loads(typed("cluster", "members", "-o", "json", host=host))
            return found
    return []


def await_voters() -> None:
    """Wait until all three hosts are healthy voters. Raises Unavailable."""
    deadline = time.monotonic() + VOTERS
    while sum(one["role"] == "voter" and bool(one["healthy"]) for one in told()) < 3:
        if time.monotonic() > deadline:
            raise Unavailable(f"the hosts are not three healthy voters after {VOTERS:.0f} s")
        time.sleep(1)


def leader() -> str:
    """Return the host of etcd's leader."""
    for host in ("h1", "h2", "h3"):
        with contextlib.suppress(Unavailable):  # it asks etcd's members now, and fails if any check does
            typed("doctor", "-o", "json", host=host)
        found = json.loads(typed("status", "-o", "json", host=host))["store"]["etcd"]["members"]
        for one in found:
            if one["role"] == "leader":
                return "h" + str(one["endpoint"]).rpartition(":")[0].rpartition(".")[2]
    raise Unavailable("no member of etcd leads")


def losses(rounds: int) -> list[float]:
    """Return the seconds without a write after the loss of the leader's host, of each round."""
    typed("lab", "up", "--bare", "--lab", LAB)
    try:
        token = json.loads(typed("cluster", "init", "-o", "json", host="h1"))["token"]
        for host in ("h2", "h3"):
            typed("cluster", "join", token, host=host)
        found = []
        for number in range(rounds):
            progress(f"loss {number + 1} of {rounds}")
            await_voters()
            lost = leader()
            other = next(host for host in ("h1", "h2", "h3") if host != lost)
            typed("lab", "break", lost, "link-down", "--lab", LAB)
            begun = time.monotonic()
            while True:
                with contextlib.suppress(Unavailable):
                    typed("host", "set", "--all", f"networks={'all' if number % 2 else ''}", host=other)
                    break
            found.append(time.monotonic() - begun)
            typed("lab", "mend", lost, "--lab", LAB)
        return found
    finally:
        typed("lab", "down", "--lab", LAB)


def measure(_folder: Path, quick: bool) -> dict[str, Metric]:
    """Run all rounds, and return the metrics."""
    rounds = []
    for number in range(count := QUICK_ROUNDS if quick else ROUNDS):
        progress(f"round {number + 1} of {count}")
        rounds.append(once())
    found = {f"{name}, median": result(statistics.median(one[name] for one in rounds), "s") for name in rounds[0]}
    whole = [one["whole"] for one in rounds]
    found["whole, median"] = result(statistics.median(whole), "s", "<= 10")
    found["whole, p90"] = result(p(whole, 90), "s")
    lost = losses(count)
    found["a voter is lost: to the next write, median"] = result(statistics.median(lost), "s")
    found["a voter is lost: to the next write, worst"] = result(max(lost), "s", "<= 5")
    table("three bare hosts to the first ping, and the loss of a voter", found)
    return found


if __name__ == "__main__":
    run(measure, str(__doc__), f"{QUICK_ROUNDS} rounds instead of {ROUNDS}")
