"""Policy benchmark: what a thousand policies cost, and how soon a change of one counts.

Two labs of three hosts with etcd (VXLAN, a container on each host). One has 1,000 policies; a hundred of them are about
its containers. In turn both attach containers, and send a TCP stream (iperf3) and small UDP packets from h1 to h2. Then
a label of a container on h1 changes, until the sets of all three kernels have followed. At last the lab without
policies gets the records of 10,000 endpoints on 100 hosts that are not there, a policy that selects all of them and
whose peers they are, the thousand others, and then changes of that one.

    sudo .venv/bin/python bench/policy.py [--quick]

Needs etcd and iperf3. The whole program runs in network and mount namespaces of its own, so that nothing of it can stay
on the machine. All agents share its cores.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import report
from datapath import Way, tcp, udp
from report import Metric, p, progress, result

from linkspan.core.addresses import Prefix, derived_mac, mac_text, prefix
from linkspan.core.model import Endpoint, Lease, Offer, Underlay
from linkspan.core.model import Host as HostRecord
from linkspan.kernel.io.namespaces import open_namespace
from linkspan.kernel.io.netlink import Socket
from linkspan.kernel.io.nftables import Nft, generation, netfilter_socket
from linkspan.lab import agents, build, commands, matrix, processes, sockets, topology
from linkspan.lab.record import Lab
from linkspan.policy.model import Selector
from linkspan.store.factory import open_store
from linkspan.store.records import BlockRecord, block_key, lease_key

PLAIN, UNDER = "lkpplain", "lkpunder"
POLICIES, AT_ONCE = 1000, 200
"""All policies, and those in one call."""
HOSTS, EACH = 100, 100
"""Hosts that are not there, and the endpoints of each."""
BENCH: dict[str, Any] = {"labels": {"app": "bench"}}
PEERS: tuple[dict[str, Any], ...] = (
    {"labels": {"app": "peer", "tier": "many"}},
    {"labels": {"app": "peer"}, "expressions": [{"key": "tier", "operator": "Exists"}]},
)
"""Two selectors of all the endpoints that are not there: each is a set of its own."""
PATIENCE = 180.0
SETTLED = 2.0
"""Seconds in which an agent's memory must stay the same before it counts."""


def policy(number: int) -> dict[str, Any]:
    """Return one of the thousand: every tenth is about the lab's containers, which may always talk."""
    port = 10000 + number
    rule = {"peers": [{"select": BENCH}], "ports": [{"protocol": "tcp", "first": port, "last": port}]}
    last = [{"peers": [{"select": BENCH}]}] if number == 0 else []
    about = BENCH if number % 10 == 0 else {"labels": {"app": f"other{number}"}}
    rules = [rule, *last]
    return {"name": f"p{number}", "order": 1 + number, "select": about, "ingress": rules, "egress": rules}


def big(port: int, peers: int) -> dict[str, Any]:
    """Return the policy that selects all the endpoints that are not there, and those that are; ``peers`` of PEERS."""
    rule = {"peers": [{"select": PEERS[peers]}], "ports": [{"protocol": "tcp", "first": port, "last": port}]}
    everybody = {"expressions": [{"key": "app", "operator": "In", "values": ["peer", "bench"]}]}
    return {"name": "big", "order": 0, "select": everybody, "ingress": [rule]}


class Measured:
    """A lab, and what is measured in it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.client = agents.client(lab, "h1")

    def up(self) -> None:
        """Build it, and label its containers."""
        build.up(self.lab)
        for one in self.lab.containers:
            client = agents.client(self.lab, one.host)
            client.call("PATCH", f"/v1/endpoints/{one.name}/labels", {"set": {"app": "bench"}, "remove": []})
        if silent := matrix.awaited(self.lab):
            raise matrix.sentence(silent)

    def apply(self, *wanted: dict[str, Any]) -> float:
        """Record policies, and return the milliseconds until h1 enforces them."""
        begun = time.perf_counter()
        for start in range(0, len(wanted), AT_ONCE):
            self.client.call("PUT", "/v1/policies", {"policies": wanted[start : start + AT_ONCE]})
        return (time.perf_counter() - begun) * 1e3

    def way(self) -> Way:
        """Return the way from c1 on h1 to c2 on h2."""
        one, other = self.lab.container("c1"), self.lab.container("c2")
        return Way(self.lab.name, one.namespace, other.namespace, topology.bare(other.addresses[0]))

    def attach(self) -> float:
        """Attach one more container to h1 and detach it; return the milliseconds of the attach."""
        path = f"/run/netns/{self.lab.name}-new"
        fd = open_namespace(path)
        try:
            body = {"id": "new", "name": "new", "network": self.lab.network, "labels": {"app": "bench"}}
            begun = time.perf_counter()
            self.client.call("POST", "/v1/attach", {**body, "namespace_fd": fd, "namespace_path": path})
            took = (time.perf_counter() - begun) * 1e3
        finally:
            os.close(fd)
        self.client.call("POST", "/v1/detach", {"id": "new"})
        return took

    def resident(self) -> float:
        """Return the resident memory of h1's agent in MB, once it has stayed the same for a while."""
        (pid,) = processes.agents(self.lab.folder, "h1")
        status = Path(f"/proc/{pid}/status")
        end, since, before = time.monotonic() + PATIENCE, time.monotonic(), 0.0
        while time.monotonic() < min(end, since + SETTLED):
            now = int(status.read_text(encoding="ascii").split("VmRSS:")[1].split()[0]) / 1024
            if abs(now - before) > 0.2:
                since, before = time.monotonic(), now
            time.sleep(0.1)
        return before


@contextlib.contextmanager
def asking(lab: Lab) -> Iterator[list[Socket]]:
    """Give a socket to the rules of each host."""
    found = []
    try:
        for host in lab.hosts:
            with sockets.inside(host.namespace):
                found.append(netfilter_socket())
        yield found
    finally:
        for one in found:
            one.close()


def await_(condition: Callable[[], bool], what: str, pause: float = 0.0) -> None:
    """Poll a condition until it holds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            sys.exit(f"error: not within {PATIENCE:.0f} s: {what}")
        time.sleep(pause)


def chosen(lab: Lab, host: str, selector: dict[str, Any]) -> set[str]:
    """Return the addresses that a selector of peers selects, as a host's kernel has them."""
    name = f"chosen4_{msgspec.convert(selector, Selector).digest}"
    with sockets.inside(lab.host(host).namespace):
        nft = Nft()
        try:
            listed = nft.json(f"list set inet linkspan {name}")
        finally:
            nft.close()
    return {str(element) for item in listed if "set" in item for element in item["set"].get("elem", [])}  # type: ignore[attr-defined]


def in_turn(plain: Measured, under: Measured, quick: bool) -> dict[str, Metric]:
    """Return what the thousand policies cost attaches and packets."""
    attaches, rounds, seconds, trips = (30, 1, 1, 1000) if quick else (200, 7, 3, 5000)
    both = plain, under
    times: dict[str, list[float]] = {one.lab.name: [] for one in both}
    ways = [one.way() for one in both]
    for one in both:
        commands.add(f"{one.lab.name}-new")
    try:
        for number in range(attaches + 1):
            progress(f"attach {number} of {attaches}")
            for one in both if number % 2 else reversed(both):
                took = one.attach()
                times[one.lab.name] += [took] if number else []
    finally:
        for one in both:
            commands.delete(f"{one.lab.name}-new")
    for number in range(rounds + 1):
        progress(f"packets: round {number} of {rounds}")
        for way in ways if number % 2 else reversed(ways):
            stream, trip = tcp(way, 1, seconds if number else 1), udp(way, trips)
            if number:
                way.add("tcp", stream)
                way.add("udp", trip)
    without, with_ = ways
    before, after = (statistics.median(times[one.lab.name]) for one in both)
    stream = with_.median("tcp") / without.median("tcp")
    trips_ = without.median("udp") / with_.median("udp")
    return {
        "attach p50 without policies": result(before, "ms"),
        f"attach p50 with {POLICIES} policies": result(after, "ms"),
        f"attach p50, with {POLICIES} policies / without": result(after / before, "ratio", "<= 1.2"),
        f"TCP, with {POLICIES} policies / without": result(stream, "ratio", ">= 0.97"),
        f"UDP round trips, with {POLICIES} policies / without": result(trips_, "ratio", ">= 0.97"),
    }


def labels(under: Measured, quick: bool) -> dict[str, Metric]:
    """Return how soon the kernels of all hosts know a changed label."""
    address = topology.bare(under.lab.container("c1").addresses[0])
    times = []
    with asking(under.lab) as rules:
        for number in range(20 if quick else 300):
            progress(f"label {number}")
            wanted = "bench" if number % 2 else "none"
            before = [generation(one) for one in rules]
            begun = time.perf_counter()
            under.client.call("PATCH", "/v1/endpoints/c1/labels", {"set": {"app": wanted}, "remove": []})
            await_(lambda: all(generation(one) > was for one, was in zip(rules, before, strict=True)), "all hosts know")  # noqa: B023
            times.append((time.perf_counter() - begun) * 1e3)
            for host in under.lab.hosts:
                await_(lambda: (address in chosen(under.lab, host.name, BENCH)) == (wanted == "bench"), "it is right")  # noqa: B023
    return {
        "a label, until all hosts' kernels know, p50": result(statistics.median(times), "ms"),
        "a label, until all hosts' kernels know, p99": result(p(times, 99), "ms", "<= 500"),
    }


def records(number: int, block: Prefix) -> Iterator[tuple[str, bytes]]:
    """Yield the records of a host that is not there, with its endpoints, which have addresses of a block."""
    name = f"peer{number}"
    address = prefix("198.18.128.0/17").at(number + 1).address
    offer = Offer({"mac": mac_text(derived_mac("vtep", name, "demo")), "address": address})
    underlay = Underlay("eth0", (f"{address}/17",))
    lease = Lease(
        network="demo", host=name, prefixes=(str(block),), addresses=(str(block.at(1).single()),),
        endpoints={"vxlan": offer},
    )  # fmt: skip
    found: dict[str, msgspec.Struct] = {
        f"hosts/{name}": HostRecord(id=name, name=name, version="0.2.0", underlay=underlay, enforces=True),
        lease_key("demo", name): lease,
        block_key("demo", block): BlockRecord(name, time.time()),
    }
    for one in range(EACH):
        container, at = f"c{number}-{one}", (str(block.at(one + 2).single()),)
        labels_ = {"app": "peer", "tier": "many"}
        found[f"endpoints/{name}/{container}/eth0"] = Endpoint(
            id=container, ifname="eth0", name=container, network="demo", host=name, addresses=at, labels=labels_
        )
    yield from ((key, msgspec.json.encode(value)) for key, value in found.items())


async def fill(lab: Lab) -> None:
    """Let the store know of the hosts that are not there."""
    hosts = agents.client(lab, "h1").call("GET", "/v1/hosts")
    taken = {text for host in hosts for lease in host["leases"] for text in lease["prefixes"]}
    blocks = (Prefix(prefix(lab.pools[0]).at(number << 8).packed, 24) for number in range(256))
    free = [block for block in blocks if str(block) not in taken]
    store = open_store(topology.store_url(lab, lab.hosts[0]), lab.folder, "")
    try:
        for number in range(HOSTS):
            every = list(records(number, free[number]))
            for start in range(0, len(every), 50):
                await store.transaction(dict(every[start : start + 50]))
    finally:
        await store.close()


def many(plain: Measured, quick: bool) -> dict[str, Metric]:
    """Return what a policy costs that selects 10,000 endpoints, and its changes."""
    count = HOSTS * EACH
    with sockets.inside(plain.lab.switch):  # where etcd is
        asyncio.run(fill(plain.lab))
    before = plain.resident()
    plain.apply(big(80, 0))
    await_(lambda: len(chosen(plain.lab, "h1", PEERS[0])) == count, f"{count} endpoints are known", 0.5)
    memory = plain.resident() - before
    progress(f"{POLICIES} policies beside it")
    plain.apply(*(policy(number) for number in range(POLICIES)))
    ports, peers = [], []
    for number in range(4 if quick else 20):
        progress(f"change {number}")
        ports.append(plain.apply(big(81 + number, number % 2)))
        wanted = 1 - number % 2
        peers.append(plain.apply(big(81 + number, wanted)))
        if len(chosen(plain.lab, "h1", PEERS[wanted])) != count:
            sys.exit("error: not all peers are in the set of the policy that was applied")
    other = f"other peers of it, {count} elements instead of {count} others, p50"
    return {
        f"other ports of a policy about {count} endpoints, p50": result(statistics.median(ports), "ms", "<= 300"),
        other: result(statistics.median(peers), "ms", "<= 300"),
        "the agent's memory for it": result(memory, "MB", "<= 20"),
    }


def measure(_folder: Path, quick: bool) -> dict[str, Metric]:
    """Run everything; return the metrics."""
    plain, under = (
        Measured(topology.planned(topology.Wishes(lab=name, hosts=3, store="etcd"))) for name in (PLAIN, UNDER)
    )
    try:
        for one in (plain, under):
            progress(f"lab {one.lab.name} comes")
            one.up()
        progress(f"{POLICIES} policies")
        applied = under.apply(*(policy(number) for number in range(POLICIES)))
        found = {f"{POLICIES} policies applied": result(applied / 1e3, "s")}
        found |= in_turn(plain, under, quick)
        found |= labels(under, quick)
        found |= many(plain, quick)
    finally:
        for name in (PLAIN, UNDER):
            build.down(name)
    progress("")
    report.table("policies", found)
    return found


if __name__ == "__main__":
    for needed in ("etcd", "iperf3"):
        if shutil.which(needed) is None:
            sys.exit(f"error: no {needed}: apt-get install {needed}{'-server' if needed == 'etcd' else ''}")
    report.run(measure, __doc__ or "", "fewer rounds")
