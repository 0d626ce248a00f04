"""Convergence benchmark: a reconciler with simulated VXLAN peers, beside `ip` and `bridge` in batches.

A peer is one route, one neighbour and one forwarding entry, and three elements of the guard's sets. By hand
the same routes, neighbours and forwarding entries are made by `ip -batch` and `bridge -batch`, in the same
run, in turn, each round in namespaces of its own. No agent runs: what is measured is the work in the kernel's
thread.

    sudo bench/converge.py [--quick]

The whole program runs in network and mount namespaces of its own, so that nothing of it can stay on the
machine.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import report
from attach import Namespace
from report import progress, result

from linkspan.backends.vxlan import BACKEND, device
from linkspan.core.addresses import Prefix, derived_mac, mac_text, prefix
from linkspan.core.model import Facts, Host, HostView, Lease, Network, Offer, Peer, Underlay
from linkspan.core.ruleset import admission, skeleton
from linkspan.core.states.host import (
    Address,
    FdbEntry,
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
from linkspan.kernel.drivers.nftables_objects import element_text
from linkspan.kernel.kinds import kinds
from linkspan.kernel.machine import Machine

PEERS = 1000
SIZES = (100, 1000, 4000)
KINDS = (Route, Neighbour, FdbEntry)
CHANGES = 20

NETWORK = Network(
    name="bench",
    pools=("10.64.0.0/10",),
    subnet_len={"4": 24},
    backend="vxlan",
    options={"vni": "100"},
    mtu=1500,
    gateways=("10.64.0.1/32",),
)


def lease(number: int) -> Lease:
    """Return host N's lease: the N-th /24, and its first address."""
    block = Prefix(prefix("10.64.0.0/10").at(number << 8).packed, 24)
    underlay = prefix("172.16.0.0/12").at(number + 10).address
    offer = Offer({"mac": mac_text(derived_mac("vtep", str(number))), "address": underlay})
    return Lease(
        network=NETWORK.name,
        host=str(number),
        prefixes=(str(block),),
        addresses=(block.address,),
        endpoints={"vxlan": offer},
    )


def peer(number: int, moved: int = 0) -> Peer:
    """Return peer N; ``moved`` makes another underlay address of it."""
    found = lease(number)
    if moved:
        data = {**found.endpoints["vxlan"].data, "address": prefix("172.24.0.0/13").at(moved).address}
        found = Lease(
            network=found.network,
            host=found.host,
            prefixes=found.prefixes,
            addresses=found.addresses,
            endpoints={"vxlan": Offer(data)},
        )
    return Peer(Host(id=str(number), name=f"h{number}"), found, "eth0")


def view() -> HostView:
    """Return what host 0 knows of itself."""
    host = Host(id="0", name="h0", underlay=Underlay("eth0", ("172.16.0.10/12",)))
    return HostView((NETWORK,), host=host, leases=(lease(0),))


class Subject:
    """A machine in a namespace of its own, with the network and no peer yet."""

    def __init__(self, folder: Path) -> None:
        self.namespace = Namespace(folder / "ns")
        with self.namespace.entered():
            self.machine = Machine(folder / "state")
            self.reconciler = self.machine.reconciler
            self._change(("host",), skeleton(Facts(), kinds()))
            chains = [admission(pool, NETWORK.subnet_len["4"], kinds()) for pool in NETWORK.prefixes]
            self._change(("network", NETWORK.name), [*chains, *BACKEND.network(view(), NETWORK)])

    def _change(self, source: tuple[str, ...], states: Any) -> None:
        if failed := self.reconciler.change(source, states):
            sys.exit(f"error: {next(iter(failed.values()))}")

    def converge(self, count: int) -> float:
        """Let the host learn of its peers at once, and return the milliseconds until all is in the kernel."""
        peers = [peer(number) for number in range(1, count + 1)]
        here = view()
        with self.namespace.entered():
            started = time.perf_counter()
            failed = self.reconciler.changes(
                {("peer", NETWORK.name, one.host.id): BACKEND.peer(here, NETWORK, one) for one in peers}
            )
            took = (time.perf_counter() - started) * 1e3
        if failed:
            sys.exit(f"error: {next(iter(failed.values()))}")
        return took

    def resync(self) -> float:
        """Look at the tunnel's objects and find nothing to do."""
        with self.namespace.entered():
            started = time.perf_counter()
            report = self.reconciler.resync((*KINDS, Vxlan, Address, LinkSysctl))
            took = (time.perf_counter() - started) * 1e3
        if report.heals or report.failed:
            sys.exit(f"error: a second pass found something to do: {report.heals[:3]} {report.failed}")
        return took

    def moves(self, number: int, moved: int) -> float:
        """Let one peer get another underlay address."""
        with self.namespace.entered():
            started = time.perf_counter()
            self._change(
                ("peer", NETWORK.name, str(number)), BACKEND.peer(view(), NETWORK, peer(number, moved))
            )
            return (time.perf_counter() - started) * 1e3

    def close(self) -> None:
        """Let go; the namespace goes with the program."""
        with self.namespace.entered():
            self.machine.close()


def typed(states: Sequence[State]) -> Iterator[str]:
    """Yield the plan's command lines."""
    for state in ordered(states):
        yield from commands(state, str)


def by_hand(folder: Path, count: int) -> tuple[float, float]:
    """Make the same routes and entries by `ip -batch` and `bridge -batch`, then the elements by `nft -f`.

    Returns milliseconds of the first two, and of the third.
    """
    namespace = Namespace(folder / "hand")
    link = [s for s in BACKEND.network(view(), NETWORK) if isinstance(s, Vxlan | Address)]
    peers = [s for n in range(1, count + 1) for s in BACKEND.peer(view(), NETWORK, peer(n))]
    states = [s for s in peers if isinstance(s, KINDS)]
    by_set: dict[str, list[str]] = {}
    for element in (s for s in peers if isinstance(s, NftElement)):
        by_set.setdefault(element.set, []).append(element_text(element))
    rules = [f"add element inet linkspan {name} {{ {', '.join(texts)} }}\n" for name, texts in by_set.items()]
    (folder / "nft").write_text("".join(rules))
    batches: dict[str, list[str]] = {"ip": [], "bridge": []}
    for line in typed(states):
        program, _, rest = line.partition(" ")
        batches[program].append(rest.removeprefix("-4 "))  # a batch takes no options
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
        made = subprocess.run(
            ["bridge", "fdb", "show", "dev", device(NETWORK)], capture_output=True, check=True
        )
    if len(made.stdout.splitlines()) != count:
        sys.exit(f"error: by hand, {len(made.stdout.splitlines())} forwarding entries were made of {count}")
    return took, guard


def measure(folder: Path, quick: bool) -> dict[str, Any]:
    """Run everything; returns the metrics."""
    rounds = 3 if quick else 10
    hand, guards, ours, again = [], [], [], []
    for number in range(rounds + 1):
        here = folder / f"round{number}"
        here.mkdir()
        by, guard = by_hand(here, PEERS)
        subject = Subject(here)
        first = subject.converge(PEERS)
        idle = [subject.resync() for _ in range(5)]
        subject.close()
        if number:  # the first round warms up
            hand.append(by)
            guards.append(guard)
            ours.append(first)
            again.append(statistics.median(idle))
        progress(f"convergence: round {number} of {rounds}")
    found = {
        f"by hand: {PEERS} peers": result(statistics.median(hand), "ms"),
        f"by hand: the guard's elements, {PEERS} peers": result(statistics.median(guards), "ms"),
        f"first convergence: {PEERS} peers": result(statistics.median(ours), "ms"),
        "first convergence / by hand": result(
            statistics.median(ours) / statistics.median(hand), "ratio", "<= 1.5"
        ),
        "first convergence / by hand with the guard": result(
            statistics.median(ours) / (statistics.median(hand) + statistics.median(guards)), "ratio"
        ),
        f"resync with nothing to do: {PEERS} peers": result(statistics.median(again), "ms", "<= 10"),
    }
    for size in SIZES:
        here = folder / f"size{size}"
        here.mkdir()
        subject = Subject(here)
        subject.converge(size)
        times = [subject.moves(1 + n * (size // CHANGES), n + 1) for n in range(CHANGES)]
        subject.close()
        found[f"one peer's change of {size}"] = result(statistics.median(times), "ms", "<= 2")
        progress(f"changes: {size}")
    progress("")
    report.table("what", found)
    return found


if __name__ == "__main__":
    report.run(measure, "convergence with simulated VXLAN peers, and by hand", "fewer rounds: about 10 s")
