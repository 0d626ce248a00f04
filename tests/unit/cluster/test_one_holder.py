"""The promise of addresses: whatever hosts do, in whatever order, no address of a network ever has two holders."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Iterable
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from linkspan.cluster.exact_claims import IDENTITY
from linkspan.core.addresses import Prefix
from linkspan.core.errors import LinkspanError
from linkspan.core.model import AttachRequest, Network
from linkspan.store.memory import Memory
from support.polling import eventually
from support.records.replicas import Member, network, together

HOSTS = 3
EXACT = tuple(f"10.244.0.{n}" for n in range(2, 30))

attach = st.tuples(st.just("attach"), st.integers(0, HOSTS - 1), st.sampled_from(("", "", "web", *EXACT)))
detach = st.tuples(st.just("detach"), st.integers(0, HOSTS - 1), st.just(""))
cut = st.tuples(st.sampled_from(("cut", "mend")), st.integers(0, HOSTS - 1), st.just(""))
rounds = st.lists(
    st.lists(st.one_of(attach, attach, attach, detach, cut), min_size=1, max_size=6), max_size=12
)


class Machine:
    """One host: it attaches and detaches, and remembers what it holds."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.allocator = member.allocator
        self.held: list[tuple[str, list[Prefix]]] = []
        self._number = 0

    async def join(self, net: Network) -> None:
        """Claim a lease."""
        self.member.networks.refresh()
        await self.member.leases.claim(net, {})
        self.member.blocks.refresh()

    async def attach(self, net: Network, wish: str) -> None:
        """Allocate: an address, the next one, or with an identity ("web")."""
        self._number += 1
        id_ = f"{self.member.name}-{self._number}"
        # An identity is a container's that lives once: this host's own here, for nothing moves while it runs.
        labels = {IDENTITY: id_} if wish == "web" else {}
        ips = (wish,) if "." in wish else ()
        request = AttachRequest(id=id_, network=net.name, ifname="eth0", ips=ips, labels=labels)
        given_ = await self.allocator.allocate(net, request)
        self.held.append((id_, [one.address for one in given_]))

    async def detach(self, net: Network) -> None:
        """Release what was allocated first."""
        if self.held:
            _, addresses = self.held.pop(0)
            await self.allocator.release(net.name, addresses)


def _holders(machines: list[Machine]) -> dict[Prefix, list[str]]:
    found: dict[Prefix, list[str]] = {}
    for machine in machines:
        for id_, addresses in machine.held:
            for address in addresses:
                found.setdefault(address.single(), []).append(id_)
    return found


@given(mode=st.sampled_from(("block", "exact")), length=st.integers(27, 30), work=rounds)
@settings(max_examples=60, deadline=None)
def test_no_address_ever_has_two_holders(
    mode: str, length: int, work: list[list[tuple[str, int, str]]]
) -> None:
    """Blocks, exact addresses and both mixed; each round's acts run at once, with the store cut for some."""

    async def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            net = network(pool="10.244.0.0/26", length=length, ipam=mode, backend="ipip")
            memory = Memory()
            members = [Member(memory, Path(folder), f"h{n}") for n in range(HOSTS)]
            await asyncio.gather(*(m.replica.start() for m in members))
            await members[0].networks.create(net)
            await eventually(
                lambda: all("networks/demo" in m.replica.records for m in members), "all know it"
            )
            machines = [Machine(member) for member in members]
            await _all(machine.join(net) for machine in machines)
            for acts in work:
                for kind, number, _ in acts:
                    store = members[number].store
                    if kind in ("cut", "mend"):
                        (store.cut if kind == "cut" else store.mend)()
                await _all(
                    machines[n].attach(net, wish) if kind == "attach" else machines[n].detach(net)
                    for kind, n, wish in acts
                    if kind in ("attach", "detach")
                )
                assert {a: ids for a, ids in _holders(machines).items() if len(ids) > 1} == {}
            await asyncio.gather(*(m.replica.stop() for m in members))

    together(run)


async def _all(acts: Iterable[Awaitable[object]]) -> None:
    """Do all at once; what a store or a full pool refuses is no failure."""
    for done in await asyncio.gather(*acts, return_exceptions=True):
        if isinstance(done, BaseException) and not isinstance(done, LinkspanError):
            raise done


def test_an_identity_keeps_its_address_over_hosts() -> None:
    """A container with the identity label has its old address on the next host, once the old one let it go."""

    async def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            net, memory = network(backend="ipip"), Memory()
            members = [Member(memory, Path(folder), f"h{n}") for n in range(2)]
            await asyncio.gather(*(m.replica.start() for m in members))
            await members[0].networks.create(net)
            await eventually(lambda: "networks/demo" in members[1].replica.records, "both know the network")
            one, two = (Machine(member) for member in members)
            await one.join(net)
            await two.join(net)
            request = AttachRequest(id="c1", network="demo", ifname="eth0", labels={IDENTITY: "db"})
            (first,) = await one.allocator.allocate(net, request)
            await one.allocator.release("demo", [first.address])
            await eventually(lambda: members[1].leases.exact("demo").all, "the other host knows it")
            (second,) = await two.allocator.allocate(net, request)
            assert second.address == first.address
            await asyncio.gather(*(m.replica.stop() for m in members))

    together(run)
