"""Status report: the JSON of `status`, from an agent's condition and from what it serves."""

from __future__ import annotations

import os
import time
from typing import Any

from linkspan import __version__
from linkspan.agent.agent import Agent
from linkspan.agent.condition import Condition
from linkspan.cluster import controller_status
from linkspan.core import namesakes
from linkspan.endpoints.reconstruction import is_unnamed


def as_status(agent: Agent, condition: Condition) -> dict[str, Any]:
    """Return the agent's status as documented for `status -o json`."""
    process = {
        "version": __version__,
        "pid": os.getpid(),
        "started": agent.started,
        "socket": agent.config.socket,
    }
    return {
        "ok": condition.ok,
        "agent": process | {"state_dir": agent.config.state_dir, "host": agent.hosts.here.name},
        "store": condition.store,
        "records": condition.records,
        "networks": _networks(agent),
        "disputes": condition.disputes,
        "drift": [*dict.fromkeys(condition.drift), *condition.unmet],
        "gone": [
            {"endpoint": e.name or e.id, "ifname": e.ifname, "network": e.network, "detached_in": seconds}
            for identity, seconds in agent.reaper.dead().items()
            if (e := agent.registry.endpoints.get(identity)) is not None
        ],
        "fights": _fights(agent),
        "rebuilt": {
            "endpoints": agent.recovery.rebuilt,
            "why": f"the journal {agent.recovery.doubt}" if agent.recovery.rebuilt else "",
            "unnamed": [e.id for e in agent.registry.endpoints.values() if is_unnamed(e)],
        },
        "orphans": condition.orphans,
        "heals": _heals(agent),
        "unreachable": condition.unreachable,
        "namesakes": [{"name": n, "ids": ids} for n, ids in namesakes.shared(agent.hosts.names()).items()],
        "waiting": "",
        "certificates": condition.certificates,
        "bgp": condition.bgp,
        "ipsec": agent.ipsec_sessions.counts(),
        "controller": controller_status.active(agent.replica)
        if controller_status.needed(agent.networks.all())
        else None,
    }


def _networks(agent: Agent) -> list[dict[str, Any]]:
    return [
        {
            "name": n.name,
            "backend": n.backend,
            "endpoints": agent.registry.count(n.name),
            "free": agent.blocks.free(n.name),
            "names": agent.name_service.standing(n.name),
            "not_switched": agent.migration_runner.not_switched(n),
            "fast": agent.fast_endpoints.told(n),
        }
        for n in agent.networks.all()
    ]


def _fights(agent: Agent) -> list[dict[str, Any]]:
    return [
        {
            "what": f.what,
            "by": f.by,
            "since": time.time() - (time.monotonic() - f.since),
            "repairs": f.repairs,
            "ports_down": f.closed,
        }
        for f in agent.worker.machine.reconciler.fights.open()
    ]


def _heals(agent: Agent) -> list[dict[str, Any]]:
    return [
        {
            "at": h.at,
            "kind": h.about["kind"],
            "key": h.about["key"],
            "what": h.about["change"],
            "inside": h.about.get("inside", ""),  # the events may be those of an older release
        }
        for h in agent.event_log.kept("heal", 20)
    ]
