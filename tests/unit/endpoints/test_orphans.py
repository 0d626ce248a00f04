"""Orphans: what is kept for them, and how a pair becomes an endpoint's without being nobody's in between."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import pytest

from linkspan.cluster.address_usage import AddressUsage
from linkspan.cluster.networks import Networks
from linkspan.cluster.readiness import Readiness
from linkspan.core.addresses import Prefix, prefix
from linkspan.core.clock import now
from linkspan.core.errors import Conflict
from linkspan.core.event_log import EventLog
from linkspan.core.model import Network
from linkspan.core.ruleset import element
from linkspan.core.states.host import Bridge, Key, NftChain, NftSet, State, TokenBucket, Veth
from linkspan.endpoints.journal import Journal
from linkspan.endpoints.orphans import SOURCE, Orphans
from linkspan.endpoints.reconstruction import Link
from support.memory_machine import MemoryMachine, worker_of
from support.records.peers import network

BRIDGE = Bridge("lsb-demo", bytes(6), 1500)
OURS = ("attachment", "c1", "eth0")


def veth(name: str, mtu: int = 1500) -> Veth:
    """Return a pair as it is observed."""
    return Veth(name, bytes(6), mtu, "lsb-demo", 4026532000, "eth0")


class _Held(AddressUsage):
    """Blocks that know who holds which address."""

    def __init__(self) -> None:
        self.holders: dict[tuple[str, str], str] = {}

    def hold(self, name: str, address: Prefix, holder: str) -> None:
        """Give an address to nobody else."""
        if (name, str(address)) in self.holders:
            raise Conflict("another holds it")
        self.holders[name, str(address)] = holder

    def release(self, name: str, addresses: Iterable[Prefix]) -> None:
        """Undo that."""
        for address in addresses:
            self.holders.pop((name, str(address)), None)


class _Doubts(Readiness):
    """Knows which links' addresses are unknown."""

    def __init__(self) -> None:
        self.blind: set[str] = set()

    def doubt(self, link: str) -> None:
        """Know that a link's addresses are not known."""
        self.blind.add(link)

    def trust(self, link: str) -> None:
        """Undo that."""
        self.blind.discard(link)


class _One(Networks):
    """The only network."""

    def __init__(self) -> None:
        self._network = network("bridge")

    def all(self) -> tuple[Network, ...]:
        """Return it."""
        return (self._network,)


class _Stage:
    """A host whose kernel has a bridge and two pairs that nobody knows."""

    def __init__(self, folder: Path, more: Iterable[State] = ()) -> None:
        self.blocks, self.readiness = _Held(), _Doubts()
        self.kernel: list[State] = [BRIDGE, veth("lsp1"), TokenBucket("lsp1", 1000, 1000), veth("lsp2"), *more]
        machine = MemoryMachine(self.kernel)
        self.desired = machine.reconciler.desired
        journal, event_log = Journal(folder / "journal.db", boot_id="b1"), EventLog(folder / "events")
        self.orphans = Orphans(worker_of(machine), journal, _One(), self.blocks, self.readiness, event_log, 9)
        for number, name in enumerate(("lsp1", "lsp2"), 1):
            self.orphans.add(self.link(name, f"10.77.0.{number + 1}"))
        asyncio.run(self.orphans.spare())

    def link(self, name: str, address: str) -> Link:
        return Link(veth(name), "02:00:00:00:00:01", (prefix(address),))

    def wanted(self) -> set[Key]:
        return set(self.desired.states())


@pytest.fixture
def stage(tmp_path: Path) -> _Stage:
    """Such a host, before its first resync."""
    return _Stage(tmp_path)


def test_all_that_the_first_resync_would_remove_is_kept(stage: _Stage) -> None:
    """Bridge, pairs and limits stay, and the addresses are given to nobody."""
    assert stage.wanted() == {state.key for state in stage.kernel}
    assert set(stage.blocks.holders.values()) == {"orphan lsp1", "orphan lsp2"}


def test_rules_of_policies_are_nobody_s_but_the_policies(tmp_path: Path) -> None:
    """Kept for an orphan, a deleted policy would stay in force, and a changed one would be a conflict."""
    policies: list[State] = [
        NftChain("inet", "linkspan", "policy_in4", "", ("drop",)),
        NftSet("inet", "linkspan", "policed_in4", "ipv4_addr"),
        element("policed_in4", "10.77.0.2"),
        element("chosen4_00", "10.77.0.2"),
        element("policy_known4", "10.77.0.2"),
    ]
    stage = _Stage(tmp_path, policies)
    assert stage.wanted() == {state.key for state in stage.kernel} - {state.key for state in policies}


def test_while_an_orphan_s_addresses_are_not_known_the_allocator_doubts(stage: _Stage) -> None:
    """Its container runs, and nobody knows which address is its own; with the orphan goes the doubt."""
    stage.orphans.add(Link(veth("lsp3"), "", ()))
    assert stage.readiness.blind == {"lsp3"}
    stage.orphans.forget("lsp3")
    assert stage.readiness.blind == set()


def test_a_pair_becomes_an_endpoint_s_in_one_step(stage: _Stage) -> None:
    """The endpoint wants another MTU than the orphan has, so both cannot want it at once."""
    stage.orphans.unhold("lsp1")
    stage.orphans.forget("lsp1")
    assert veth("lsp1").key in stage.wanted()
    asyncio.run(stage.orphans.hand_over("lsp1", {OURS: [veth("lsp1", 1400)]}))
    assert stage.desired.state(veth("lsp1").key) == veth("lsp1", 1400)
    assert TokenBucket("lsp1", 1000, 1000).key not in stage.wanted()
    assert {veth("lsp2").key, BRIDGE.key} <= stage.wanted()
    assert set(stage.blocks.holders.values()) == {"orphan lsp2"}


def test_with_the_last_orphan_goes_all_that_was_kept_for_them(stage: _Stage) -> None:
    """The bridge is its network's by then, or has no owner."""
    for name in ("lsp1", "lsp2"):
        stage.orphans.unhold(name)
        stage.orphans.forget(name)
        asyncio.run(stage.orphans.hand_over(name, {(*OURS[:1], name, "eth0"): [veth(name)]}))
    assert SOURCE not in stage.desired.sources()
    assert stage.wanted() == {veth("lsp1").key, veth("lsp2").key}
    assert stage.blocks.holders == {}


def test_an_orphan_whose_container_is_refused_keeps_its_time_and_its_address(
    stage: _Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The grace time begins once, however often the store says something of it."""
    later = now() + 5
    monkeypatch.setattr("linkspan.endpoints.orphans.now", lambda: later)
    left = [told["removed_in"] for told in stage.orphans.told()]
    assert all(0 < seconds < 9 for seconds in cast("list[float]", left))
    stage.orphans.unhold("lsp1")
    stage.orphans.add(stage.link("lsp1", "10.77.0.2"))
    assert [told["removed_in"] for told in stage.orphans.told()] == left
    assert set(stage.blocks.holders.values()) == {"orphan lsp1", "orphan lsp2"}
