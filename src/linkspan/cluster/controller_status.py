"""Controller status for an agent: who is active, and errors without one."""

from __future__ import annotations

from collections.abc import Iterable

from linkspan.backends.sdn import backend as sdn
from linkspan.core.errors import Unavailable
from linkspan.core.model import CONTROLLER, Network
from linkspan.store.replica import Replica

START = "start one on a machine that reaches the store and the switches: `linkspan controller` (docs/sdn.md)"


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
