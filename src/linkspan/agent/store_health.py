"""Store health: what `status`, `doctor`, `host list` and the metrics show of it.

`status` shows what is known already, so that it answers at once. `doctor` asks the store, and waits for the
answer.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from linkspan.core.errors import LinkspanError, counted
from linkspan.diagnose.doctor.checks import Check
from linkspan.store.contact import SLOW, STALE, State
from linkspan.store.records import SETTINGS

if TYPE_CHECKING:
    from linkspan.agent.agent import Agent

PATIENCE = 5.0
"""Seconds that `doctor` waits for the store: one endpoint of etcd has 3."""
WELL: tuple[State, ...] = ("ok", "slow")
_LOOK = "look at the store's own log, and at the path to it"


def state(agent: Agent) -> tuple[State, str, str]:
    """Return the store's state, the reason (a sentence, '' if the state is ok), and the fix."""
    replica, contact = agent.replica, agent.replica.contact
    if replica.problem:
        return "away", replica.problem, replica.fix or _LOOK
    if not replica.listed:
        why = f"it has not answered since the agent started, {time.time() - agent.started:.0f} s ago"
        return "away", why, _LOOK
    if replica.lost:
        lost = counted(len(replica.lost), "record")
        why = f"it lost {lost}, and their owners have not restored all: {_some(replica.lost)}"
        return "lost", why, "restore the store, or remove hosts that will not come back"
    if agent.leases.shared and contact.silence() > STALE:
        why = f"it accepts this host's writes, and has sent no change of other hosts for {contact.silence():.0f} s"
        return "stale", why, "restart the agent if this lasts, and look at the store's own log"
    if (took := contact.took() or 0) > SLOW:
        why = f"it is slow: its last answer took {took:.1f} s"
        return "slow", why, "look at the load and the disk of its machine, and at the path to it"
    return "ok", "", ""


def _some(keys: set[str]) -> str:
    return ", ".join(sorted(keys)[:5]) + (", ..." if len(keys) > 5 else "")


def told(agent: Agent) -> dict[str, object]:
    """Return the store's part of the status."""
    replica = agent.replica
    now, why, fix = state(agent)
    return {
        "url": agent.config.store or f"sqlite://{agent.config.state_dir}/store",
        "ok": now in WELL,
        "state": now,
        "problem": why,
        "fix": fix,
        "answered": replica.contact.answered,
        "seconds": replica.contact.seconds,
        "lost": sorted(replica.lost),
        "unreadable": sorted(replica.unreadable),
    }


def unknown(agent: Agent) -> list[str]:
    """Return the names of the hosts whose liveness is unknown now."""
    hosts = agent.leases.hosts()
    return sorted(host.name for id_, host in hosts.items() if agent.leases.lives(id_) is None)


async def checks(agent: Agent) -> list[Check]:
    """Return `doctor`'s checks of the store, which is asked now: it may have failed a moment ago."""
    begun = time.monotonic()
    why, fix = "", ""
    try:
        async with asyncio.timeout(PATIENCE):
            await agent.replica.store.get(SETTINGS)
    except TimeoutError:
        why, fix = f"no answer within {PATIENCE:.0f} s", _LOOK
    except LinkspanError as error:
        why, fix = error.message, error.hint
    seconds = time.monotonic() - begun
    now, other, remedy = state(agent)
    if why or now not in WELL:
        found = [Check("store", "fail", (why or other).removeprefix("store "), fix or remedy or _LOOK)]
    elif now == "slow" or seconds > SLOW:
        took = max(seconds, agent.replica.contact.took() or 0)
        found = [Check("store", "warn", f"it is slow: an answer took {took:.1f} s", remedy or _LOOK)]
    else:
        found = [Check("store", "ok", f"it answers, within {seconds * 1000:.0f} ms")]
    if names := unknown(agent):
        some = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        silent = f"the store has not answered for {_age(agent)}"
        why = "the store is full, so hosts cannot renew their liveness" if agent.replica.absences.full else silent
        text = f"liveness of {some} is unknown: {why}"
        found.append(Check("hosts", "warn", text, "packets still flow; repair the store first"))
    return found


def _age(agent: Agent) -> str:
    silence = agent.replica.contact.silence()
    return "the whole time since the agent started" if silence == float("inf") else f"{silence:.0f} s"
