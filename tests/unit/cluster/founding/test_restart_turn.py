"""Voters restart one after the other, and only while the others can do without the one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from linkspan.cluster.founding import authority_rotation, restart_turn
from linkspan.cluster.founding.authority_plan import CLIENTS, ROTATION, TRUST, RotationRecord
from linkspan.cluster.founding.authority_rotation import AuthorityRotation
from linkspan.cluster.founding.etcd_service import EtcdService
from linkspan.cluster.founding.restart_turn import RESTART, Restarting, dispensable, restart_in_turn
from linkspan.cluster.founding.trust_files import TrustFiles, Voter
from linkspan.core.errors import Conflict, Unavailable
from support.fake_voters import Voters, member
from support.polling import eventually


class Etcd:
    """A voter's etcd, which does not answer after a restart until it is let."""

    def __init__(self, voters: Voters, host: str) -> None:
        self.place = f"192.0.2.{host}:5379"
        self._voters = voters
        self._host = host
        self.restarted = 0

    async def restart(self) -> None:
        """Restart it."""
        self.restarted += 1
        self._voters.gateway.silent.add(self._host)

    def answer(self) -> None:
        """Let it answer."""
        self._voters.gateway.silent.discard(self._host)


@pytest.fixture
def voters(monkeypatch: pytest.MonkeyPatch) -> Voters:
    """Give three voters."""
    monkeypatch.setattr(restart_turn, "AGAIN", 0.01)
    return Voters(monkeypatch, ("1", "2", "3"))


def test_the_turn_ends_when_the_own_etcd_answers(voters: Voters) -> None:
    """Another voter that answers meanwhile is not enough, and the next one waits for that."""
    first, second = Etcd(voters, "1"), Etcd(voters, "2")

    async def run() -> None:
        one = asyncio.create_task(restart_in_turn(voters.vault, first, "1"))
        await eventually(lambda: first.restarted == 1, "the first one restarts")
        other = asyncio.create_task(restart_in_turn(voters.vault, second, "2"))
        await asyncio.sleep(0.1)
        assert (one.done(), second.restarted) == (False, 0)
        assert (await voters.vault.get(RESTART, Restarting))[0] == Restarting("1")
        first.answer()
        await eventually(lambda: second.restarted == 1, "then the second one does")
        second.answer()
        await asyncio.gather(one, other)
        assert (await voters.vault.get(RESTART, Restarting))[0] is None

    asyncio.run(run())


def test_nothing_restarts_while_another_voter_is_missed(voters: Voters) -> None:
    """One that did not come back ends its own etcd alone, and the error names it."""
    second = Etcd(voters, "2")
    voters.gateway.silent.add("1")

    async def run() -> None:
        with pytest.raises(Unavailable, match="the voter 1 does not answer") as refused:
            await restart_in_turn(voters.vault, second, "2")
        assert refused.value.hint.endswith("linkspan cluster demote 1")
        assert second.restarted == 0
        assert (await voters.vault.get(RESTART, Restarting))[0] is None

    asyncio.run(run())


def test_a_voter_waits_for_the_turn_and_takes_up_its_own(voters: Voters, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that was killed in its turn goes on with it; nobody restarts in another one's."""
    monkeypatch.setattr(restart_turn, "RESTART_SECONDS", 0.05)
    monkeypatch.setattr(restart_turn, "BACK_SECONDS", 0.05)
    etcd = Etcd(voters, "2")

    async def run() -> None:
        await voters.vault.hold(RESTART, Restarting("1"), 99)
        with pytest.raises(Unavailable, match="another voter's etcd restarts"):
            await restart_in_turn(voters.vault, etcd, "2")
        assert etcd.restarted == 0
        _, revision = await voters.vault.get(RESTART, Restarting)
        await voters.vault.put({RESTART: (Restarting("2"), revision)})
        await restart_in_turn(voters.vault, etcd, "2")
        assert etcd.restarted == 1

    asyncio.run(run())


def test_one_of_several_voters_is_dispensable_while_the_others_are_a_quorum() -> None:
    """Of two neither ever is; so the other one must answer at least."""
    assert dispensable(0, 0)
    assert dispensable(1, 1)
    assert not dispensable(0, 1)
    assert not dispensable(1, 2)
    assert dispensable(3, 4)
    assert not dispensable(2, 4)


@pytest.mark.parametrize("systemd", [False, True])
def test_an_etcd_that_could_not_start_again_is_not_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, systemd: bool
) -> None:
    """As after another etcd was installed beside the one that runs: systemd would skip the unit without a failure."""
    done: list[str] = []

    def refuse(_self: EtcdService) -> None:
        raise Conflict("the data are of etcd 3.5, and this is etcd 3.6")

    monkeypatch.setattr(EtcdService, "check", refuse)
    monkeypatch.setattr(EtcdService, "stop", lambda _self: done.append("stop"))
    monkeypatch.setattr("linkspan.cluster.founding.etcd_service._systemctl", lambda *words: done.extend(words))
    service = EtcdService(tmp_path, "1", Voter("192.0.2.1", systemd=systemd))
    with pytest.raises(Conflict, match=r"etcd 3\.6"):
        asyncio.run(service.restart())
    service.close()
    assert done == []


def test_a_rotation_waits_for_a_host_that_becomes_a_voter(
    voters: Voters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was given the authorities of before: no step is carried out, and none ends, without it."""
    acted: list[str] = []

    async def act(self: AuthorityRotation, rotation: RotationRecord) -> None:
        acted.append(rotation.step)

    monkeypatch.setattr(AuthorityRotation, "_act", act)
    service = EtcdService(tmp_path, "2", Voter("192.0.2.2"))
    part = AuthorityRotation(TrustFiles(tmp_path), voters.vault, service, Voter("192.0.2.2"), "2", 99, lambda: None)
    rotation = RotationRecord(id="r", step=TRUST, begun=0, authorities={CLIENTS: ""}, sealed="")

    async def run() -> None:
        await voters.vault.put({ROTATION: (rotation, 0)})
        three = voters.gateway.members
        voters.gateway.members = (*three, member("4", learner=True))
        assert await part.look()
        assert acted == []
        assert (await authority_rotation.progress(voters.vault)).voters == ("1", "192.0.2.4", "2", "3")
        voters.gateway.members = three
        assert await part.look()
        assert acted == [TRUST]

    asyncio.run(run())
    service.close()
