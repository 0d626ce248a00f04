"""The doctor's check of the controller: the agent asks the active one."""

from __future__ import annotations

from pathlib import Path

from linkspan.agent import agent_checks
from linkspan.backends.sdn.backend import BACKEND
from linkspan.cluster.questions import Ask, HealthQuestion, HealthReply, Question
from linkspan.controller.election import KEY
from linkspan.core.model import CONTROLLER
from linkspan.store.memory import Memory
from support.records.replicas import Member, network, together

DEMO = BACKEND.completed(network(backend="sdn"), ())
AWAY = "switch sw3 at tcp:192.0.2.250:6653: it does not answer in time"


async def _agent(memory: Memory, folder: Path) -> tuple[Member, Ask]:
    member = Member(memory, folder, "h1")

    async def answer(question: Question) -> HealthReply:
        raise AssertionError(question)

    ask = Ask(member.replica, "h1", answer)
    member.told = ask.changed
    await member.replica.start()
    return member, ask


def test_doctor_says_what_the_controller_says(tmp_path: Path) -> None:
    """None is active; one is, and a switch is away; everything is ok; and no check if no network needs one."""

    async def work() -> None:
        memory = Memory()
        agent, ask = await _agent(memory, tmp_path)
        problems: list[str] = []

        async def answer(question: Question) -> HealthReply:
            assert question == HealthQuestion()
            return HealthReply(tuple(problems))

        controller = Member(memory, tmp_path, "ctl1")
        answering = Ask(controller.replica, CONTROLLER, answer)
        controller.told = answering.changed
        await controller.replica.start()
        assert await agent_checks.controller(agent.replica, (network(backend="vxlan"),), ask) == []
        (none,) = await agent_checks.controller(agent.replica, (DEMO,), ask)
        assert (none.status, "`linkspan controller`" in none.fix) == ("fail", True)
        await agent.replica.write({KEY: b"ctl1"})
        problems.append(AWAY)
        (away,) = await agent_checks.controller(agent.replica, (DEMO,), ask)
        assert (away.status, away.detail, "controller status" in away.fix) == ("fail", AWAY, True)
        problems.clear()
        (well,) = await agent_checks.controller(agent.replica, (DEMO,), ask)
        assert (well.status, well.check) == ("ok", "controller")
        for one in (ask, answering):
            await one.stop()
        for member in (agent, controller):
            await member.replica.stop()

    together(work)
