"""Fast endpoints: who is on the fast path of a network, follows policies, ports and networks, and says why not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from linkspan.agent.fast_endpoints import FastEndpoints, Inside, Standing
from linkspan.agent.policy_elements import PolicyElements
from linkspan.agent.policy_records import PolicyRecords
from linkspan.core import fast_path
from linkspan.core.addresses import prefix
from linkspan.core.errors import KernelError, LinkspanError
from linkspan.core.host_view import Facts, HostView
from linkspan.core.model import Endpoint, Host, Network, Port, Underlay
from linkspan.core.states.host import EgressAddress, Key, NftLinkChain, NftTable, State
from linkspan.endpoints.registry import fast_source, source
from linkspan.kernel.probe import conntrack
from linkspan.kernel.probe.conntrack import Flow
from linkspan.policy.model import Policy, Rule, Selector
from linkspan.store.memory import Memory
from support.memory_machine import MemoryMachine, worker_of
from support.polling import eventually
from support.records.replicas import Member, network

NET = network(options={"vni": "100", "fast": "true"}, mtu=1450)
WEB = Endpoint(
    id="c1", ifname="eth0", name="web", network="demo", addresses=("10.244.1.2/32",), mac="02:00:00:00:00:01",
    mtu=1450, host_ifname="lsr1", netns=7, netns_cookie=1,
)  # fmt: skip
OTHER = msgspec.structs.replace(WEB, id="c2", name="other", addresses=("10.244.1.3/32",), host_ifname="lsr2", netns=8)
CLOSED = Policy(name="closed", select=Selector(names=("web",)), ingress=())
STAGED = Policy(name="later", select=Selector(names=("other",)), egress=(Rule(),))


class Stage:
    """A host whose kernel is in memory, with two containers of a fast network."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.machine = MemoryMachine()
        self.cuts: list[Inside] = []
        monkeypatch.setattr(conntrack, "cut", self.cuts.append)
        self.member = Member(Memory(), folder, "h1")
        self.facts = Facts(early=True)
        for endpoint in (WEB, OTHER):
            self.attach(endpoint)
        one = self.member
        self.records = PolicyRecords(one.replica, one.networks)
        self.elements = PolicyElements(one.networks, one.hosts, one.leases, one.remote, one.endpoints)
        self.fast = self.agent()

    def agent(self) -> FastEndpoints:
        """Return what an agent has that knows nothing of an earlier one."""
        one, worker = self.member, worker_of(self.machine)
        return FastEndpoints(worker, one.networks, one.endpoints, self.records, self.elements, self.view)

    def view(self) -> HostView:
        """Return what the host sees."""
        here = Host(id="h1", name="h1", underlay=Underlay("eth0", ("192.0.2.1/24",)))
        return HostView(self.member.networks.all(), facts=self.facts, host=here)

    @asynccontextmanager
    async def running(self, net: Network = NET) -> AsyncIterator[None]:
        """Begin with a network, and follow endpoints meanwhile."""
        await self.member.start()
        await self.record(net)
        await self.fast.follow()
        self.fast.start()
        try:
            yield
        finally:
            await self.fast.stop()
            await self.member.stop()

    async def record(self, net: Network) -> None:
        """Record a network."""
        await self.member.replica.write({"networks/demo": net})
        self.member.networks.refresh()

    def attach(self, endpoint: Endpoint) -> None:
        """Have an endpoint, with a state of its own."""
        self.machine.reconciler.change(source(endpoint), [EgressAddress(endpoint.host_ifname, endpoint.prefixes[0])])
        self.member.endpoints[endpoint.identity] = endpoint

    def change(self, endpoint: Endpoint) -> None:
        """Change an endpoint of the host."""
        self.attach(endpoint)
        self.fast.note(endpoint.identity)

    async def enforce(self) -> None:
        """Say that the recorded policies are in force."""
        await self.fast.follow_policies(self.records.regime())

    @property
    def links(self) -> set[str]:
        """The containers' links that are on the path."""
        return {one.name for one in self.machine.driver.states.values() if isinstance(one, NftLinkChain)}


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Return such a host, before it runs."""
    return Stage(tmp_path, monkeypatch)


def test_a_fast_network_without_containers_does_not_read_like_a_fault() -> None:
    """A host that has none of its containers has nothing to count."""
    assert Standing(0).words() == "fast on this host, which has none of its containers"
    assert Standing(0, left={"web": "it publishes ports"}).words().startswith("fast for 0 of its containers here, not")


def test_a_policy_takes_off_whom_it_selects(stage: Stage) -> None:
    """An enforced one and a staged one, which counts; without them all are on the path again."""

    async def main() -> None:
        async with stage.running():
            assert stage.links == {"lsr1", "lsr2"}
            await stage.member.replica.write({"policies/closed": CLOSED})
            await stage.enforce()
            assert stage.links == {"lsr2"}
            standing = stage.fast.standing(NET)
            assert standing is not None
            assert (standing.endpoints, standing.left) == (1, {"web": "policy closed is about it"})
            await stage.member.replica.write({"staged/later": STAGED})
            await stage.enforce()
            assert stage.links == set()
            await stage.member.replica.write({}, deletes=["policies/closed", "staged/later"])
            await stage.enforce()
            assert stage.links == {"lsr1", "lsr2"}

    asyncio.run(main())


def test_the_path_stays_without_an_agent_unless_the_next_one_knows_none(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The package that is installed by then says so: that of the release before lacks the path's module."""
    table = NftTable("netdev", "linkspan")

    async def main() -> None:
        async with stage.running():
            stage.machine.reconciler.change(("network", "demo"), [table])
        await stage.fast.leave_to_older()
        assert table.key in stage.machine.driver.states
        monkeypatch.setattr(fast_path, "__file__", str(tmp_path / "fast_path.py"))
        await stage.fast.leave_to_older()
        assert table.key not in stage.machine.driver.states

    asyncio.run(main())


def test_a_policy_that_came_while_no_agent_ran_takes_off_whom_it_selects(stage: Stage) -> None:
    """When its rules are there, and not with the first resync. Flows of before the path are forgotten as ever."""

    async def main() -> None:
        async with stage.running():
            await stage.member.replica.write({"policies/closed": CLOSED})
            for identity in stage.member.endpoints:
                stage.machine.reconciler.desired.replace(fast_source(identity), ())
            await stage.fast.stop()
            stage.fast = stage.agent()
            await stage.fast.take_over()
            await stage.fast.follow()
            stage.machine.reconciler.resync()
            assert (stage.links, stage.cuts) == ({"lsr1", "lsr2"}, [])
            await stage.enforce()
            assert stage.links == {"lsr2"}
            assert [cut(flow("10.244.1.2", "10.244.9.9")) for cut in stage.cuts] == [True]

    asyncio.run(main())


def test_a_policy_does_not_count_while_the_kernel_keeps_its_container_on_the_path(stage: Stage) -> None:
    """It is an error until the healer has removed what is left. Only then the container's flows are forgotten."""

    async def main() -> None:
        async with stage.running():
            apply = stage.machine.driver.apply
            stage.machine.driver.apply = refusing  # type: ignore[method-assign]
            await stage.member.replica.write({"policies/closed": CLOSED})
            for _ in range(2):
                with pytest.raises(KernelError, match="take containers off the fast path: device busy"):
                    await stage.enforce()
            assert (stage.links, stage.cuts) == ({"lsr1", "lsr2"}, [])
            stage.machine.driver.apply = apply  # type: ignore[method-assign]
            stage.machine.reconciler.resync()
            await stage.enforce()
            assert (stage.links, len(stage.cuts)) == ({"lsr2"}, 1)

    asyncio.run(main())


def refusing(put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
    """Refuse everything, as a kernel might."""
    return {state.key: KernelError("device busy") for state in (*put, *delete)}


def test_nobody_leaves_the_path_before_rules_are_there(stage: Stage) -> None:
    """An answer on its way would begin a flow, and policies would allow it. Who is not on it waits outside."""

    async def main() -> None:
        async with stage.running():
            stage.change(msgspec.structs.replace(WEB, mtu=1400))
            await eventually(lambda: stage.links == {"lsr2"}, "web is off the path")
            closed = msgspec.structs.replace(CLOSED, select=Selector(names=("web", "other")))
            await stage.member.replica.write({"policies/closed": closed})
            stage.change(WEB)
            stage.change(OTHER)
            await stage.fast.follow()
            assert stage.links == {"lsr2"}
            await stage.enforce()
            assert stage.links == set()
            await stage.member.replica.write({}, deletes=["policies/closed"])
            await stage.enforce()
            assert stage.links == {"lsr1", "lsr2"}

    asyncio.run(main())


def test_whoever_is_being_detached_is_not_put_on_the_path_again(stage: Stage) -> None:
    """Its states are gone, and the endpoint itself goes some moments later: networks or policies may change between."""

    async def main() -> None:
        async with stage.running():
            stage.machine.reconciler.changes({source(WEB): (), fast_source(WEB.identity): ()})
            await stage.fast.follow()
            assert stage.links == {"lsr2"}
            stage.change(WEB)
            await eventually(lambda: stage.links == {"lsr1", "lsr2"}, "it is attached again")

    asyncio.run(main())


def test_a_default_of_a_network_takes_all_off(stage: Stage) -> None:
    """It is about each endpoint of the network."""

    async def main() -> None:
        async with stage.running(msgspec.structs.replace(NET, policy="default-deny")):
            assert stage.links == set()

    asyncio.run(main())


PORTS = (Port("", 8080, 80, "tcp"),)


@pytest.mark.parametrize(
    "changed",
    [
        [msgspec.structs.replace(WEB, ports=PORTS)],
        [msgspec.structs.replace(WEB, mtu=1400)],
        [msgspec.structs.replace(WEB, ifname="eth1", host_ifname="lsp3", network="more", ports=PORTS)],
        [msgspec.structs.replace(WEB, id="e2", ifname="eth1", host_ifname="lsp3", network="more", ports=PORTS)],
    ],
    ids=["publishes", "mtu", "its container publishes by another network", "by another endpoint of an engine"],
)
def test_a_change_of_an_endpoint_counts_at_once(stage: Stage, changed: Iterable[Endpoint]) -> None:
    """Nobody calls but the registry, which says that the endpoint changed."""

    async def main() -> None:
        async with stage.running():
            for one in changed:
                stage.change(one)
            await eventually(lambda: stage.links == {"lsr2"}, "web is off the path")
            stage.change(WEB)
            for one in changed:
                if one.identity != WEB.identity:
                    stage.member.endpoints.pop(one.identity)
                    stage.fast.note(one.identity)
            await eventually(lambda: stage.links == {"lsr1", "lsr2"}, "web is on the path")

    asyncio.run(main())


def flow(source: str, target: str, translated: str = "") -> Flow:
    """Return a flow of TCP between two addresses."""
    return Flow(prefix(source), prefix(target), "tcp", 80, prefix(translated) if translated else None)


def test_older_flows_of_whoever_leaves_the_path_are_forgotten(stage: Stage) -> None:
    """Connection tracking has not seen their last packets. Others, and those that never were on it, go on."""

    async def main() -> None:
        slow = msgspec.structs.replace(OTHER, id="c3", addresses=("10.244.1.4/32",), netns=9, mtu=1400)
        stage.attach(slow)
        async with stage.running():
            assert stage.cuts == []
            stage.change(msgspec.structs.replace(WEB, mtu=1400))
            await eventually(lambda: len(stage.cuts) == 1, "flows are forgotten")
            inside = stage.cuts[0]
            assert inside(flow("10.244.1.2", "10.244.9.9"))
            assert inside(flow("10.244.9.9", "10.244.1.2"))
            assert inside(flow("10.244.1.2", "10.244.1.3"))
            assert not inside(flow("10.244.1.3", "10.244.9.9")), "of another container"
            assert not inside(flow("10.244.1.2", "10.244.1.4")), "with one that was not on the path"
            assert not inside(flow("10.244.1.2", "198.51.100.1")), "to the outside"
            assert not inside(flow("10.244.9.9", "10.244.1.2", "10.244.1.1")), "by a published port"
            stage.change(WEB)
            await eventually(lambda: stage.links == {"lsr1", "lsr2"}, "web is on the path")
            stage.facts = Facts(early=True, translated=frozenset({(4, "IPVS")}))
            stage.change(msgspec.structs.replace(WEB, mtu=1400))
            await eventually(lambda: stage.links == {"lsr2"}, "web is off the path")
            del stage.member.endpoints[OTHER.identity]
            stage.fast.note(OTHER.identity)
            await eventually(lambda: stage.links == set(), "other is gone")
            assert len(stage.cuts) == 1, "nothing passed on the path of a host with an obstacle"

    asyncio.run(main())


def test_flows_of_the_host_itself_are_none_of_the_path() -> None:
    """They go on: they never were on it."""
    inside = Inside({"10.244.1.2": [prefix("10.244.0.0/16")]}, {"10.244.1.1"})
    assert inside(flow("10.244.1.2", "10.244.2.1"))
    assert not inside(flow("10.244.1.1", "10.244.1.2"))
    assert not inside(flow("10.244.1.2", "10.244.1.1"))


def test_an_endpoint_that_is_gone_leaves_nothing(stage: Stage) -> None:
    """Nor does a network that is fast no more."""

    async def main() -> None:
        async with stage.running():
            del stage.member.endpoints[WEB.identity]
            stage.fast.note(WEB.identity)
            await eventually(lambda: stage.links == {"lsr2"}, "web is gone")
            await stage.record(msgspec.structs.replace(NET, backend="host-gw", options={}))
            await stage.fast.follow()
            assert stage.links == set()
            assert stage.fast.standing(stage.member.networks.get("demo")) is None

    asyncio.run(main())


def test_a_standing_counts_each_endpoint_and_names_a_few(stage: Stage) -> None:
    """Containers may share a name, and a policy may be about very many."""

    async def main() -> None:
        async with stage.running():
            for one in (WEB, OTHER):
                stage.change(msgspec.structs.replace(one, name="twin", mtu=1400))
            standing = stage.fast.standing(NET)
            assert standing is not None
            assert (standing.endpoints, list(standing.left)) == (0, ["twin"])

    asyncio.run(main())
    words = Standing(1, left={f"c{number}": "its MTU is not the network's" for number in range(9)}).words()
    assert "c4: " in words
    assert words.endswith("; and 4 more")


def test_a_kernel_that_cannot_is_asked_for_nothing(stage: Stage) -> None:
    """The standing says so."""

    async def main() -> None:
        stage.facts = Facts()
        async with stage.running():
            assert stage.links == set()
            standing = stage.fast.standing(NET)
            assert standing is not None
            assert "this kernel" in standing.words()

    asyncio.run(main())
