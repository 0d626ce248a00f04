"""Founding: one init at a time, and a move that fails is waited for with the reason."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from unittest import mock

import pytest

from linkspan.agent import founding
from linkspan.agent.etcd_unit import EtcdUnit
from linkspan.agent.founding import Founding
from linkspan.agent.join_tokens import JoinTokens
from linkspan.agent.own_cluster import OwnCluster
from linkspan.cluster.founding import foundation, quorum
from linkspan.cluster.founding.etcd_service import EtcdService
from linkspan.cluster.founding.join_token import JoinToken
from linkspan.cluster.founding.revocation import Revocation
from linkspan.cluster.founding.trust_files import TrustFiles, Voter
from linkspan.core.config import Config
from linkspan.core.errors import Conflict, Invalid, Unavailable
from linkspan.core.model import Host

VOTER = Voter("192.0.2.1")


def test_a_repeated_init_waits_for_the_one_that_still_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent goes on with an init whose command was ended; the second finds its work done, and asks no restart."""
    running, most, restarts = 0, 0, list[Config]()
    files = TrustFiles(tmp_path)
    files.keep_voter(VOTER)

    async def found(*_: object) -> tuple[str, JoinToken]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        running -= 1
        return files.url([VOTER.clients], "h1"), JoinToken("i", "s", "a", (VOTER.signer,))

    async def changed(*_: object, **__: object) -> None:
        pass

    async def token(*_: object, **__: object) -> JoinToken:
        return JoinToken("i", "s", "a", (VOTER.signer,))

    monkeypatch.setattr(foundation, "found", found)
    monkeypatch.setattr(quorum, "require", changed)
    monkeypatch.setattr(founding, "change_settings", changed)
    monkeypatch.setattr(JoinTokens, "new", token)
    cluster = OwnCluster(Config(state_dir=str(tmp_path)), tmp_path / "agent.toml", restarts.append)
    part = Founding(cluster, EtcdUnit(tmp_path), JoinTokens(cluster))
    host = Host(id="h1", name="h1", version="1")

    async def both() -> list[bool]:
        return [one for _, one in await asyncio.gather(part.init(host, ""), part.init(host, ""))]

    assert asyncio.run(both()) == [True, False]
    assert (most, len(restarts)) == (1, 1)


def test_a_move_that_fails_is_waited_for_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent does not end, whatever the error is, and `status` is served meanwhile."""
    files = TrustFiles(tmp_path)
    files.keep_voter(VOTER)
    config = Config(state_dir=str(tmp_path), store=files.url([VOTER.clients], "h1"))
    cluster = OwnCluster(config, tmp_path, lambda _: None)
    part = Founding(cluster, EtcdUnit(tmp_path), JoinTokens(cluster))
    outcomes: list[Exception | None] = [Invalid("too large", "less"), Invalid("too large", "less"), None]
    told: list[str] = []

    async def move(*_: object) -> int:
        if (error := outcomes.pop(0)) is not None:
            raise error
        return 0

    @contextlib.asynccontextmanager
    async def waiting() -> AsyncIterator[None]:
        told.append(part.problem)
        yield
        told.append(part.problem)

    monkeypatch.setattr(founding, "move", move)
    monkeypatch.setattr(founding, "MOVE_AGAIN", 0)
    asyncio.run(part.moved(waiting()))
    assert told == ["too large; less", ""]
    assert not outcomes


def test_a_voter_whose_part_began_again_is_not_called_a_client(tmp_path: Path) -> None:
    """Its address changed while it forgot a host: the same command, typed again, does the rest."""
    cluster = OwnCluster(Config(state_dir=str(tmp_path)), tmp_path / "agent.toml", print)
    part = Founding(cluster, EtcdUnit(tmp_path), JoinTokens(cluster))
    with contextlib.closing(EtcdService(tmp_path, "h1", VOTER)) as service:
        former, present = (Revocation(cluster.files, mock.Mock(), service, "h1") for _ in range(2))
    part.voters = mock.Mock(revocation=present, server=mock.Mock())
    assert part._interruption(present) is None
    error = part._interruption(former)
    assert isinstance(error, Unavailable)
    assert (error.message.endswith("this voter's etcd has begun again"), error.hint) == (True, "type the same again")
    part.voters = mock.Mock(revocation=None, server=None)
    assert isinstance(part._interruption(former), Conflict)
