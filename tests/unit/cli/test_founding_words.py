"""The words of `linkspan cluster members`, and how the commands find out that an agent runs."""

from __future__ import annotations

from typing import Any

import pytest

from linkspan.api.client import Client
from linkspan.cli import agent_start
from linkspan.cli.founding import spare_voters
from linkspan.core.errors import LinkspanError, Unavailable


def voters(*healthy: bool) -> list[dict[str, Any]]:
    """Return members: voters, and one client."""
    return [{"role": "voter", "healthy": one} for one in healthy] + [{"role": "client", "healthy": False}]


def test_members_say_how_many_voters_may_be_lost() -> None:
    """Also if too many are lost already."""
    assert spare_voters(voters(True)).startswith("1 voter, and none may be lost")
    assert spare_voters(voters(True, True, True)) == "1 of 3 voters may be lost"
    assert spare_voters(voters(True, True, False)).startswith("3 voters, and none may be lost")
    for lost in (voters(False), voters(True, False, False)):
        assert spare_voters(lost).startswith("too many voters do not answer: nothing can be changed")


def test_an_agent_that_waits_is_not_started_a_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command waits for it, and says in the end why it waits, or goes on with an agent that waits."""
    said = [{"waiting": "etcd does not answer"}] * 2 + [{"waiting": ""}]
    monkeypatch.setattr(Client, "call", lambda *_: said.pop(0))
    monkeypatch.setattr(agent_start, "_started", lambda *_: pytest.fail("a second agent"))
    agent_start.ensure_agent(Client("/run/none"), "")
    assert not said
    said += [{"waiting": "etcd does not answer"}] * 5
    with pytest.raises(Unavailable, match="the agent waits: etcd does not answer"):
        agent_start.ensure_agent(Client("/run/none"), "", -1.0)
    agent_start.ensure_answer(Client("/run/none"), "", -1.0)  # for a command that gives it another store


def test_a_started_agent_that_waits_gets_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first answer says that it waits: the minute of a start is not for that."""
    said: list[dict[str, Any] | None] = [None, None, *[{"waiting": "etcd does not answer"}] * 2]

    def call(*_: object) -> dict[str, Any]:
        if (one := said.pop(0)) is None:
            raise LinkspanError("no agent answers")
        return one

    monkeypatch.setattr(Client, "call", call)
    monkeypatch.setattr(agent_start, "_started", lambda *_: (None, "agent.log"))
    agent_start.ensure_answer(Client("/run/none"), "", -1.0)
    assert not said
