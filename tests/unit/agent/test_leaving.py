"""Leaving: a leave that breaks off is finished by the next start, and nothing of a voter stays on a client."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from linkspan.agent import voters
from linkspan.agent.etcd_unit import EtcdUnit
from linkspan.agent.founding import Founding
from linkspan.agent.join_tokens import JoinTokens
from linkspan.agent.own_cluster import OwnCluster
from linkspan.agent.settings_file import keep_store
from linkspan.agent.voters import Voters
from linkspan.cluster.founding import member_list, promotion, quorum
from linkspan.cluster.founding.trust_files import TrustFiles, Voter
from linkspan.core.config import Config, load
from linkspan.core.errors import Unavailable
from linkspan.store.etcd_wire import Member
from linkspan.store.memory import Memory
from support.fake_voters import Gateway
from support.records.replicas import Member as Host

VOTER = Voter("192.0.2.1")


class Unit(EtcdUnit):
    """etcd's unit, of which nothing is installed."""

    def __init__(self, folder: Path, removed: list[str]) -> None:
        super().__init__(folder)
        self.removed = removed

    def uninstall(self) -> None:
        """Note that it is removed."""
        self.removed.append("unit")


def test_a_leave_that_broke_off_is_finished_by_the_next_start(tmp_path: Path) -> None:
    """Also if the settings file still has the store, with endpoints of another day."""
    files, file = TrustFiles(tmp_path), tmp_path / "agent.toml"
    files.secret(files.password)
    files.put(files.left, b"")
    file.write_text("cooldown = 5\n")
    keep_store(file, files.url(["192.0.2.2:5379"], "h1"))
    left = Config(state_dir=str(tmp_path), store=files.url([VOTER.clients], "h1"))
    cluster = OwnCluster(left, file, lambda _: None)
    part = Founding(cluster, EtcdUnit(tmp_path), JoinTokens(cluster))
    assert asyncio.run(part.cleared("h1")).store == ""
    assert (load(str(file), {}).store, file.read_text()) == ("", "cooldown = 5\n")
    assert not cluster.own
    assert not any(files.folder.iterdir())


@pytest.mark.parametrize("quorate", [False, True])
def test_a_forced_leave_ends_the_containers_of_a_voter_whose_cluster_has_no_quorum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, quorate: bool
) -> None:
    """Else they would keep addresses that the others give to somebody else. Without force nothing ends.

    While a quorum answers, which elects a leader for example, the voter must wait until it is taken out.
    """
    files, restarts, ended = TrustFiles(tmp_path), list[Config](), list[str]()
    files.keep_voter(VOTER)
    store = files.url([VOTER.clients], "h1")
    cluster = OwnCluster(Config(state_dir=str(tmp_path), store=store), tmp_path / "agent.toml", restarts.append)
    part = Founding(cluster, EtcdUnit(tmp_path), JoinTokens(cluster))
    here = Host(Memory(), tmp_path, "h1").hosts.here

    async def vacate() -> None:
        ended.append("c1")
        raise Unavailable("no voter answers", "")

    async def has_quorum(_cluster: OwnCluster) -> bool:
        return quorate

    monkeypatch.setattr(OwnCluster, "has_quorum", has_quorum)

    async def run() -> None:
        with pytest.raises(Unavailable, match="does not let this host leave"):
            await part.leave(here, vacate, force=False)
        assert not ended
        if quorate:
            with pytest.raises(Unavailable, match="has not begun yet") as refused:
                await part.leave(here, vacate, force=True)
            assert refused.value.hint.endswith("Or: linkspan cluster demote h1 on another voter; then leave")
            assert (ended, files.left.exists()) == ([], False)
            return
        await part.leave(here, vacate, force=True)
        assert (ended, files.left.exists(), len(restarts)) == (["c1"], True, 1)

    asyncio.run(run())


def test_a_client_says_at_once_why_it_cannot_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has ended then, and the way out of a lost cluster is in the hint, beside that of leaving all the same."""
    files = TrustFiles(tmp_path)
    cluster = OwnCluster(Config(state_dir=str(tmp_path), store=files.url([VOTER.clients], "h2")), tmp_path, print)

    async def lost(_gateway: object) -> None:
        raise Unavailable("etcd has no quorum", "linkspan cluster recover")

    async def vacate() -> None:
        pytest.fail("its containers end")

    async def run() -> None:
        part = Founding(cluster, EtcdUnit(tmp_path), JoinTokens(cluster))
        here = Host(Memory(), tmp_path, "h2").hosts.here
        with pytest.raises(Unavailable, match="does not let this host leave: etcd has no quorum") as refused:
            await part.leave(here, vacate, force=False)
        assert refused.value.hint.startswith("linkspan cluster recover. Or: linkspan cluster leave --force")
        with pytest.raises(Unavailable, match="etcd has no quorum"):
            await JoinTokens(cluster).new(uses=0, member=True)

    monkeypatch.setattr(quorum, "require", lost)
    asyncio.run(run())


def test_a_client_with_secrets_of_a_voter_removes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A promotion or a demotion broke off. It tries until that succeeds, but not while it is a member."""
    files = TrustFiles(tmp_path)
    members: tuple[Member, ...] = (Member(id="1", name="voter-h1"),)
    failures, removed = [Unavailable("its disk is full", "")], list[str]()

    async def listed(*_: object, **__: object) -> tuple[Member, ...]:
        return members

    real = promotion.retire

    async def retire(*args: object) -> None:
        if failures:
            raise failures.pop()
        await real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(member_list, "listed", listed)
    monkeypatch.setattr(promotion, "retire", retire)
    monkeypatch.setattr(voters, "addresses", lambda _host: frozenset({"192.0.2.7"}))
    host = Host(Memory(), tmp_path, "h1")
    gateway: Any = Gateway()
    cluster = OwnCluster(Config(state_dir=str(tmp_path)), tmp_path / "agent.toml", lambda _: None)
    part = Voters(cluster, Unit(tmp_path, removed), gateway, "c1", host.hosts, None, lambda _: None, lambda: None)

    async def run() -> None:
        nonlocal members
        files.put(files.authority_key, b"secret")
        await cluster.turn.acquire()
        await part.look()
        members = ()
        await part.look()
        cluster.turn.release()
        with pytest.raises(Unavailable, match="full"):
            await part.look()
        assert files.authority_key.exists()
        await part.look()
        assert not files.voters_left()
        await part.look()
        assert removed == ["unit"]

    asyncio.run(run())
