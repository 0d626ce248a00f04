"""A voter whose address changes, and the parts of its work, of which one may fail."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from linkspan.agent import voters as module
from linkspan.agent.etcd_unit import EtcdUnit
from linkspan.agent.own_cluster import OwnCluster
from linkspan.agent.voter_server import VoterServer
from linkspan.agent.voters import MOVE_AFTER, Voters, moved
from linkspan.cluster.founding import member_list, promotion, voter_call
from linkspan.cluster.founding.etcd_service import EtcdService
from linkspan.cluster.founding.revocation import Revocation
from linkspan.cluster.founding.trust_files import TrustFiles, Voter
from linkspan.cluster.founding.voter_call import Ear
from linkspan.cluster.founding.voter_control import VoterControl
from linkspan.cluster.hosts import Hosts
from linkspan.core.config import Config
from linkspan.core.errors import LinkspanError, Unavailable
from linkspan.core.model import Host as Record
from linkspan.core.model import Underlay
from linkspan.store.etcd_wire import Member
from linkspan.store.memory import Memory
from linkspan.store.vault import Vault
from support.fake_voters import Gateway, member
from support.records.replicas import Member as Replicas

OLD, NEW, SIX = "192.0.2.2", "192.0.2.22", "2001:db8::2"


def test_a_voter_waits_for_its_address_and_takes_no_other_family() -> None:
    """Without that, three seconds without IPv4 would cut off all clients of the only voter."""
    voter, later = Voter(OLD), MOVE_AFTER + 1
    assert moved(voter, frozenset({OLD, NEW}), 0) == ""
    assert moved(voter, frozenset({NEW, SIX}), MOVE_AFTER - 1) == ""
    assert moved(voter, frozenset({NEW, SIX}), later) == NEW
    assert moved(voter, frozenset({SIX}), later) == ""
    assert moved(voter, frozenset(), later) == ""
    assert moved(Voter(SIX), frozenset({NEW, "2001:db8::3"}), later) == "2001:db8::3"


def test_a_voter_goes_back_to_the_address_that_others_know_and_ends_what_broke_off() -> None:
    """At once: it is there again."""
    assert moved(Voter(NEW, former=OLD), frozenset({OLD, NEW}), 0) == OLD
    assert moved(Voter(NEW, former=OLD), frozenset({NEW}), 0) == ""
    assert moved(Voter(NEW, former=OLD, moving=True), frozenset({NEW}), 0) == NEW
    assert moved(Voter(NEW, former=OLD, moving=True), frozenset({OLD}), 0) == OLD


class Asked(Vault):
    """A vault behind connections in memory."""

    def __init__(self) -> None:
        self._gateway: Any = Gateway()

    @property
    def gateway(self) -> Any:
        """The connections."""
        return self._gateway


class Server(VoterServer):
    """A voter's servers, of which none runs."""

    def __init__(self, voter: Voter, folder: Path) -> None:
        self.voter = voter
        self.service = EtcdService(folder, "2", voter)
        self.vault = Asked()
        self.settled_ = False

    async def stop(self) -> None:
        """End."""

    def follow(self) -> None:
        """Follow the voters."""

    def settled(self) -> None:
        """Drop the former address."""
        self.settled_ = True


class Revoked(Revocation):
    """A revocation that fails."""

    def __init__(self) -> None:
        """Have nothing."""

    async def look(self) -> None:
        """Fail."""
        raise Unavailable("the disk is full", "make room")


class Looks(VoterControl):
    """Notes that the voters are observed."""

    def __init__(self) -> None:
        self.count = 0

    async def look(self) -> None:
        """Observe them."""
        self.count += 1


class Host:
    """A voter's agent, as far as it follows the voters."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, *places: str) -> None:
        self.folder, self.files = folder, TrustFiles(folder)
        self.gateway = Gateway(*places)
        gateway: Any = self.gateway
        cluster = OwnCluster(Config(state_dir=str(folder)), folder / "agent.toml", lambda _: None)
        hosts = Replicas(Memory(), folder, "2").hosts
        unit = EtcdUnit(folder)
        self.voters = Voters(cluster, unit, gateway, "c", hosts, None, lambda _: None, lambda: None)
        self.started: list[Voter] = []
        monkeypatch.setattr(self.voters, "_start", self.started.append)

    def move(self, address: str, known: Voter) -> None:
        """Move its etcd."""
        asyncio.run(self.voters._move(Server(known, self.folder), address))


def test_a_move_that_fails_is_repeated_and_leaves_running_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The voter writes down how far it came: where etcd listens, and where the others look for it."""
    host = Host(monkeypatch, tmp_path, f"{OLD}:5379")

    def fail(*_: object) -> None:
        raise Unavailable("the disk is full")

    monkeypatch.setattr("linkspan.cluster.founding.foundation.make_server", fail)
    with pytest.raises(Unavailable, match="the disk is full"):
        host.move(NEW, Voter(OLD))
    broken = Voter(NEW, former=OLD, moving=True)
    assert (host.files.voter(), host.started) == (broken, [broken])
    assert moved(broken, frozenset({NEW}), 0) == NEW
    monkeypatch.setattr("linkspan.cluster.founding.foundation.make_server", lambda *_: None)
    host.move(NEW, broken)
    assert host.files.voter() == Voter(NEW, former=OLD)
    host.move(OLD, Voter(NEW, former=OLD))
    assert host.files.voter() == host.started[-1] == Voter(OLD)


def test_one_of_several_voters_moves_only_while_the_others_have_a_quorum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If all moved at once, none would find another any more; back it goes in any case."""
    host = Host(monkeypatch, tmp_path, f"{OLD}:5379", "192.0.2.1:5379")
    steps: list[str] = []

    async def ask(*_: object) -> None:
        raise Unavailable("no quorum")

    async def move(_files: TrustFiles, _service: object, voter: Voter, *_: object) -> None:
        steps.append(voter.address)

    monkeypatch.setattr(host.gateway, "ask", ask)
    monkeypatch.setattr(promotion, "move", move)
    with pytest.raises(Unavailable, match="no quorum"):
        host.move(NEW, Voter(OLD))
    assert steps == []
    host.move(OLD, Voter(NEW, former=OLD))
    assert steps == [OLD]


def test_a_part_that_fails_keeps_no_other_one_from_going_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A revocation that no disk takes must not end the replacement of dead voters."""
    host, looks = Host(monkeypatch, tmp_path, f"{OLD}:5379"), Looks()
    server = host.voters.server = Server(Voter(OLD), tmp_path)
    host.voters._enrolled = True
    host.voters.revocation, host.voters.control = Revoked(), looks
    with pytest.raises(LinkspanError, match="the disk is full") as failed:
        asyncio.run(host.voters._look_after(server, ()))
    assert failed.value.hint == "make room"
    assert looks.count == 1


def test_the_former_address_is_dropped_once_other_voters_know_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then, and with no other voter, it is kept."""
    host = Host(monkeypatch, tmp_path, f"{OLD}:5379")

    def told(voter: Voter, *members: Member) -> bool:
        server = Server(voter, tmp_path)
        asyncio.run(host.voters._tell_address(server, members))
        return server.settled_

    assert not told(Voter(OLD, former=NEW), member("2"))
    assert told(Voter(OLD, former=NEW), member("1"), member("2"))
    assert not told(Voter(OLD), member("1"), member("2"))


def test_the_time_without_the_address_counts_from_its_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Again each time."""
    host, now = Host(monkeypatch, tmp_path, f"{OLD}:5379"), 1000.0
    own = frozenset({NEW})
    monkeypatch.setattr(module, "addresses", lambda _host: own)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    assert host.voters._moved(Voter(OLD)) == ""
    now += MOVE_AFTER - 1
    own = frozenset({OLD})
    assert host.voters._moved(Voter(OLD)) == ""
    own, now = frozenset({NEW}), now + 2
    assert host.voters._moved(Voter(OLD)) == ""
    now += MOVE_AFTER
    assert host.voters._moved(Voter(OLD)) == NEW


def test_a_host_that_finds_no_voter_follows_the_one_that_calls_and_is_proved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host asks other callers, too, and nothing follows from that."""
    host = Host(monkeypatch, tmp_path, f"{OLD}:5379")
    asked: list[str] = []
    monkeypatch.setattr(Ear, "callers", lambda _ear: ("203.0.113.66", NEW))
    monkeypatch.setattr(Ear, "open", lambda _ear: None)

    async def answering(url: str, _seconds: float) -> tuple[Member, ...]:
        asked.append(url.partition("/linkspan")[0])
        return (member("22"),) if NEW in url else ()

    monkeypatch.setattr(member_list, "answering", answering)
    asyncio.run(host.voters._seek())
    assert asked == ["etcd://203.0.113.66:5379", f"etcd://{NEW}:5379"]
    assert f"etcd://{NEW}:5379/" in (tmp_path / "agent.toml").read_text()
    assert host.gateway.url.endpoints == (f"{NEW}:5379",)


def test_a_voter_calls_the_hosts_that_are_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those that live, nor those of which nobody knows, and not at each look."""
    host = Host(monkeypatch, tmp_path, f"{OLD}:5379")
    called: list[object] = []
    lives = {"2": True, "3": False, "4": None}
    known = {id_: Record(id=id_, name=f"h{id_}", underlay=Underlay("eth0", (f"192.0.2.{id_}/24",))) for id_ in lives}
    monkeypatch.setattr(Hosts, "all", lambda _hosts: known)
    monkeypatch.setattr(Hosts, "lives", lambda _hosts, id_: lives[id_])
    monkeypatch.setattr(voter_call, "call", lambda *words: called.append(words))
    for _ in range(2):
        asyncio.run(host.voters._call(Server(Voter(OLD), tmp_path)))
    assert called == [(OLD, ["192.0.2.3"])]
