"""Convergence benchmark: a reconciler with simulated peers, beside `ip`, `bridge` and `nft` with the same in batches.

A peer of VXLAN is one route, one neighbour and one forwarding entry, and two elements of the guard's sets; a peer of
IPIP one route and two elements. By hand the same objects are made by `ip -batch`, `bridge -batch` and `nft -f`, in the
same run, in turn, each round in namespaces of its own. A ratio is the median of the rounds' ratios. No agent runs:
what is measured is the work in the kernel's thread, from the records of the peers on.

    sudo .venv/bin/python bench/converge.py [--quick]

IPIP's device is a TUN on both sides, so that kernels without IPIP take the same routes. The whole program runs in
network and mount namespaces of its own, so that nothing of it can stay on the machine.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import report
from attach import Namespace
from report import progress, result

from linkspan.backends import backend, migration
from linkspan.core import garbage
from linkspan.core.addresses import Prefix, derived_mac, mac_text, prefix
from linkspan.core.host_view import Facts, HostView, Peer
from linkspan.core.model import Host, Lease, Network, Offer, Underlay
from linkspan.core.ruleset import admission, skeleton
from linkspan.core.states.host import (
    Address,
    FdbEntry,
    Ipip,
    LinkSysctl,
    Neighbour,
    NftElement,
    NftSet,
    NftTable,
    Route,
    State,
    Vxlan,
)
from linkspan.diagnose.plan.plan import commands, ordered
from linkspan.kernel.drivers.nftables_texts import element_text
from linkspan.kernel.kinds import kinds
from linkspan.kernel.machine import Machine

PEERS = 1000
SIZES = (100, 1000, 4000)
KINDS = (Route, Neighbour, FdbEntry)
CHANGES = 20
NAME = "bench"
TARGET = "<= 1.1"

VXLAN = Network(
    name=NAME,
    pools=("10.64.0.0/10",),
    subnet_len={"4": 24},
    backend="vxlan",
    options={"vni": "100"},
    mtu=1500,
    gateways=("10.64.0.1/32",),
)
IPIP = msgspec.structs.replace(VXLAN, backend="ipip", options={})


def lease(number: int) -> Lease:
    """Return host N's lease: the N-th /24, and its first address."""
    block = Prefix(prefix("10.64.0.0/10").at(number << 8).packed, 24)
    underlay = prefix("172.16.0.0/12").at(number + 10).address
    vxlan = Offer({"mac": mac_text(derived_mac("vtep", str(number))), "address": underlay})
    return Lease(
        network=NAME,
        host=str(number),
        prefixes=(str(block),),
        addresses=(block.address,),
        endpoints={"vxlan": vxlan, "ipip": Offer({"address": underlay})},
    )


def peer(number: int, moved: int = 0) -> Peer:
    """Return peer N; ``moved`` makes another underlay address of it."""
    found = lease(number)
    if moved:
        data = {**found.endpoints["vxlan"].data, "address": prefix("172.24.0.0/13").at(moved).address}
        found = msgspec.structs.replace(found, endpoints={"vxlan": Offer(data)})
    return Peer(Host(id=str(number), name=f"h{number}"), found, "eth0")


def view(network: Network) -> HostView:
    """Return what host 0 knows of itself."""
    host = Host(id="0", name="h0", underlay=Underlay("eth0", ("172.16.0.10/12",)))
    return HostView((network,), host=host, leases=(lease(0),))


def own(network: Network) -> list[State]:
    """Return the network's own states."""
    states = backend(network.backend).network(view(network), network)
    return [msgspec.structs.replace(s, local=b"", tun=True) if isinstance(s, Ipip) else s for s in states]


class Subject:
    """A machine in a namespace of its own, with the network and no peer yet."""

    def __init__(self, folder: Path, network: Network) -> None:
        self.network = network
        self.namespace = Namespace(folder / "ns")
        with self.namespace.entered():
            self.machine = Machine(folder / "state")
            self.reconciler = self.machine.reconciler
            self._change(("host",), skeleton(Facts(), kinds()))
            chains = [admission(pool, network.subnet_len[str(pool.family)], kinds()) for pool in network.prefixes]
            self._change(("network", NAME), [*chains, *own(network)])
        garbage.collect_usually()  # as an agent once it is ready

    def _change(self, source: tuple[str, ...], states: Any) -> None:
        if failed := self.reconciler.change(source, states):
            sys.exit(f"error: {next(iter(failed.values()))}")

    def converge(self, count: int) -> float:
        """Let the host learn of its peers at once, and return the milliseconds until all is in the kernel."""
        peers = [peer(number) for number in range(1, count + 1)]
        here = view(self.network)
        with self.namespace.entered():
            started = time.perf_counter()
            refused = self.reconciler.each(
                {("peer", NAME, one.host.id): migration.meet(here, self.network, one).states for one in peers}
            )
            took = (time.perf_counter() - started) * 1e3
        if refused or self.reconciler.failing:
            sys.exit(f"error: {next(iter([*refused.values(), *self.reconciler.failing.values()]))}")
        return took

    def resync(self) -> float:
        """Look at the tunnel's objects and find nothing to do."""
        with self.namespace.entered():
            started = time.perf_counter()
            found = self.reconciler.resync((*KINDS, Vxlan, Address, LinkSysctl))
            took = (time.perf_counter() - started) * 1e3
        if found.heals or found.failed:
            sys.exit(f"error: a second pass found something to do: {found.heals[:3]} {found.failed}")
        return took

    def moves(self, number: int, moved: int) -> float:
        """Let one peer get another underlay address."""
        with self.namespace.entered():
            started = time.perf_counter()
            states = migration.meet(view(self.network), self.network, peer(number, moved)).states
            self._change(("peer", NAME, str(number)), states)
            return (time.perf_counter() - started) * 1e3

    def close(self) -> None:
        """Let go; the namespace goes with the program."""
        with self.namespace.entered():
            self.machine.close()


def typed(states: Sequence[State]) -> Iterator[str]:
    """Yield the plan's command lines."""
    for state in ordered(states):
        yield from commands(state, str)


def by_hand(folder: Path, network: Network, count: int) -> tuple[float, float]:
    """Make the same routes and entries by `ip -batch` and `bridge -batch`, then the elements by `nft -f`.

    Returns milliseconds of the first two, and of the third.
    """
    namespace = Namespace(folder / "hand")
    here = view(network)
    link = [s for s in own(network) if isinstance(s, Vxlan | Ipip | Address)]
    peers = [s for n in range(1, count + 1) for s in migration.meet(here, network, peer(n)).states]
    states = [s for s in peers if isinstance(s, KINDS)]
    by_set: dict[str, list[str]] = {}
    for element in (s for s in peers if isinstance(s, NftElement)):
        by_set.setdefault(element.set, []).append(element_text(element))
    rules = [f"add element inet linkspan {name} {{ {', '.join(texts)} }}\n" for name, texts in by_set.items()]
    (folder / "nft").write_text("".join(rules))
    batches: dict[str, list[str]] = {}
    for line in typed(states):
        program, _, rest = line.partition(" ")
        batches.setdefault(program, []).append(rest.removeprefix("-4 "))  # a batch takes no options
    for program, lines in batches.items():
        (folder / program).write_text("\n".join(lines) + "\n")
    with namespace.entered():
        sets = [s for s in skeleton(Facts(), kinds()) if isinstance(s, NftTable | NftSet)]
        subprocess.run(["sh", "-e"], input="\n".join(typed([*sets, *link])), text=True, check=True)
        started = time.perf_counter()
        for program in batches:
            subprocess.run([program, "-batch", str(folder / program)], check=True, stdout=subprocess.DEVNULL)
        took = (time.perf_counter() - started) * 1e3
        started = time.perf_counter()
        subprocess.run(["nft", "-f", str(folder / "nft")], check=True)
        guard = (time.perf_counter() - started) * 1e3
        device = next(s.name for s in link if isinstance(s, Vxlan | Ipip))
        made = subprocess.run(["ip", "route", "show", "dev", device], capture_output=True, check=True)
    if len(made.stdout.splitlines()) != count:
        sys.exit(f"error: by hand, {len(made.stdout.splitlines())} routes were made of {count}")
    return took, guard


def first(folder: Path, network: Network, rounds: int) -> dict[str, Any]:
    """Return the metrics of the first convergence, by hand and by linkspan in turn."""
    hand, guards, ours, ratios, again = [], [], [], [], []
    for number in range(rounds + 1):
        here = folder / f"{network.backend}{number}"
        here.mkdir()
        by, guard = by_hand(here, network, PEERS)
        subject = Subject(here, network)
        took = subject.converge(PEERS)
        idle = [subject.resync() for _ in range(5)] if network is VXLAN else []
        subject.close()
        if number:  # the first round warms up
            hand.append(by)
            guards.append(guard)
            ours.append(took)
            ratios.append(took / (by + guard))
            again += idle
        progress(f"convergence of {network.backend}: round {number} of {rounds}")
    name = f"{network.backend}: {PEERS} peers"
    found = {
        f"{name} by hand (ip, bridge)": result(statistics.median(hand), "ms"),
        f"{name} by hand (nft -f)": result(statistics.median(guards), "ms"),
        f"{name}: first convergence": result(statistics.median(ours), "ms"),
        f"{name}: first convergence / by hand with the same rules": result(
            statistics.median(ratios), "ratio", TARGET
        ),
    }
    if again:
        found[f"{name}: resync with nothing to do"] = result(statistics.median(again), "ms", "<= 10")
    return found


def measure(folder: Path, quick: bool) -> dict[str, Any]:
    """Run everything; returns the metrics."""
    rounds = 3 if quick else 10
    found = first(folder, VXLAN, rounds) | first(folder, IPIP, rounds)
    for size in SIZES:
        here = folder / f"size{size}"
        here.mkdir()
        subject = Subject(here, VXLAN)
        subject.converge(size)
        times = [subject.moves(1 + n * (size // CHANGES), n + 1) for n in range(CHANGES)]
        subject.close()
        found[f"vxlan: one peer's change of {size}"] = result(statistics.median(times), "ms", "<= 2")
        progress(f"changes: {size}")
    progress("")
    report.table("what", found)
    return found


if __name__ == "__main__":
    report.run(measure, "convergence with simulated peers, and by hand", "fewer rounds: about 10 s")
