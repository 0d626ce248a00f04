"""An idle agent costs next to nothing, with many containers and their names."""

from __future__ import annotations

import contextlib

import pytest

from linkspan.lab import sockets
from support.agent.agent_host import Host, World
from support.agent.cpu_time import measured
from support.dns_queries import ask
from support.polling import until

ENDPOINTS = 200
MINUTE = 60.0
"""Seconds: each of the agent's timers ends at least once in them, the one of the full resync too (healer.FULL)."""
PROMISE = 0.005
"""Of one core."""
MINUTES = 3
"""At most: whatever else the machine does only adds to the agent's time, so one minute below the promise is enough."""
SETTLED = 0.02
"""Of one core in a second: what the last attachments started has ended."""


@pytest.mark.alone
@pytest.mark.timeout(400)
def test_an_idle_agent_uses_less_than_half_a_percent_of_a_core(world: World) -> None:
    """The agent serves 200 endpoints and their names, and for a minute nobody sends or changes anything."""
    host = Host(world, names=True)
    try:
        host.start()
        host.network("demo", "10.201.0.0/16")
        containers = [world.namespace() for _ in range(ENDPOINTS)]
        for container in containers:
            host.attach(container)

        def named() -> bool:
            with contextlib.suppress(OSError), sockets.inside(containers[0]):
                return bool(ask("10.201.0.1", containers[-1]).data)
            return False

        until(named, "the first container finds the last one's name")
        assert host.differences() == []
        agent = host.process
        assert agent is not None
        until(lambda: measured(agent, 1.0).share < SETTLED, "the agent has nothing left to do")
        used = [measured(agent, MINUTE)]
        while used[-1].share >= PROMISE and len(used) < MINUTES:
            used.append(measured(agent, MINUTE))
        assert used[-1].share < PROMISE, used
    finally:
        host.close()
