"""What `status` and the metrics' gauges tell of an agent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from linkspan import __version__, controlled, standing
from linkspan.backends.wireguard import lacking
from linkspan.errors import LinkspanError

if TYPE_CHECKING:
    from linkspan.agent import Agent


def told(agent: Agent) -> dict[str, object]:
    """Return the agent's status as cli.md has it."""
    standing.read_all(agent.leases, agent.networks.all())
    heals = [
        {"at": h.at, "kind": h.about["kind"], "key": h.about["key"], "what": h.about["change"]}
        for h in agent.happenings.kept("heal", 20)
    ]
    networks = [
        {
            "name": n.name,
            "backend": n.backend,
            "endpoints": _count(agent, n.name),
            "free": agent.free(n.name),
            "names": agent.naming.standing(n.name),
            "not_switched": agent.cluster.migrating.not_switched(n),
        }
        for n in agent.networks.all()
    ]
    process = {
        "version": __version__,
        "pid": os.getpid(),
        "started": agent.started,
        "socket": agent.config.socket,
    }
    return {
        "agent": process | {"state_dir": agent.config.state_dir},
        "store": {
            "url": agent.config.store or f"sqlite://{agent.config.state_dir}/store",
            "ok": agent.replica.settled,
            "problem": agent.replica.problem,
            "lost": sorted(agent.replica.lost),
            "unreadable": sorted(agent.replica.unreadable),
        },
        "networks": networks,
        "disputes": disputes(agent),
        "drift": [
            *dict.fromkeys(error.told for error in drift(agent)),
            *agent.docker.exposed.problems.values(),
            *agent.naming.problems.values(),
        ],
        "gone": [
            {"endpoint": e.name or e.id, "ifname": e.ifname, "network": e.network, "detached_in": seconds}
            for identity, seconds in agent.healer.dead().items()
            if (e := agent.attacher.endpoints.get(identity)) is not None
        ],
        "heals": heals,
        "unreachable": unreachable(agent),
        "bgp": _sessions(agent),
        "controller": controlled.active(agent.replica) if controlled.needed(agent.networks.all()) else None,
    }


def unreachable(agent: Agent) -> list[dict[str, str]]:
    """Return the peers that are not reached, and what else is not well between hosts."""
    lacks = [*agent.plans.problems, *lacking(agent.view())]
    found = standing.unreachable(agent.cluster, agent.leases, agent.probes.silent(), lacks)
    return [*found, *agent.associating.told()]


def disputes(agent: Agent) -> list[dict[str, object]]:
    """Return the blocks and addresses that two hosts claim."""
    return [agent.disputes.told(one) for one in (*agent.disputes.open(), *agent.holdings.open())]


def _sessions(agent: Agent) -> dict[str, object]:
    """Return how many BGP sessions there are, and those that are down."""
    down = [
        {"peer": p.session.name, "state": p.state, "why": p.why.reason, "fix": p.why.fix}
        for p in agent.peerings.all()
        if p.why is not None
    ]
    return {"sessions": len(agent.peerings.all()), "down": down}


def drift(agent: Agent) -> list[LinkspanError]:
    """Return why objects cannot be put as they should be; those of a container that is gone are not missed."""
    failing = agent.worker.machine.reconciler.failing
    return [error for key, error in failing.items() if not agent.healer.orphaned(key)]


def _count(agent: Agent, network: str) -> int:
    return sum(e.network == network for e in agent.attacher.endpoints.values())


def gauges(agent: Agent) -> Iterator[tuple[str, str, str, dict[str, float]]]:
    """Yield the gauges of networks, of what could not be mended, and of BGP sessions."""
    names = [network.name for network in agent.networks.all()]
    counts = {n: float(_count(agent, n)) for n in names}
    yield "linkspan_endpoints", "Endpoints attached", "network", counts
    free = {n: float(agent.free(n)) for n in names}
    yield "linkspan_addresses_free", "Addresses left", "network", free
    unreadable = float(len(agent.replica.unreadable))
    yield "linkspan_records_unreadable", "Records of the store that are skipped", "", {"": unreadable}
    claimed = float(len(disputes(agent)))
    yield "linkspan_disputes", "Blocks and addresses that two hosts claim", "", {"": claimed}
    failing = float(len(drift(agent)))
    yield "linkspan_drift", "Objects that cannot be put as they should be", "", {"": failing}
    peerings = agent.peerings.all()
    up = {p.session.name: float(p.why is None) for p in peerings}
    yield "linkspan_bgp_session_up", "Whether a BGP session is established", "peer", up
    for what in ("sent", "received", "accepted", "filtered"):
        numbers = {p.session.name: float(p.seen.count(what)) for p in peerings if p.seen is not None}
        yield f"linkspan_bgp_prefixes_{what}", f"Prefixes {what} in a BGP session", "peer", numbers
