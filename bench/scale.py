"""Scale benchmark: what one host costs in the midst of 10, 100 and 1,000 others.

A lab of one host with a real etcd (TLS, users) and a real agent; 20 networks (VXLAN), of which this host uses two.
Beside it simulated hosts write what hosts write (`simulated_hosts.py`): 100 containers each, five in every network.
They live by keepalives of their own. A second lab is a host alone, with which attaches alternate. Then an etcd with
the same records takes two million changes, and a reconciler learns of as many VXLAN peers as there are hosts, in turn
with the same commands by hand.

    sudo .venv/bin/python bench/scale.py [--quick]

The whole program runs in network and mount namespaces of its own, so that nothing of it can stay on the
machine. Simulated hosts, etcd and agent share its cores: the agent's share of a core is measured by its own threads.
"""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import converge
import report
import watch
from names import known
from report import Metric, p, progress, result
from simulated_hosts import NETWORKS, SimulatedHosts, Status, grown, pool

from linkspan.agent.healer import FULL
from linkspan.core.errors import LinkspanError
from linkspan.lab import agents, build, commands, containers, processes, sockets, topology
from linkspan.lab.record import Lab

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from support.agent.cpu_time import threads

LAB, ALONE = "lkpscale", "lkpscale1"
SIZES, QUICK_SIZES = (10, 100, 1000), (10, 100)
USED = NETWORKS[:2]
HERE = 5
"""Containers of the measured host in each network that it uses."""
RATE = 50.0
"""Changes of endpoints a second in the cluster: a tenth of them in the networks that this host uses."""
CHANGES, QUICK_CHANGES = 2_000_000, 400_000
TURN = 15_000
"""Changes between two compactions: as many as RATE makes in the five minutes of a turn (store/upkeep.py)."""
WATCHES = 50
CALM = 0.05
"""The share of a core below which the agent has settled."""
PATIENCE = 300.0
COMING = FULL + 15.0
"""Seconds after hosts have come in which the agent does what ends by itself: it writes its snapshot, and looks once at
each new object. A later look at everything, each FULL, belongs to what an idle agent costs."""
GROWTH_PORT = 2479
DNS = 53


class Measured:
    """The host with the real agent."""

    def __init__(self, lab: Lab, hosts: SimulatedHosts) -> None:
        self.lab = lab
        self.host = lab.hosts[0]
        self.hosts = hosts
        self.client = agents.client(lab, self.host.name)

    @property
    def pid(self) -> int:
        """The agent's process."""
        (found,) = processes.agents(self.lab.folder, self.host.name)
        return found

    def memory(self, field: str) -> float:
        """Return one of VmRSS and VmHWM of proc_pid_status(5) in MB."""
        return int(Path(f"/proc/{self.pid}/status").read_text().split(f"{field}:")[1].split()[0]) / 1024

    def connections(self) -> int:
        """Return how many connections to etcd the host has."""
        wanted = ("state", "established", f"( dport = :{topology.ETCD_PORT} )")
        return len(commands.run("ss", "-Hnt", *wanted, netns=self.host.namespace).splitlines())

    def attach(self) -> None:
        """Create the networks, and have containers in those that are used."""
        self.client.call("PATCH", "/v1/hosts", {"networks": ""})  # a lab's hosts take part in all networks
        self.client.call("DELETE", f"/v1/networks/{self.lab.network}?force")
        for network in NETWORKS:
            wish = {"name": network, "pools": [str(pool(network))], "backend": "vxlan"}
            self.client.call("POST", "/v1/networks", wish)
        for network in USED:
            for number in range(HERE):
                name = f"{network}-{number}"
                if not commands.await_(lambda network=network, name=name: self._attached(network, name)):  # type: ignore[misc]
                    sys.exit(f"error: container {name} cannot be attached")

    def _attached(self, network: str, name: str) -> bool:
        with suppress(LinkspanError):  # the host has no lease there yet
            containers.add(self.lab, self.host.name, name, network, [])
            return True
        return False

    def settled(self, count: int) -> None:
        """Wait until the kernel has a route to each host in each network that is used, and the agent rests."""
        wanted = [str(pool(network)) for network in USED]

        def routes() -> int:
            shown = (commands.run("ip", "-n", self.host.namespace, "route", "show", "root", one) for one in wanted)
            return sum(text.count(" via ") for text in shown)

        if not commands.await_(lambda: routes() >= count * len(USED), PATIENCE):
            sys.exit(f"error: {routes()} routes of {count * len(USED)} after {PATIENCE:.0f} s")
        if not commands.await_(lambda: shares(2.0, self.pid)[0] <= CALM, PATIENCE):
            sys.exit(f"error: the agent does not rest within {PATIENCE:.0f} s")

    def resolver(self) -> socket.socket:
        """Return a socket of the host to the server of names of the first network."""
        with sockets.inside(self.host.namespace):
            way = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        way.settimeout(2)
        way.connect((pool(USED[0]).at(1).address, DNS))
        return way


def shares(seconds: float, *pids: int) -> list[float]:
    """Return the shares of a core that processes use in the next seconds."""
    begun, before = time.monotonic(), [threads(pid) for pid in pids]
    time.sleep(seconds)
    after = [threads(pid) for pid in pids]
    took = time.monotonic() - begun
    return [
        sum(total - old.get(name, 0.0) for name, total in new.items()) / took
        for old, new in zip(before, after, strict=True)
    ]


def idle(one: Measured, etcd: int, coming: float, seconds: float) -> dict[str, Metric]:
    """Measure while nothing changes, and has not changed for ``coming`` seconds."""
    time.sleep(coming)
    with one.hosts.seeing() as seen:
        before = one.hosts.run(one.hosts.status())
        agent, store = shares(seconds, one.pid, etcd)
        after: Status = one.hosts.run(one.hosts.status())
    return {
        "agent's resident memory": result(one.memory("VmRSS"), "MB", "<= 90"),
        "agent's CPU when nothing changes": result(agent * 100, "%", "<= 0.5"),
        "raft entries when nothing changes": result((after.entries - before.entries) / seconds, "1/s", "<= 5"),
        "watch events when nothing changes": result(seen.changes / seconds, "1/s", "<= 5"),
        "watch events from liveness": result(seen.liveness / seconds, "1/s", "<= 0"),
        "etcd's CPU when nothing changes": result(store * 100, "%"),
        "connections of this host to etcd": result(one.connections(), "", "<= 6"),
    }


def busy(one: Measured, etcd: int, seconds: float) -> dict[str, Metric]:
    """Measure while endpoints change, and then with more watches."""
    with one.hosts.changing(RATE):
        time.sleep(2)  # until the rate is reached
        before = one.hosts.changed
        agent, store = shares(seconds, one.pid, etcd)
        rate = (one.hosts.changed - before) / seconds
        with one.hosts.watching(WATCHES):
            time.sleep(1)  # until all watches are there
            (more,) = shares(seconds, etcd)
    told = (more - store) / (WATCHES * rate)
    return {
        "changes of endpoints": result(rate, "1/s"),
        "agent's CPU while they change": result(agent * 100, "%", "<= 3"),
        "etcd's CPU while they change": result(store * 100, "%"),
        "etcd's CPU to tell one watch of one change": result(told * 1e6, "us"),
    }


def elsewhere(one: Measured, times: int) -> dict[str, Metric]:
    """Measure from a change of another host until this host's kernel, and its names, have it."""
    network, kernel, names = USED[0], list[float](), list[float]()
    routes, way = watch.Watch(one.host.namespace, str(pool(network))), one.resolver()
    try:
        with one.hosts.changing(RATE):
            for number in range(times):
                peer = number % one.hosts.count
                begun = time.perf_counter()
                block = one.hosts.run(one.hosts.claim(network, peer))
                watch.wait([routes], lambda block=block: block in routes.there, f"a route to {block}")  # type: ignore[misc]
                kernel.append((time.perf_counter() - begun) * 1e3)
                begun = time.perf_counter()
                key = one.hosts.run(one.hosts.put(network, peer, f"new{number}"))
                end = time.monotonic() + watch.PATIENCE
                while not known(way, f"new{number}"):
                    if time.monotonic() > end:
                        sys.exit(f"error: new{number} has no address after {watch.PATIENCE:.0f} s")
                    time.sleep(0.002)
                names.append((time.perf_counter() - begun) * 1e3)
                one.hosts.run(one.hosts.delete(key))
    finally:
        routes.close()
        way.close()
    return {
        "a change elsewhere to this kernel, p50": result(p(kernel, 50), "ms"),
        "a change elsewhere to this kernel, p99": result(p(kernel, 99), "ms", "<= 1000"),
        "a change elsewhere to this host's names, p50": result(p(names, 50), "ms"),
        "a change elsewhere to this host's names, p99": result(p(names, 99), "ms", "<= 1000"),
    }


def client(*words: object) -> list[str]:
    """Return the command of a client that is a process of its own (`agent_client.py`)."""
    return [sys.executable, str(Path(__file__).with_name("agent_client.py")), *map(str, words)]


def listed(one: Measured) -> dict[str, Metric]:
    """Measure the list of all endpoints, as users see it, and the longest answer to others meanwhile."""
    at = one.lab.socket(one.host.name)
    argv = [sys.executable, "-m", "linkspan.cli.main", "endpoint", "list", "-o", "json", "--socket", at]
    asking = client("ask", at, f"/v1/networks/{USED[0]}")
    path = one.lab.folder / "list.json"
    with subprocess.Popen(asking, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        time.sleep(1)  # until it asks
        with path.open("wb") as output:
            begun = time.perf_counter()
            subprocess.run(argv, stdout=output, check=True)
            took = time.perf_counter() - begun
        longest, _ = other.communicate()
    if other.returncode:
        sys.exit("error: the agent gave no answer meanwhile")
    count = path.read_bytes().count(b'"ifname"')
    path.unlink()
    return {
        "endpoints listed": result(count, ""),
        "endpoint list": result(took, "s", "<= 3"),
        "longest answer to others meanwhile": result(float(longest), "ms", "<= 50"),
        "agent's resident memory, most": result(one.memory("VmHWM"), "MB"),
    }


def attaches(one: Measured, alone: Lab, rounds: int) -> dict[str, Metric]:
    """Attach in turn on the measured host and on a host alone, while endpoints change elsewhere."""
    ways = [(one.lab, USED[0]), (alone, alone.network)]
    for lab, _ in ways:
        commands.add(f"{lab.name}-new")
    each = [(lab.socket(lab.hosts[0].name), network, f"/run/netns/{lab.name}-new") for lab, network in ways]
    try:
        with one.hosts.changing(RATE):
            argv = client("attach", rounds, *(word for way in each for word in way))
            found = json.loads(subprocess.run(argv, stdout=subprocess.PIPE, check=True).stdout)
    finally:
        for lab, _ in ways:
            commands.delete(f"{lab.name}-new")
    midst, by_itself = map(statistics.median, found)
    return {
        "attach p50 in the midst of it": result(midst, "ms"),
        "attach p50 on a host alone": result(by_itself, "ms"),
        "attach p50 in the midst / alone": result(midst / by_itself, "ratio", "<= 1.2"),
    }


def starts(one: Measured, times: int) -> dict[str, Metric]:
    """Kill the agent, and measure its start to `ready`."""
    found = []
    for _ in range(times):
        processes.kill(one.lab.folder, lambda: processes.agents(one.lab.folder, one.host.name), "the agent")
        begun = time.perf_counter()
        agents.start(one.lab, [one.host])
        found.append(time.perf_counter() - begun)
        one.settled(one.hosts.count)
    return {"agent's start to ready with a snapshot": result(statistics.median(found), "s", "<= 2")}


def growth(one: Measured, changes: int) -> dict[str, Metric]:
    """Measure an etcd's database over very many changes, with the records of all hosts in it."""
    folder = one.lab.folder / "growth"
    client, peer = f"127.0.0.1:{GROWTH_PORT}", f"http://127.0.0.1:{GROWTH_PORT + 1}"
    argv = [
        *("etcd", "--name", "growth", "--data-dir", str(folder / "data")),
        *("--listen-client-urls", f"http://{client}", "--advertise-client-urls", f"http://{client}"),
        *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"growth={peer}"),
        *("--unsafe-no-fsync", "--snapshot-count", "1000", "--log-level", "warn"),
    ]
    folder.mkdir()
    environment = processes.environment(one.lab.folder, "etcd/growth")
    process = processes.start(one.lab.switch, "", argv, environment, folder / "server")
    hosts = one.hosts
    each = (one_of for n in range(hosts.count) for one_of in (hosts.claims(n), hosts.endpoints(n)))
    try:
        tenths = [one.size / (1 << 20) for one in hosts.run(grown(f"etcd://{client}/growth", each, changes, TURN))]
    finally:
        process.kill()
        process.wait()
    first, middle, last = tenths[0], tenths[4], tenths[-1]
    return {
        f"etcd's database after {changes // 10:,} changes": result(first, "MB"),
        f"etcd's database after {changes // 2:,} changes": result(middle, "MB"),
        f"etcd's database after {changes:,} changes": result(last, "MB", "<= 256"),
        "the difference of the first and the last": result(abs(last - first) / first * 100, "%", "<= 5"),
        "the difference of the last two": result(abs(last - middle) / middle * 100, "%"),
    }


def convergence(folder: Path, count: int, rounds: int) -> dict[str, Metric]:
    """Let a reconciler learn of VXLAN peers at once, in turn with the same commands by hand, rules included."""
    hand, ours = [], []
    for number in range(rounds + 1):
        here = folder / f"round{number}"
        here.mkdir()
        by = sum(converge.by_hand(here, converge.VXLAN, count))
        subject = converge.Subject(here, converge.VXLAN)
        took = subject.converge(count)
        subject.close()
        if number:  # the first round warms up
            hand.append(by)
            ours.append(took)
    ratios = [by_linkspan / by_hand for by_linkspan, by_hand in zip(ours, hand, strict=True)]
    return {
        f"{count} VXLAN peers by hand, rules included": result(statistics.median(hand), "ms"),
        f"first convergence of {count} VXLAN peers": result(statistics.median(ours), "ms"),
        "first convergence / by hand": result(statistics.median(ratios), "ratio", converge.TARGET),
    }


def among(one: Measured, alone: Lab, count: int, quick: bool) -> dict[str, Metric]:
    """Let there be so many hosts, and measure everything that depends on it."""
    etcd = next(processes.of_lab(one.lab.folder, lambda role, _environ: role == "etcd"))
    found: dict[str, Metric] = {}
    steps: list[tuple[str, Callable[[], dict[str, Metric]]]] = [
        ("nothing changes", lambda: idle(one, etcd, *((0, 10) if quick else (COMING, FULL)))),
        ("endpoints change", lambda: busy(one, etcd, 5 if quick else 30)),
        ("changes elsewhere", lambda: elsewhere(one, 10 if quick else 100)),
        ("attaches", lambda: attaches(one, alone, 10 if quick else 100)),
        ("list", lambda: listed(one)),
        ("starts", lambda: starts(one, 1 if quick else 3)),
    ]
    progress(f"{count} hosts: they come")
    one.hosts.run(one.hosts.grow(count))
    one.settled(count)
    for what, step in steps:
        progress(f"{count} hosts: {what}")
        found |= step()
    found["leases of simulated hosts that ended (0, else the machine was too slow)"] = result(
        one.hosts.lapsed, "", "<= 0"
    )
    progress("")
    report.table(f"among {count} hosts", found)
    print()
    return {f"{count} hosts: {what}": metric for what, metric in found.items()}


def measure(folder: Path, quick: bool) -> dict[str, Metric]:
    """Run everything; returns the metrics."""
    report.open_files()  # etcd and this program have a connection for each host
    sizes = QUICK_SIZES if quick else SIZES
    lab = topology.planned(topology.Wishes(lab=LAB, hosts=1, store="etcd", containers_per_host=0))
    alone = topology.planned(topology.Wishes(lab=ALONE, hosts=1, containers_per_host=0))
    found: dict[str, Metric] = {}
    try:
        build.up(lab)
        build.up(alone)
        hosts = SimulatedHosts(lab.switch, topology.store_url(lab, lab.hosts[0]), lab.hosts[0].name)
        try:
            one = Measured(lab, hosts)
            one.attach()
            for count in sizes:
                found |= among(one, alone, count, quick)
            progress("changes without end")
            rest = growth(one, QUICK_CHANGES if quick else CHANGES)
        finally:
            hosts.close()
    finally:
        build.down(ALONE)
        build.down(LAB)
    progress("convergence")
    rest |= convergence(folder, sizes[-1], 3 if quick else 10)
    progress("")
    report.table("what", rest)
    return found | rest


if __name__ == "__main__":
    report.run(measure, "what a host costs in the midst of 10, 100 and 1,000 others", "10 and 100: 3 minutes")
