"""Condition of a host: the problems that its agent knows at one moment.

The agent looks for them once. `status`, the gauges of /metrics and the checks of `doctor` are three ways to show them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from linkspan.agent import health, store_health
from linkspan.backends import BACKENDS, PROBLEMS, backend
from linkspan.core.fights import Contested
from linkspan.core.model import Network
from linkspan.kernel import kinds
from linkspan.runtimes import expose

if TYPE_CHECKING:
    from linkspan.agent.agent import Agent


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """The problems, each as docs/json.md has it for `status`; ``here`` is the name of this host.

    ``drift`` has a reason for each object that differs from its desired state. ``unmet`` has the reasons why runtimes
    or containers lack something that a network promises, such as a DNS server.
    """

    here: str
    store: Mapping[str, Any]
    records: Sequence[Mapping[str, str]] = ()
    disputes: Sequence[Mapping[str, object]] = ()
    drift: Sequence[str] = ()
    unmet: Sequence[str] = ()
    orphans: Sequence[Mapping[str, object]] = ()
    unreachable: Sequence[Mapping[str, str]] = ()
    bgp: Mapping[str, Any]
    certificates: Sequence[Mapping[str, Any]] = ()

    @property
    def ok(self) -> bool:
        """Return whether there is no problem of this host.

        A host whose agent is silent does not count: that is no fault of this host, and packets still reach it.
        """
        cut = [one for one in self.unreachable if one["network"] or self.here in one["host"].split(", ")]
        bgp = self.bgp["down"] or self.bgp["limited"]
        spoilt = any(one["problem"] for one in self.certificates)
        wrong = self.disputes or self.drift or self.unmet or self.orphans or self.records or cut or bgp or spoilt
        return bool(self.store["ok"]) and not wrong


def observed(agent: Agent) -> Condition:
    """Return the condition of an agent's host now."""
    _read_all(agent)
    return Condition(
        here=agent.hosts.here.name,
        store=store_health.told(agent),
        records=_not_used(agent),
        disputes=disputes(agent),
        drift=_drift(agent),
        unmet=[
            *(told for service in agent.services.values() for told in service.problems),
            *agent.naming.problems.values(),
        ],
        orphans=agent.orphans.told(),
        unreachable=_unreachable(agent),
        bgp=_sessions(agent),
        certificates=[msgspec.to_builtins(one) for one in agent.founding.certificates()],
    )


def _read_all(agent: Agent) -> None:
    """Read every record about all hosts and this host's networks once, so that unreadable records are known."""
    agent.hosts.all()
    agent.hosts.common()
    agent.allowances.all()
    agent.reservations.all()
    for network in _concerned(agent):
        agent.leases.all(network.name)
        agent.leases.blocks(network.name)
        agent.leases.exact(network.name)


def _concerned(agent: Agent) -> list[Network]:
    """Return the networks whose leases and blocks this host uses, or that nobody should have any in."""
    taking = agent.participation.all()
    return [one for one in agent.networks.all() if one.name in taking or not backend(one.backend).crosses_hosts]


def _unreachable(agent: Agent) -> list[dict[str, str]]:
    """Return the unreachable peers, and the other problems between hosts."""
    view = agent.view()
    troubles = [text for way in BACKENDS.values() for text in way.troubles(view)]
    lacks = [*agent.plans.problems, *troubles, *kinds.problems(), *PROBLEMS]
    found = health.unreachable(agent.cluster, agent.hosts, agent.probes.silent(), lacks)
    here = agent.hosts.here.name
    overlaps = agent.networks.overlaps().items()
    found += [{"network": name, "host": here, "why": why} for name, why in sorted(overlaps)]
    return [*found, *agent.associating.told()]


def _not_used(agent: Agent) -> list[dict[str, str]]:
    """Return the records that are not used completely: each with its key, its host, and the reason."""
    networks = agent.networks
    why = agent.leases.refused(_concerned(agent))
    why |= {f"networks/{name}": f"not in force on this host: {told}" for name, told in networks.withheld.items()}
    for id_, host in agent.hosts.all().items():
        if id_ != agent.hosts.here.id and (told := networks.covering(host)):
            why[f"hosts/{id_}"] = told
    for network in networks.all():
        if told := expose.problem(network):
            why[f"networks/{network.name}"] = told
    # Last: an earlier version of such a record is in force, which may fail as well.
    why |= agent.remote.reasons | agent.replica.reasons
    return [{"key": key, "host": agent.hosts.of_record(key), "why": why[key]} for key in sorted(why)]


def disputes(agent: Agent) -> list[dict[str, object]]:
    """Return the blocks and addresses that two hosts claim."""
    return [agent.disputes.told(one) for one in (*agent.disputes.open(), *agent.holdings.open())]


def _sessions(agent: Agent) -> dict[str, object]:
    """Return the number of BGP sessions, those that are down or limited, and warnings about all of them together."""
    down = [
        {"peer": p.session.name, "state": p.state, "why": p.why.reason, "fix": p.why.fix}
        for p in agent.peerings.all()
        if p.why is not None
    ]
    limited = [
        {"peer": p.session.name, "why": p.limited.reason, "fix": p.limited.fix}
        for p in agent.peerings.all()
        if p.limited is not None
    ]
    crowded = agent.peerings.crowded
    warnings = [{"why": crowded.reason, "fix": crowded.fix}] if crowded is not None else []
    return {"sessions": len(agent.peerings.all()), "down": down, "limited": limited, "warnings": warnings}


def _drift(agent: Agent) -> list[str]:
    """Return why objects differ from their desired state; ignore those of a container that is gone."""
    reconciler = agent.worker.machine.reconciler
    failing = [error.told for key, error in reconciler.failing.items() if not agent.reaper.orphaned(key)]
    fights = [fight for fight in reconciler.fights.open() if fight.closed]
    return failing + [Contested(fight.message, there=True).told for fight in fights]
