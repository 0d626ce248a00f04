"""Controller status for an agent: the active controller, its problems, and errors without one."""

from __future__ import annotations

from collections.abc import Iterable

from linkspan.backends.sdn import backend as sdn
from linkspan.cluster.questions import Ask, Standing, Well
from linkspan.core.errors import Unavailable
from linkspan.core.model import Network
from linkspan.diagnose.doctor.checks import Check
from linkspan.diagnose.trace.parts import CONTROLLER
from linkspan.store.replica import Replica

START = "start one on a machine that reaches the store and the switches: `linkspan controller` (docs/sdn.md)"
LOOK = "`linkspan controller status`, where it runs, shows switches, links and hosts"


def needed(networks: Iterable[Network]) -> bool:
    """Return whether a controller programs the devices of any of these networks."""
    return any(sdn.gateway(way) for network in networks for way in network.ways)


def active(replica: Replica) -> str:
    """Return the name of the active controller, '' if there is none."""
    record = replica.records.get(f"alive/{CONTROLLER}")
    return record.value.decode(errors="replace") if record is not None else ""


def require(replica: Replica, network: Network, what: str) -> None:
    """Raise Unavailable if a network needs a controller and none is active; ``what`` begins the error."""
    if network.backend == sdn.BACKEND.name and not active(replica):
        raise Unavailable(f"{what} {network.name}: backend sdn needs a controller, and no controller is active", START)


async def checks(replica: Replica, networks: Iterable[Network], ask: Ask) -> list[Check]:
    """Return the checks of the controller for ``doctor``; none if no network needs one."""
    if not needed(networks):
        return []
    name = active(replica)
    if not name:
        return [Check("controller", "fail", "no controller is active: the switches learn of nothing new", START)]
    try:
        found = await ask.ask(CONTROLLER, Well(), Standing)
    except Unavailable as error:
        return [Check("controller", "warn", f"{name} is active, and does not report its state: {error.message}", LOOK)]
    bad = [Check("controller", "fail", problem, LOOK) for problem in found.problems]
    return bad or [Check("controller", "ok", f"{name} is active, and has nothing to complain of")]
