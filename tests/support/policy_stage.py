"""A stage for enforcement: two hosts that share a store, and a kernel in memory that counts what it is sent."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from linkspan.agent.named_addresses import NamedAddresses
from linkspan.agent.policy_elements import PolicyElements
from linkspan.agent.policy_enforcement import Enforcement
from linkspan.agent.policy_flows import Parties
from linkspan.agent.policy_names import PolicyNames
from linkspan.agent.policy_records import PolicyRecords
from linkspan.core.errors import KernelError, LinkspanError
from linkspan.core.model import Endpoint
from linkspan.core.states.host import Key, NftChain, NftElement, NftSet, NftTable, State
from linkspan.kernel.probe import conntrack, underlay
from linkspan.policy import readings
from linkspan.policy.model import Peer, Policy, Rule, Selector
from linkspan.policy.regime import Regime
from linkspan.store.memory import Memory
from support.memory_machine import MemoryMachine, worker_of
from support.polling import eventually
from support.records.peers import network
from support.records.replicas import Member

NET = network("host-gw")
PROXY = Selector(labels={"app": "proxy"})
WEB = Policy(name="web", select=Selector(names=("web",)), ingress=(Rule(peers=(Peer(select=PROXY),)),))
HERE = Endpoint(id="c1", ifname="eth0", name="web", network="demo", addresses=("10.77.0.2/32",), host_ifname="lsr1")

_AT_ONCE = 100
"""Records in one transaction."""


def recorded(name: str, *addresses: str, **labels: str) -> tuple[str, bytes]:
    """Return the record of an endpoint of h2, with its key."""
    one = Endpoint(id=name, ifname="eth0", name=name, network="demo", addresses=addresses, labels=labels)
    return f"endpoints/h2/{name}/eth0", msgspec.json.encode(one)


class Kernel(MemoryMachine):
    """A kernel that counts what it is sent, and refuses what leads nowhere.

    It refuses elements of some addresses, and some states, too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sockets = None  # type: ignore[assignment]
        self.refused: set[str] = set()
        self.unable: set[Key] = set()
        self.put: list[State] = []
        """What it was sent."""
        self.deleted: list[State] = []
        self._apply = self.driver.apply
        self.driver.apply = self.apply  # type: ignore[method-assign]

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Put and delete, but for what is refused."""
        self.put += put
        self.deleted += delete
        bad = {s.key: KernelError("refused") for s in put if isinstance(s, NftElement) and s.parts[0] in self.refused}
        bad |= {state.key: KernelError("refused") for state in put if state.key in self.unable}
        there = {**self.driver.states, **{state.key: state for state in put if state.key not in bad}}
        while lost := [s.key for s in put if s.key not in bad and any(key not in there for key in _leads(s))]:
            bad |= {key: KernelError("No such file") for key in lost}
            there = {**self.driver.states, **{state.key: state for state in put if state.key not in bad}}
        for state in delete:
            there.pop(state.key, None)
        used = {key for state in there.values() for key in _leads(state)}
        busy = {state.key: KernelError("Device or resource busy") for state in delete if state.key in used}
        self._apply([one for one in put if one.key not in bad], [one for one in delete if one.key not in busy])
        return bad | busy

    def sent(self) -> tuple[Counter[str], Counter[str]]:
        """Return how many states of each kind it was sent since the last time: to put, and to delete."""
        found = Counter(map(_kind, self.put)), Counter(map(_kind, self.deleted))
        self.put, self.deleted = [], []
        return found


def _kind(state: State) -> str:
    return type(state).__name__


def _leads(state: State) -> Iterator[Key]:
    """Yield the keys of the chains and sets of policies that a state needs."""
    match state:
        case NftElement(family=family, table=table, set=name, data=data):
            if readings.ours(state):
                yield NftSet(family, table, name, "").key
            texts = data
        case NftChain(family=family, table=table, rules=texts):
            for text in texts:
                for name in _SETS.findall(text):
                    yield NftSet(family, table, name, "").key
        case _:
            return
    for text in texts:
        for name in _CHAINS.findall(text):
            yield NftChain(family, table, name, "", ()).key


_SETS = re.compile(r"@((?:chosen|policed_|policy_|watched_)\w+)")
_CHAINS = re.compile(r"\b(?:jump|goto) ((?:policy|staged)_\w+)")


class Stage:
    """Host h1 with a container, and host h2, whose endpoints are in the store only."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.machine = Kernel()
        memory = Memory()
        self.member, self.other = Member(memory, folder, "h1"), Member(memory, folder, "h2")
        self.member.endpoints[HERE.identity] = HERE
        self.cuts = 0
        self.unable = False
        self.policed_off_path: list[set[str]] = []
        self.stuck = False
        monkeypatch.setattr(conntrack, "cut", self.cut)
        monkeypatch.setattr(underlay, "every_address", lambda _sockets: frozenset())
        one = self.member
        self.records = PolicyRecords(one.replica, one.networks)
        elements = PolicyElements(one.networks, one.hosts, one.leases, one.remote, one.endpoints)
        named = NamedAddresses()
        parties = Parties(one.networks, one.endpoints, named)
        worker = worker_of(self.machine)
        self.names = PolicyNames(worker, elements, named, lambda _endpoint: (), logs=False)
        followed = one.remote, one.interest, self.names, self.leave_path
        self.enforcement = Enforcement(worker, self.records, elements, parties, *followed)
        one.told = self.enforcement.changed

    async def leave_path(self, _in_force: Regime) -> None:
        """Record which addresses are policed when endpoints are to leave the fast path; refuse if ``stuck``."""
        self.policed_off_path.append(self.addresses("policed_by_in4"))
        if self.stuck:
            raise KernelError("the fast path stays")

    def cut(self, _forbidden: object) -> int:
        """Count a cut, or fail."""
        if self.unable:
            raise KernelError("list connections: no buffer space")
        self.cuts += 1
        return 0

    @asynccontextmanager
    async def running(self, recorded: Mapping[str, bytes] | None = None) -> AsyncIterator[None]:
        """Begin, with networks' own rules, and with records that are in the store already."""
        await self.other.join()
        await self.other.replica.write({"networks/demo": NET})
        self.other.networks.refresh()
        await self.other.leases.claim(NET, {})
        every = list((recorded or {}).items())
        for start in range(0, len(every), _AT_ONCE):
            await self.other.store.transaction(dict(every[start : start + _AT_ONCE]))
        await self.member.start()
        self.machine.reconciler.change(("host", "firewall"), [NftTable("inet", "linkspan")])
        try:
            yield
        finally:
            await self.member.stop()
            await self.other.replica.stop()

    async def record(self, name: str, *addresses: str, **labels: str) -> None:
        """Record an endpoint of h2."""
        await self.other.store.transaction(dict([recorded(name, *addresses, **labels)]))

    async def relabel(self, name: str, address: str, **labels: str) -> None:
        """Record other labels of an endpoint of h2, and enforce what they change once h1 knows them."""
        await self.record(name, address, **labels)
        wanted = tuple(labels.items())
        known = self.member.remote.of
        await eventually(lambda: known("demo", "h2")[f"{name}/eth0"].labels == wanted, "the labels are known")
        await self.enforcement.enforce()

    async def apply(self, *policies: Policy) -> None:
        """Record policies, and enforce them as an apply does."""
        for start in range(0, len(policies), _AT_ONCE):
            await self.member.replica.write({f"policies/{one.name}": one for one in policies[start : start + _AT_ONCE]})
        await self.enforcement.enforce()

    async def settled(self) -> None:
        """Wait until the other host's endpoints are read, and enforce what they change."""
        await eventually(lambda: self.member.remote.complete, "all are read")
        await self.enforcement.enforce()

    def addresses(self, prefix: str) -> set[str]:
        """Return the addresses in the kernel's sets whose names begin so."""
        every = self.machine.driver.states.values()
        return {s.parts[0] for s in every if isinstance(s, NftElement) and s.set.startswith(prefix)}
