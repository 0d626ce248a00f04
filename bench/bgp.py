"""BGP benchmark: routes from a peer to the kernel, from one host to the others, and a whole mesh.

1. A peer announces 1,000 and 10,000 prefixes and withdraws them: a host with an agent beside a namespace where BIRD
   is set up by hand, each with a peer of its own, in turn. The clock runs from the word to the peer to the last
   notification of the subject's kernel.
2. In a mesh of five hosts with agents one claims a further block: from the time in the block's record, which is
   taken before that is written, to the notification of the last of the four other kernels.
3. Fifty hosts in a full mesh: BIRD in fifty namespaces, with the files that the backend makes for fifty hosts, all
   started at once; from the first start until each kernel has the 49 others' blocks. Fifty agents would measure
   the start of fifty Python processes on these cores.

    sudo .venv/bin/python bench/bgp.py [--quick]

Needs the package bird2. The whole program runs in network and mount namespaces of its own, so that nothing of
it can stay on the machine.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import report
from join import claimed_at
from report import Metric, p, progress, result
from watch import PATIENCE, Watch, wait

from linkspan.backends.bgp.backend import BACKEND
from linkspan.core.addresses import Prefix, prefix
from linkspan.core.host_view import Facts, HostView, Peer
from linkspan.core.model import Host, Lease, Network, Offer, Underlay
from linkspan.core.states.programs import Bird, File, Process
from linkspan.lab import agents, build, commands, containers, matrix, topology
from linkspan.lab.record import Lab

POOL = "10.64.0.0/10"
SIZES = (1000, 10_000)
MESH = 50
OTHERS = 4
LAB = "lkpbgp"
OURS, BY_HAND = "linkspan", "by hand"


class Speaker:
    """A BIRD in a namespace, as somebody sets it up by hand."""

    def __init__(self, netns: str, folder: Path, config: str) -> None:
        folder.mkdir()
        control = folder / "bird.ctl"
        self._control = str(control)
        (folder / "bird.conf").write_text(config)
        words = ["bird", "-f", "-c", str(folder / "bird.conf"), "-s", self._control]
        self._process = subprocess.Popen([*commands.entering(netns), *words])
        if not commands.await_(control.exists):
            sys.exit(f"error: BIRD does not start in {netns}")

    def ask(self, *words: str) -> str:
        """Give an order."""
        return commands.run("birdc", "-s", self._control, *words)

    def established(self) -> bool:
        """Return whether the session with the subject is up."""
        return "Established" in self.ask("show", "protocols", "subject")

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


# ------------------------------------------------------------------ a table

PEER = """\
router id {address};
log stderr {{ error, fatal, bug }};
protocol device {{}}
{statics}
protocol bgp subject {{
  local {address} as 65001;
  neighbor {subject} as 64512;
  connect delay time 1;
  ipv4 {{ import none; export where source = RTS_STATIC; next hop self; }};
}}
"""
STATIC = """\
protocol static many{size} {{
  disabled;
  ipv4;
{routes}
}}
"""
SUBJECT = """\
router id {address};
log stderr {{ error, fatal, bug }};
protocol device {{}}
protocol kernel {{ ipv4 {{ import none; export all; }}; }}
protocol bgp peer {{
  local {address} as 64512;
  neighbor {peer} as 65001;
  connect delay time 1;
  ipv4 {{ import all; export none; }};
}}
"""


def mac(last: int) -> str:
    """Return the MAC of a namespace, by its address's last number."""
    return f"02:00:00:00:00:{last:02x}"


def namespace(lab: Lab, name: str, last: int) -> tuple[str, str]:
    """Make a namespace on the lab's segment; returns its name and address."""
    netns, address = f"{LAB}-{name}", topology.address(1, 4, str(last))
    commands.add(netns)
    peer = f"peer name eth0 address {mac(last)} netns {netns}"
    commands.ip(lab.switch, [f"link add {name} type veth {peer}", f"link set {name} master seg1 up"])
    commands.ip(netns, [f"addr add {address} dev eth0", "link set eth0 up"])
    return netns, topology.bare(address)


def prefixes(count: int, own: Prefix) -> Iterator[Prefix]:
    """Yield blocks of the pool, without the host's own."""
    blocks = (Prefix(prefix(POOL).at(number << 8).packed, 24) for number in itertools.count(1))
    return itertools.islice((block for block in blocks if block != own), count)


def table(folder: Path, rounds: int) -> dict[tuple[str, int, str], list[float]]:
    """Let peers announce and withdraw; returns milliseconds by subject, how many prefixes, and what was done."""
    lab = topology.planned(topology.Wishes(lab=LAB, hosts=1, backend="bgp", containers_per_host=0))
    lab.pools = [POOL]
    build.up(lab)
    with contextlib.ExitStack() as stack:
        stack.callback(build.down, LAB)
        client = agents.client(lab, "h1")
        own = prefix(client.call("GET", "/v1/hosts/h1")["leases"][0]["prefixes"][0])
        h1 = (lab.hosts[0].namespace, topology.bare(lab.hosts[0].addresses[0]))
        subjects = {OURS: h1, BY_HAND: namespace(lab, "hand", 101)}
        peers, watches = {}, {}
        for last, (name, (netns, address)) in enumerate(subjects.items(), 201):
            there, peer = namespace(lab, f"peer{last}", last)
            statics = "\n".join(
                STATIC.format(
                    size=size, routes="\n".join(f"  route {one} blackhole;" for one in prefixes(size, own))
                )
                for size in SIZES
            )
            config = PEER.format(address=peer, subject=address, statics=statics)
            peers[name] = Speaker(there, folder / f"peer{last}", config)
            watches[name] = Watch(netns, POOL)
            if name == OURS:
                wish = {"bgp.mesh": "false", "bgp.peer.feeder.address": peer, "bgp.peer.feeder.as": "65001"}
                wish["bgp.prefixes"] = "0"  # which the store knows nothing of
                client.call("PATCH", "/v1/hosts/h1", wish)
            else:
                hand = Speaker(netns, folder / "hand", SUBJECT.format(address=address, peer=peer))
                stack.callback(hand.close)
            stack.callback(peers[name].close)
        for name, one in peers.items():
            if not commands.await_(one.established, PATIENCE):
                sys.exit(f"error: the session of {name} does not come up")
        times: dict[tuple[str, int, str], list[float]] = {}
        for number in range(rounds + 1):
            turn = [*peers][:: -1 if number % 2 else 1]
            for size, name in itertools.product(SIZES, turn):
                for what, order in (("announced", "enable"), ("withdrawn", "disable")):
                    took = timed(
                        peers[name], f"{order} many{size}", watches[name], size if order == "enable" else 0
                    )
                    if number:  # the first round warms up
                        times.setdefault((name, size, what), []).append(took)
            progress(f"table: round {number} of {rounds}")
        return times


def timed(peer: Speaker, order: str, watch: Watch, count: int) -> float:
    """Give a peer an order; returns the milliseconds until the subject's kernel has so many of its prefixes."""
    started = time.perf_counter()
    peer.ask(*order.split())
    wait([watch], lambda: len(watch.there) == count, order)
    return (time.perf_counter() - started) * 1e3


# ------------------------------------------------------------------ a block

SMALL = 29
"""The blocks' length: five containers, and the next one needs a further block."""


def blocks(rounds: int) -> list[float]:
    """Let a host claim further blocks; returns the milliseconds until all others have a route to each."""
    lab = topology.planned(topology.Wishes(lab=LAB, hosts=OTHERS + 1, backend="bgp", containers_per_host=1))
    build.up(lab)
    with contextlib.ExitStack() as stack:
        stack.callback(build.down, LAB)
        if silent := matrix.awaited(lab):
            raise matrix.sentence(silent)
        pool = "10.250.0.0/16"
        wish = {"name": "small", "pools": [pool], "backend": "bgp", "subnet_len": [SMALL]}
        agents.client(lab, "h1").call("POST", "/v1/networks", wish)
        agents.await_network(lab, lab.hosts, "small")
        watches = [Watch(host.namespace, pool) for host in lab.hosts[1:]]
        lab.network = "small"  # whose records are read
        known, times = set(held(lab)), []
        for number in itertools.count(1):
            containers.add(lab, "h1", f"b{number}", "small", [])
            for block in set(held(lab)) - known:
                known.add(block)
                everywhere = functools.partial(has, watches, block)
                wait(watches, everywhere, f"a route to {block} on all hosts")
                times.append((time.time() - claimed_at(lab, block)) * 1e3)
                progress(f"blocks: {len(times)} of {rounds}")
            if len(times) > rounds:
                return times[1:]
    raise AssertionError


def has(watches: Sequence[Watch], block: Prefix) -> bool:
    """Return whether all have a route to a block."""
    return all(block in watch.there for watch in watches)


def held(lab: Lab) -> list[Prefix]:
    """Return h1's blocks in the lab's network."""
    leases = agents.client(lab, "h1").call("GET", "/v1/hosts/h1")["leases"]
    return [prefix(text) for lease in leases if lease["network"] == lab.network for text in lease["prefixes"]]


# ------------------------------------------------------------------ a mesh

NETWORK = Network(
    name="mesh", pools=(POOL,), subnet_len={"4": 24}, backend="bgp", mtu=1500, gateways=("10.64.0.1/32",)
)


def host(number: int) -> tuple[Host, Lease]:
    """Return host N of the mesh, and its claim."""
    block = Prefix(prefix(POOL).at(number << 8).packed, 24)
    here = Host(id=f"n{number}", name=f"n{number}", underlay=Underlay("eth0", (f"192.0.2.{number}/24",)))
    offers = {"bgp": Offer({})}
    return here, Lease(
        network=NETWORK.name,
        host=here.id,
        prefixes=(str(block),),
        addresses=(block.address,),
        endpoints=offers,
    )


def configured(number: int, folder: Path) -> list[str]:
    """Write host N's files, and return how its speaker is started."""
    here, lease = host(number)
    facts = Facts(programs=(Bird("bird", "birdc", str(folder)),))
    others = (other for other in range(1, MESH + 1) if other != number)
    peers = tuple(Peer(*host(other), device="eth0", on_link=True) for other in others)
    return written(HostView((NETWORK,), facts=facts, host=here, leases=(lease,), peers=peers))


def written(view: HostView) -> list[str]:
    """Write a host's files as its agent would, and return how its speaker is started."""
    states = list(BACKEND.host(view))
    for state in states:
        if isinstance(state, File):
            path = Path(state.path)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(state.content)
    (program,) = {state.argv for state in states if isinstance(state, Process)}
    return list(program)


def mesh(folder: Path) -> float:
    """Start all speakers of a mesh; returns the seconds until every kernel has every other's block."""
    lab = Lab(name=LAB, backend="bgp")
    commands.add(lab.switch)
    commands.ip(lab.switch, ["link add seg1 type bridge", "link set seg1 up"])
    running: list[subprocess.Popen[bytes]] = []
    try:
        places = [namespace(lab, f"n{number}", number)[0] for number in range(1, MESH + 1)]
        for number, netns in enumerate(places, 1):
            # One kernel keeps at most 1,024 neighbours that it has learnt, for all namespaces; here are 2,450.
            others = (other for other in range(1, MESH + 1) if other != number)
            lines = [f"neigh add 192.0.2.{o} lladdr {mac(o)} dev eth0 nud permanent" for o in others]
            commands.ip(netns, [*lines, f"addr add {host(number)[1].addresses[0]}/32 dev eth0"])
        watches = [Watch(netns, POOL) for netns in places]
        programs = [configured(number, folder / f"n{number}") for number in range(1, MESH + 1)]
        started = time.perf_counter()
        for netns, words in zip(places, programs, strict=True):
            running.append(subprocess.Popen([*commands.entering(netns), *words], stderr=subprocess.DEVNULL))
        wait(watches, lambda: all(len(watch.there) == MESH - 1 for watch in watches), "the whole mesh")
        return time.perf_counter() - started
    finally:
        for process in running:
            process.kill()
            process.wait()
        for netns in [*lab.namespaces, *(f"{LAB}-n{number}" for number in range(1, MESH + 1))]:
            commands.delete(netns)


# ------------------------------------------------------------------ all of it


def measure(folder: Path, quick: bool) -> dict[str, Metric]:
    """Run everything; returns the metrics."""
    found: dict[str, Metric] = {}
    times = table(folder, 3 if quick else 40)
    for size, what in itertools.product(SIZES, ("announced", "withdrawn")):
        ours, hand = (statistics.median(times[name, size, what]) for name in (OURS, BY_HAND))
        found[f"{size:,} prefixes {what}: by hand"] = result(hand, "ms")
        found[f"{size:,} prefixes {what}: linkspan"] = result(ours, "ms")
        found[f"{size:,} prefixes {what}: linkspan / by hand"] = result(ours / hand, "ratio", "<= 1.1")
    new = blocks(5 if quick else 20)
    found[f"a new block on {OTHERS} others: p50"] = result(p(new, 50), "ms", "<= 300")
    found[f"a new block on {OTHERS} others: p95"] = result(p(new, 95), "ms")
    tries = 1 if quick else 3
    meshes = []
    for number in range(tries):
        meshes.append(mesh(folder / f"mesh{number}"))
        progress(f"meshes: {number + 1} of {tries}")
    progress("")
    found[f"a mesh of {MESH} hosts"] = result(statistics.median(meshes), "s", "<= 15")
    report.table("what", found)
    return found


if __name__ == "__main__":
    report.run(measure, "routes by BGP: from a peer, to other hosts, in a mesh", "fewer rounds: about 30 s")
