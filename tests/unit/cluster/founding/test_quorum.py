"""Quorum: what is said if too few voters answer, and that it is found out without a login."""

from __future__ import annotations

import asyncio

import pytest

from linkspan.cluster.founding import quorum
from linkspan.core.errors import LinkspanError, Unavailable
from linkspan.store.etcd_errors import Failed, Refused
from support.fake_voters import Gateway, member

PLACES = tuple(f"192.0.2.{host}:5379" for host in "123")


@pytest.fixture
def gateway() -> Gateway:
    """Give the connections to three voters."""
    found = Gateway(*PLACES)
    found.members = tuple(map(member, "123"))
    return found


def said(gateway: Gateway) -> LinkspanError | None:
    """Return what is wrong."""
    return asyncio.run(quorum.look(gateway)).problem  # type: ignore[arg-type]


def test_voters_with_a_leader_can_change_something(gateway: Gateway) -> None:
    """Also while one is down, and those that this host does not know yet are asked as well."""
    assert said(gateway) is None
    gateway.silent = {"2"}
    assert said(gateway) is None
    gateway.url = Gateway(PLACES[1], PLACES[0]).url
    found = asyncio.run(quorum.look(gateway))  # type: ignore[arg-type]
    assert [found.healthy(one) for one in gateway.members] == [True, False, True]


def test_too_few_voters_are_named_with_the_way_out(gateway: Gateway) -> None:
    """What to type if they are lost for good is in the hint."""
    gateway.silent, gateway.leaderless = {"2", "3"}, True
    error = said(gateway)
    assert error is not None
    assert error.message == (
        "etcd has no quorum: 1 of 3 voters answer (192.0.2.1), and 2 must; silent: 192.0.2.2, 192.0.2.3"
    )
    assert "linkspan cluster recover (docs/recovery.md)" in error.hint
    gateway.silent = {"3"}
    error = said(gateway)
    assert error is not None
    assert (error.message[:31], error.hint) == ("the voters have no leader at th", "try again in some seconds")


def test_voters_of_which_none_answers_are_told_with_the_reasons(gateway: Gateway) -> None:
    """A restore is the way out if they are lost; one that refuses this host says what to do instead."""
    gateway.silent = {"1", "2", "3"}
    error = said(gateway)
    assert error is not None
    assert error.message.startswith("none of the 3 voters answers: 192.0.2.1:5379 does not answer; ")
    assert "linkspan cluster restore FILE (docs/recovery.md)" in error.hint
    gateway.url = Gateway(PLACES[0]).url
    assert str(said(gateway)).startswith("the voter does not answer")

    async def refuse(*_: object) -> bytes:
        raise Failed("etcd: it refuses our certificate", "join again", sent=False)

    gateway.openly = refuse  # type: ignore[method-assign,assignment]
    error = said(gateway)
    assert error is not None
    assert error.hint == "join again"


def test_an_etcd_that_tells_it_to_users_alone_is_asked_as_one(gateway: Gateway) -> None:
    """Without a quorum nobody logs in: then it answers, and nothing is known of its leader."""
    async def refuse(place: str, *_: object) -> bytes:
        raise Refused("user name is empty", "", 3)

    async def late(*_: object) -> bytes:
        raise Failed("no answer within 3 s", "", sent=True, unanswered=True)

    gateway.openly = refuse  # type: ignore[method-assign,assignment]
    real, gateway.at = gateway.at, late  # type: ignore[method-assign,assignment]
    error = said(gateway)
    assert error is not None
    assert error.message.startswith("the voters have no leader")
    gateway.at = real  # type: ignore[method-assign]
    assert said(gateway) is None


def test_an_election_is_waited_for(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends by itself, and a command that is refused meanwhile would only be typed again."""
    monkeypatch.setattr(quorum, "AGAIN", 0.01)

    async def run() -> None:
        gateway.leaderless, gateway.silent = True, {"3"}
        waiting = asyncio.create_task(quorum.require(gateway))  # type: ignore[arg-type]
        await asyncio.sleep(0.1)
        assert not waiting.done()
        gateway.leaderless = False
        await asyncio.wait_for(waiting, 1)
        gateway.leaderless = True
        monkeypatch.setattr(quorum, "ELECTION", 0.1)
        with pytest.raises(Unavailable, match="the voters have no leader"):
            await asyncio.wait_for(quorum.require(gateway), 1)  # type: ignore[arg-type]
        assert (await quorum.look(gateway)).has_quorum  # type: ignore[arg-type]
        gateway.silent = {"2", "3"}
        assert not (await quorum.look(gateway)).has_quorum  # type: ignore[arg-type]

    asyncio.run(run())


def test_a_command_ends_at_once_if_there_is_no_quorum(gateway: Gateway) -> None:
    """It raises what is wrong."""
    asyncio.run(quorum.require(gateway))  # type: ignore[arg-type]
    gateway.silent = {"1", "2", "3"}
    with pytest.raises(Unavailable, match="none of the 3 voters answers"):
        asyncio.run(quorum.require(gateway))  # type: ignore[arg-type]
