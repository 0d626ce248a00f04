"""Host condition: gathers from an agent's parts the problems that it knows now."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from linkspan.agent import condition, health
from linkspan.agent.agent import Agent
from linkspan.agent.condition import Condition
from linkspan.backends import BACKENDS, PROBLEMS
from linkspan.kernel import kinds


def condition_of(agent: Agent) -> Condition:
    """Return the problems of an agent's host that are known now."""
    concerned = condition.concerned(agent.networks, agent.participation)
    condition.read_all(agent.hosts, agent.allowances, agent.reservations, agent.leases, concerned)
    agent.policies.all()
    skipped = {**agent.remote.reasons, **agent.replica.reasons}
    return Condition(
        here=agent.hosts.here.name,
        store=agent.store_health.told(),
        records=condition.unused_records(agent.networks, agent.hosts, skipped, agent.leases.refused(concerned)),
        disputes=disputes(agent),
        drift=condition.drift(agent.worker.machine.reconciler, agent.reaper.orphaned),
        unmet=[*_unmet(agent)],
        orphans=agent.orphans.told(),
        unreachable=_unreachable(agent),
        bgp=agent.bgp_sessions.problems(),
        certificates=[msgspec.to_builtins(one) for one in agent.founding.certificates()],
    )


def disputes(agent: Agent) -> list[dict[str, object]]:
    """Return the blocks and addresses that two hosts claim."""
    return [agent.conflicts.told(one) for one in (*agent.conflicts.open(), *agent.exact_addresses.open())]


def _unmet(agent: Agent) -> Iterator[str]:
    for service in agent.services.values():
        yield from service.problems
    yield from agent.name_service.problems.values()
    yield from agent.enforcement.unenforced()
    yield from agent.drop_log.problems()
    yield from agent.egress.problems()
    if (etcd := agent.founding.running_etcd()) is not None and etcd.trouble:
        yield etcd.trouble


def _unreachable(agent: Agent) -> list[dict[str, str]]:
    """Return the unreachable peers, and the other problems between hosts."""
    view = agent.view()
    lacks = [
        *filter(None, (agent.withdrawal.problem, agent.registration.astray, agent.presence.second)),
        *agent.shared_states.problems.values(),
        *agent.plans.problems,
        *(text for way in BACKENDS.values() for text in way.troubles(view)),
        *kinds.problems(),
        *PROBLEMS,
    ]
    silent = {**agent.peer_pings.silent(), **agent.peers.unreachable}
    found = health.unreachable(agent.hosts, silent, lacks, agent.claims.refused)
    return [*found, *health.overlaps(agent.networks, agent.hosts.here.name), *agent.ipsec_sessions.told()]
