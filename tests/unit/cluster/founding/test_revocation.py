"""Revocation on all voters: how long a forget waits for them, and what it says if that does not help."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from linkspan.cluster.founding import revocation
from linkspan.cluster.founding.etcd_service import EtcdService
from linkspan.cluster.founding.revocation import PUBLISHED, Published, Revocation, digest, interrupted
from linkspan.cluster.founding.trust_files import TrustFiles, Voter
from linkspan.core.errors import Conflict, Unavailable
from support.fake_voters import Voters
from support.polling import eventually


class Others:
    """The voters 1 and 2; the agent of the second one may be off."""

    def __init__(self, *off: str) -> None:
        self.off = off
        self.looks = 0
        """How often somebody asked who answers."""

    async def answering(self) -> frozenset[str]:
        """Return who answers."""
        self.looks += 1
        return frozenset({"1", "2"})

    def idle(self, host: str) -> bool:
        """Return whether a host's agent is off."""
        return host in self.off

    def name(self, host: str) -> str:
        """Return a host's name."""
        return f"h{host}"


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Revocation:
    """Give the part of voter 1, where nothing was revoked; only the waits are short."""
    monkeypatch.setattr(revocation, "AGAIN", 0.01)
    monkeypatch.setattr(revocation, "STUCK", 0.1)
    voters = Voters(monkeypatch, ("1", "2"))
    service = EtcdService(tmp_path, "1", Voter("192.0.2.1"))
    service.close()
    return Revocation(TrustFiles(tmp_path), voters.vault, service, "1")


def goes_on() -> None:
    """Return no reason why this host could not do the rest."""


def test_a_forget_ends_when_all_voters_have_done_their_part(part: Revocation) -> None:
    """The other one a moment later."""

    async def run() -> None:
        others = Others()
        waiting = asyncio.create_task(part.everywhere(others, goes_on))
        await eventually(lambda: others.looks > 2, "it looks again and again")
        assert not waiting.done()
        await part._vault.put({PUBLISHED + "2": (Published(digest([])), 0)})
        await asyncio.wait_for(waiting, 1)

    asyncio.run(run())


def test_a_voter_whose_agent_is_off_is_not_waited_for(part: Revocation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name is told, and what to do; the others' parts are done."""
    monkeypatch.setattr(revocation, "OFF", 0.1)
    with pytest.raises(Unavailable, match="still open at h2: the agent there does not run") as refused:
        asyncio.run(asyncio.wait_for(part.everywhere(Others("2"), goes_on), 1))
    assert refused.value.hint == "start it; then type the same again"


def test_a_voter_whose_agent_restarts_is_waited_for(part: Revocation) -> None:
    """It is off for longer than a liveness record lasts, and then does its part."""
    others = Others("2")

    async def run() -> None:
        waiting = asyncio.create_task(part.everywhere(others, goes_on))
        await eventually(lambda: others.looks > 20, "it looks again and again")
        others.off = ()
        assert not waiting.done()
        await part._vault.put({PUBLISHED + "2": (Published(digest([])), 0)})
        await asyncio.wait_for(waiting, 1)

    asyncio.run(run())


def test_a_problem_that_lasts_ends_the_wait(part: Revocation, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a voter that is missed: no restart of an etcd takes so long."""

    async def look(_part: Revocation) -> None:
        raise Unavailable("etcd is not restarted here", "bring h2 back")

    monkeypatch.setattr(Revocation, "look", look)
    with pytest.raises(Unavailable, match="still open at h1: etcd is not restarted here") as refused:
        asyncio.run(asyncio.wait_for(part.everywhere(Others(), goes_on), 2))
    assert refused.value.hint == "bring h2 back"


def test_a_host_that_became_a_client_says_where_to_go_on(part: Revocation) -> None:
    """It has no part in this any more, and must not try for a minute."""
    with pytest.raises(Conflict, match="this host has become a client") as refused:
        asyncio.run(asyncio.wait_for(part.everywhere(Others(), lambda: interrupted(voter=False)), 1))
    assert "on a voter" in refused.value.hint
