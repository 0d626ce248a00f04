"""The words of `linkspan cluster members`, and how the commands find out that an agent runs."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest

from linkspan.agent import locks
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
        assert "linkspan cluster recover" in spare_voters(lost)


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
    monkeypatch.setattr(locks, "listener", lambda _address: None)
    agent_start.ensure_answer(Client("/run/none"), "", -1.0)
    assert not said


class Started:
    """A process that ends at once: another agent has the host."""

    def poll(self) -> int:
        """Return its exit code."""
        return 1


@pytest.mark.parametrize("there", [True, False])
def test_an_agent_that_does_not_answer_at_this_moment_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, *, there: bool
) -> None:
    """It starts, is busy, or was quicker than the one that the command began: there is no second one beside it."""
    answers: list[dict[str, Any] | None] = [None, None, None, {"waiting": ""}]
    pids = [7 if there else None, 7, 7]
    begun: list[str] = []

    def call(*_: object) -> dict[str, Any]:
        if (one := answers.pop(0)) is None:
            raise LinkspanError("no agent answers")
        return one

    monkeypatch.setattr(Client, "call", call)
    monkeypatch.setattr(locks, "listener", lambda _address: pids.pop(0))

    def start(*_: object) -> tuple[Started, str]:
        begun.append("agent.log")
        return Started(), "agent.log"

    monkeypatch.setattr(agent_start, "_begun", start)
    agent_start.ensure_agent(Client("/run/none"), "")
    assert (answers, begun) == ([], [] if there else ["agent.log"])


def test_an_agent_that_ended_meanwhile_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was about to stop when the command looked."""
    answers: list[dict[str, Any] | None] = [None, None, {"waiting": ""}]
    pids: list[int | None] = [7, None]
    begun: list[str] = []

    def call(*_: object) -> dict[str, Any]:
        if (one := answers.pop(0)) is None:
            raise LinkspanError("no agent answers")
        return one

    monkeypatch.setattr(Client, "call", call)
    monkeypatch.setattr(locks, "listener", lambda _address: pids.pop(0))

    def start(*_: object) -> tuple[None, str]:
        begun.append("log")
        return None, "log"

    monkeypatch.setattr(agent_start, "_begun", start)
    monkeypatch.setattr(agent_start, "ASK_PID", 0.0)
    agent_start.ensure_agent(Client("/run/none"), "")
    assert begun == ["log"]


def test_the_pid_of_an_agent_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody takes the connections by which it is asked for, so soon the kernel refuses further ones."""

    def call(*_: object) -> dict[str, Any]:
        raise LinkspanError("no agent answers")

    name = f"\0linkspan-test-{os.getpid()}"
    monkeypatch.setattr(Client, "call", call)
    monkeypatch.setattr(locks, "NAMESPACE_LOCK", name)
    monkeypatch.setattr(agent_start, "PATIENCE", 0.3)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as lock:
        lock.bind(name)
        lock.listen(1)
        with pytest.raises(Unavailable, match=f"the agent with pid {os.getpid()} runs"):
            agent_start.ensure_agent(Client("/run/none"), "")
        monkeypatch.setattr(agent_start, "ASK_PID", 0.0)
        with pytest.raises(Unavailable, match=f"the agent with pid {os.getpid()} runs"):
            agent_start.ensure_agent(Client("/run/none"), "")


@pytest.mark.parametrize(
    ("pid", "told"),
    [
        (7, "the agent with pid 7 runs on this host, and does not answer at /run/none"),
        (None, "the agent does not start"),
    ],
)
def test_an_agent_that_never_answers_is_told_from_one_that_does_not_start(
    monkeypatch: pytest.MonkeyPatch, pid: int | None, told: str
) -> None:
    """The first one may have another socket, or hang; a second one would not help."""

    def call(*_: object) -> dict[str, Any]:
        raise LinkspanError("no agent answers")

    monkeypatch.setattr(Client, "call", call)
    monkeypatch.setattr(locks, "listener", lambda _address: pid)
    monkeypatch.setattr(agent_start, "_begun", lambda *_: (Started(), "log"))
    monkeypatch.setattr(agent_start, "PATIENCE", 0.05)
    with pytest.raises(Unavailable, match=told):
        agent_start.ensure_agent(Client("/run/none"), "")
