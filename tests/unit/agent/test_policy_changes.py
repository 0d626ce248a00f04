"""Cost of a change of one policy among many: what goes to the kernel, and what is looked at. Never a time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from linkspan.agent import policy_enforcement
from linkspan.agent.policy_elements import PolicyElements
from linkspan.core.desired import Change
from linkspan.core.model import Endpoint
from linkspan.core.states.host import NftChain, NftElement, NftSet
from linkspan.endpoints.registry import policy_source
from linkspan.policy.judge import Terms
from linkspan.policy.model import Peer, Policy, Ports, Rule, Selector
from support.policy_stage import HERE, PROXY, WEB, Stage, recorded

POLICIES, MANY = 1000, 10_000
PEER, HALF = Selector(labels={"app": "peer"}), Selector(labels={"app": "peer", "half": "1"})


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Return such hosts, before they run."""
    return Stage(tmp_path, monkeypatch)


def policy(number: int, *, peer: Selector = PROXY, port: int = 0, select: Selector | None = None) -> Policy:
    """Return one of many policies: every hundredth is about the container here."""
    rule = Rule(peers=(Peer(select=peer),), ports=(Ports("tcp", port or 1 + number, port or 1 + number),))
    about = Selector(names=("web",)) if number % 100 == 0 else Selector(labels={"app": f"other{number}"})
    return Policy(name=f"p{number}", select=select or about, ingress=(rule,), order=number, line=number)


def peers(count: int) -> Iterator[tuple[str, bytes]]:
    """Yield the records of another host's endpoints."""
    for number in range(count):
        address = f"10.77.{4 + (number >> 8)}.{number & 255}/32"
        yield recorded(f"c{number}", address, app="peer", half=str(number % 2))


def names(states: list[NftElement]) -> Counter[str]:
    """Return how many elements are of each set."""
    return Counter(one.set for one in states)


class Looks:
    """Counts which endpoints are looked at, and how many policies are read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: Counter[str] = Counter()
        for name in ("of_own", "of_others", "reselected"):
            monkeypatch.setattr(PolicyElements, name, self._counted(name, getattr(PolicyElements, name)))
        begin = Terms.__init__

        def read(terms: Terms, policy: Policy) -> None:
            self.seen["read"] += 1
            begin(terms, policy)

        monkeypatch.setattr(Terms, "__init__", read)

    def _counted(self, name: str, function: object) -> object:
        def counted(*args: object) -> object:
            self.seen[name] += 1
            return function(*args)  # type: ignore[operator]

        return counted

    def taken(self) -> Counter[str]:
        """Return the counts since the last time."""
        found, self.seen = self.seen, Counter()
        return found


def test_one_of_a_thousand_policies_costs_what_it_is(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ports are one chain; a new policy is its own set and chains, and the way of the containers that it is about."""
    looks = Looks(monkeypatch)

    async def main() -> None:
        async with stage.running():
            await stage.record("proxy", "10.77.9.9/32", app="proxy")
            await stage.apply(*(policy(number) for number in range(POLICIES)))
            await stage.settled()
            put, _ = stage.machine.sent()
            assert put["NftChain"] > 2 * POLICIES
            looks.taken()

            await stage.apply(policy(7, port=8080))
            assert stage.machine.sent() == ({"NftChain": 1}, {})
            assert looks.taken() == {"read": 1}, "no endpoint is looked at"

            await stage.apply(policy(7, peer=PEER, port=8080))
            assert stage.machine.sent() == ({"NftChain": 1, "NftSet": 1}, {})
            assert looks.taken() == {"read": 1, "reselected": 1}

            await stage.apply(policy(POLICIES, peer=PEER))
            put, deleted = stage.machine.sent()
            assert put == {"NftChain": 3, "NftElement": 1}, "its rules, its refusal, and the container's new way"
            assert deleted == {"NftChain": 1}, "the former way"
            assert looks.taken() == {"read": 1, "of_own": 1}

            await stage.member.replica.write({}, deletes=[f"policies/p{POLICIES}"])
            await stage.enforcement.enforce()
            assert stage.machine.sent() == ({"NftChain": 1, "NftElement": 1}, {"NftChain": 3})
            assert looks.taken() == {"of_own": 1}

            await stage.enforcement.enforce()
            assert stage.machine.sent() == ({}, {})

    asyncio.run(main())


def test_ten_thousand_peers_are_elements_and_only_those_that_differ(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other ports touch none of them, and another selector only its own set."""
    monkeypatch.setattr(policy_enforcement, "PATIENCE", 60.0)  # for a new label all are read once more
    looks = Looks(monkeypatch)

    async def main() -> None:
        async with stage.running(dict(peers(MANY))):
            await stage.apply(policy(0, peer=PEER), *(policy(number) for number in range(1, POLICIES)))
            await stage.settled()
            assert len(stage.addresses(f"chosen4_{PEER.digest}")) == MANY
            assert len(stage.addresses("policy_known4")) > MANY
            stage.machine.sent()
            looks.taken()

            await stage.apply(policy(0, peer=PEER, port=443))
            assert stage.machine.sent() == ({"NftChain": 1}, {})
            assert looks.taken() == {"read": 1}

            await stage.apply(policy(1, peer=HALF))
            await stage.settled()
            put = [state for state in stage.machine.put if isinstance(state, NftElement)]
            assert names(put) == {f"chosen4_{HALF.digest}": MANY // 2}
            stage.machine.sent()

            await stage.apply(policy(1, peer=HALF, select=Selector(names=("web",))))
            assert stage.machine.sent() == ({"NftChain": 1, "NftElement": 1}, {"NftChain": 1}), "another way"

            await stage.apply(policy(0, peer=PROXY))
            gone = [state for state in stage.machine.deleted if isinstance(state, NftElement)]
            assert names(gone)[f"chosen4_{PEER.digest}"] == MANY
            assert stage.addresses(f"chosen4_{PEER.digest}") == set()
            assert len(stage.addresses(f"chosen4_{HALF.digest}")) == MANY // 2

    asyncio.run(main())


def test_a_changed_label_is_a_few_elements(stage: Stage) -> None:
    """Of another host's endpoint and of one here: no rule is put, but those of a new combination of policies."""
    mate = msgspec.structs.replace(HERE, id="c2", name="mate", addresses=("10.77.0.3/32",), labels={"app": "other1"})

    def relabelled(endpoint: Endpoint, **labels: str) -> None:
        stage.member.endpoints[endpoint.identity] = msgspec.structs.replace(endpoint, labels=labels)
        stage.enforcement.note(endpoint.identity)

    async def main() -> None:
        async with stage.running():
            stage.member.endpoints[mate.identity] = mate
            await stage.record("proxy", "10.77.9.9/32", app="proxy")
            await stage.apply(*(policy(number) for number in range(POLICIES)))
            await stage.settled()
            stage.machine.sent()

            await stage.relabel("proxy", "10.77.9.9/32", app="none")
            assert stage.machine.sent() == ({}, {"NftElement": 1})

            relabelled(HERE, app="other1")
            await stage.enforcement.enforce()
            put, _ = stage.machine.sent()
            assert put == {"NftChain": 1, "NftElement": 1}, "a combination that nobody else has"
            relabelled(mate, app="other2")
            await stage.enforcement.enforce()
            relabelled(mate, app="other1")
            await stage.enforcement.enforce()
            stage.machine.sent()
            third = msgspec.structs.replace(mate, id="c3", addresses=("10.77.0.4/32",))
            relabelled(third, app="other1")
            await stage.enforcement.enforce()
            assert stage.machine.sent() == ({"NftElement": 3}, {}), "known, under policy, and its way"

    asyncio.run(main())


def test_an_attach_under_the_policies_of_another_container_puts_no_rule(stage: Stage) -> None:
    """The chain of their policies is there: what goes to the kernel are elements, which need no libnftables."""

    async def main() -> None:
        async with stage.running():
            await stage.apply(WEB)
            await stage.settled()
            stage.machine.sent()
            other = msgspec.structs.replace(HERE, id="c2", addresses=("10.77.0.3/32",))
            planned = stage.enforcement.elements(other)
            assert any(isinstance(state, NftChain) for state in planned)
            assert stage.machine.reconciler.change(policy_source(other.identity), planned) == {}
            assert stage.machine.sent() == ({"NftElement": 3}, {})

    asyncio.run(main())


def test_a_policy_that_goes_while_an_attach_under_it_is_under_way_leaves_nothing(stage: Stage) -> None:
    """The new container has been put with the chains of then, and this host does not know it yet: they stay so long."""
    other = msgspec.structs.replace(
        HERE, id="c2", name="other", addresses=("10.77.0.3/32",), labels={"app": "other1"}
    )

    async def main() -> None:
        async with stage.running():
            await stage.apply(policy(0), policy(1))
            await stage.settled()
            reconciler = stage.machine.reconciler
            assert reconciler.change(policy_source(other.identity), stage.enforcement.elements(other)) == {}
            await stage.member.replica.write({}, deletes=["policies/p1"])
            await stage.enforcement.enforce()
            assert stage.addresses("policed_by_in4") == {"10.77.0.2", "10.77.0.3"}, "fewer rules were a hole"
            assert reconciler.resync([NftSet, NftChain, NftElement]).failed, "the kernel refuses to delete its chains"
            assert reconciler.fights.closed() == set(), "no port goes down for that"
            stage.member.endpoints[other.identity] = other
            stage.enforcement.note(other.identity)
            await stage.enforcement.enforce()
            assert stage.addresses("policed_by_in4") == {"10.77.0.2"}
            reconciler.resync([NftChain])
            change, _ = reconciler.difference()
            assert (change.put, change.delete) == ((), ())
            assert reconciler.failing == {}

    asyncio.run(main())


def test_with_the_last_policy_goes_what_an_attach_has_put_that_is_under_way(stage: Stage) -> None:
    """The sets of its elements are gone, so that no healer could put them."""
    other = msgspec.structs.replace(HERE, id="c2", addresses=("10.77.0.3/32",))

    async def main() -> None:
        async with stage.running():
            await stage.apply(WEB)
            await stage.settled()
            reconciler = stage.machine.reconciler
            assert reconciler.change(policy_source(other.identity), stage.enforcement.elements(other)) == {}
            await stage.member.replica.write({}, deletes=["policies/web"])
            await stage.enforcement.enforce()
            stage.member.endpoints[other.identity] = other
            stage.enforcement.note(other.identity)
            await stage.enforcement.enforce()
            assert reconciler.desired.sources().keys() == {("host", "firewall")}
            assert reconciler.resync([NftSet, NftChain, NftElement]).failed == {}
            assert reconciler.difference()[0] == Change((), ())
            assert reconciler.fights.closed() == set()

    asyncio.run(main())
